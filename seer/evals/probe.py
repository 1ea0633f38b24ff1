"""Opens the labelled images of a config: those that are known, and those that are asked for."""

from typing import Any, Protocol

from seer.data.shards.open import open_shards
from seer.evals.features import Pictures


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
