"""Makes the kNN probe of a training run from labelled images, and the figures it is held against."""

from typing import Any, Protocol

import torch

from seer.core.protocols import Modules
from seer.data.shards import open_shards
from seer.evals.features import Pictures
from seer.evals.knn import KNN, baselines


class Wanted(Protocol):
    """Says which images, how they are cut, and where their labels come from; attributes of a config."""

    @property
    def train(self) -> str | list[str] | None: ...
    @property
    def test(self) -> str | list[str] | None: ...
    @property
    def labels(self) -> str: ...
    @property
    def size(self) -> int | None: ...
    @property
    def resize(self) -> int | None: ...
    @property
    def most(self) -> int: ...


def labelled(wanted: Wanted, size: int) -> tuple[Pictures, Pictures]:
    """Opens train and test images. Classes are matched by name. size: where `wanted` has none.

    Raises RequestError where there are no labels, or none in common.
    """
    assert wanted.train is not None and wanted.test is not None
    how: dict[str, Any] = {"size": wanted.size or size, "resize": wanted.resize}
    how |= {"labels": wanted.labels, "most": wanted.most}
    train = Pictures(open_shards(wanted.train), **how)
    return train, Pictures(open_shards(wanted.test), like=train, **how)


class OnlineKNN:
    """Evaluates by kNN in the loop. Every rank runs it on the whole, so that all hold the same numbers without
    a word."""

    def __init__(
        self,
        train: Pictures,
        test: Pictures,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        k: int,
        temperature: float,
        threads: int,
        dtype: torch.dtype,
    ):
        self.train, self.test = train, test
        self._baselines = {"k": k, "temperature": temperature, "threads": threads}
        self._knn = KNN(train, test, mean=mean, std=std, k=k, temperature=temperature, threads=threads, dtype=dtype)

    def run(self, task: Modules) -> dict[str, float]:
        """Returns {"knn_top1": …} of the backbone."""
        return self._knn.run(task)

    def baselines(self) -> dict[str, float]:
        """Returns kNN on raw pixels and on color histograms: what needs no network at all."""
        return baselines(self.train, self.test, **self._baselines)  # type: ignore[arg-type]
