"""Measures what a classifying head is worth on images that it has not seen. Legend: Q test images, Y classes."""

from collections.abc import Sequence

import torch
from torch import nn

from seer.core.protocols import Modules
from seer.evals.features import LabelledImages, extract


class HeadTop1:
    """Evaluates a head: the share of test images whose highest score is that of their class. classes: names in
    the order of scores.

    Classes are matched by name; images of a class that the head does not know count as wrong.
    """

    def __init__(
        self,
        test: LabelledImages,
        classes: Sequence[str],
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        head: str = "classify",
        batch: int = 256,
        threads: int = 2,
        dtype: torch.dtype = torch.float32,
    ):
        numbers = {name: number for number, name in enumerate(classes)}
        self.test, self.head = test, head
        self._number = torch.tensor([numbers.get(name, -1) for name in test.classes])  # of each class of test
        self._mean, self._std, self._batch, self._threads, self._dtype = mean, std, batch, threads, dtype

    def run(self, task: Modules) -> dict[str, float]:
        """Returns {"classify/top1": share}."""
        modules = task.modules()
        both = nn.Sequential(modules["backbone"], modules[self.head]).eval()
        scores, labels = extract(
            both,  # type: ignore[arg-type]
            self.test,
            mean=self._mean,
            std=self._std,
            batch=self._batch,
            threads=self._threads,
            dtype=self._dtype,
        )
        return {f"{self.head}/top1": float((scores.argmax(1) == self._number[labels]).float().mean())}
