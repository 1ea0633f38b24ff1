"""Labelled pictures of a config -> the kNN probe of a training run, and the figures it is held against."""

from collections.abc import Mapping
from typing import Any

import torch

from seer.data.multicrop import MultiCrop
from seer.data.shards import open_shards
from seer.evals.features import Pictures
from seer.evals.knn import KNN, baselines


def labelled(wanted: Mapping[str, Any], size: int) -> tuple[Pictures, Pictures]:
    """Train and test pictures of a node with train, test, labels, size, resize, most. Classes are matched by name.

    Raises RequestError where there are no labels, or none in common.
    """
    how = {
        "size": wanted["size"] or size,
        "resize": wanted["resize"],
        "labels": wanted["labels"],
        "most": wanted["most"],
    }
    train = Pictures(open_shards(wanted["train"]), **how)
    test = Pictures(open_shards(wanted["test"]), like=train, **how)
    return train, test


class Probe:
    """Evaluator for the loop. Every rank runs it on the whole, so that all hold the same numbers without a word."""

    def __init__(
        self,
        wanted: Mapping[str, Any],
        train: Pictures,
        test: Pictures,
        crop: MultiCrop,
        threads: int,
        dtype: torch.dtype,
    ):
        self.train, self.test = train, test
        self.k, self.temperature, self._threads = wanted["k"], wanted["temperature"], threads
        self._knn = KNN(
            self.train,
            self.test,
            mean=crop.mean,
            std=crop.std,
            k=self.k,
            temperature=self.temperature,
            threads=threads,
            dtype=dtype,
        )

    def run(self, model: Any) -> dict[str, float]:
        return self._knn.run(model)

    def baselines(self) -> dict[str, float]:
        """kNN on raw pixels and on colour histograms: what needs no network at all."""
        return baselines(self.train, self.test, k=self.k, temperature=self.temperature, threads=self._threads)
