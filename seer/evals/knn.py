"""Measures by k nearest neighbours what the features are worth with nothing learnt on top.

Cosine similarity; each of the k nearest votes with weight exp(similarity / temperature) (Wu et al. 2018,
arXiv 1805.01978; SwAV and DINO use k = 20 or 200, temperature 0.07 or 0.1).
Legend: M train images, Q test images, C features.
"""

import torch
from torch.nn import functional as F

from seer.core.errors import RequestError
from seer.core.protocols import Modules
from seer.evals.features import LabelledImages, backbone_of, extract
from seer.evals.judged import Judged, chance, class_tables, names_of

AT_ONCE = 131_072  # train images whose similarities are in memory at once


def knn_top1(
    train: torch.Tensor,
    train_labels: torch.Tensor,
    test: torch.Tensor,
    test_labels: torch.Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Returns the share of test rows whose heaviest class is right. [M, C], [M], [Q, C], [Q]; k is cut down to M."""
    found = knn_answers(train, train_labels, test, k=k, temperature=temperature)
    return int((found == test_labels).sum()) / len(test)


def knn_answers(
    train: torch.Tensor, train_labels: torch.Tensor, test: torch.Tensor, *, k: int = 20, temperature: float = 0.07
) -> torch.Tensor:
    """Returns the heaviest class of each test row, int64 [Q]. Others as `knn_top1`."""
    if k < 1 or temperature <= 0:
        raise RequestError(f"k={k}, temperature={temperature}: both above 0")
    k = min(k, len(train))
    train, classes = F.normalize(train, dim=1), int(train_labels.max()) + 1
    found = []
    for rows in F.normalize(test, dim=1).split(512):
        similarity, index = nearest(rows, train, k)
        votes = torch.zeros(len(rows), classes).scatter_add_(
            1, train_labels[index], torch.exp((similarity - 1) / temperature)
        )
        found.append(votes.argmax(1))
    return torch.cat(found)


def nearest(rows: torch.Tensor, train: torch.Tensor, k: int, block: int = AT_ONCE) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the k highest products of [q, C] with [M, C], descending, and their rows in train: [q, k] each.

    block: rows of train that are multiplied at once, so that 512 rows take 270 MB whatever M is.
    """
    found = index = torch.empty(len(rows), 0)
    for first, part in zip(range(0, len(train), block), train.split(block), strict=True):
        value, at = (rows @ part.T).topk(min(k, len(part)), dim=1)
        if first == 0:
            found, index = value, at
            continue
        found, order = torch.cat([found, value], dim=1).topk(min(k, found.shape[1] + value.shape[1]), dim=1)
        index = torch.cat([index, at + first], dim=1).gather(1, order)
    return found, index


class KNN:
    """Evaluates features of train and test by `knn_top1`. dtype of the forward: fp32 or bf16.

    k            neighbours that vote
    temperature  of their votes: exp(cosine / temperature)
    """

    def __init__(
        self,
        train: LabelledImages,
        test: LabelledImages,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        k: int = 20,
        temperature: float = 0.07,
        batch: int | None = None,
        threads: int = 2,
        dtype: torch.dtype = torch.float32,
    ):
        self.train, self.test, self.k, self.temperature = train, test, k, temperature
        self._options = {"mean": mean, "std": std, "batch": batch, "threads": threads, "dtype": dtype}

    def run(self, task: Modules) -> dict[str, float]:
        return self._judged(task).figures

    def judge(self, task: Modules) -> Judged:
        """Returns knn_top1 with its interval, what chance comes to, and tables of classes."""
        return self._judged(task, tables=True)

    def _judged(self, task: Modules, tables: bool = False) -> Judged:
        model, judged = backbone_of(task), Judged()
        known, known_labels = extract(model, self.train, **self._options)  # type: ignore[arg-type]
        asked, labels = extract(model, self.test, **self._options)  # type: ignore[arg-type]
        found = knn_answers(known, known_labels, asked, k=self.k, temperature=self.temperature)
        judged.add_share("knn_top1", found == labels)
        if tables:
            judged.told["chance"] = chance(known_labels, labels)
            judged.tables = class_tables("knn", found, labels, names_of(self.test), known_labels)
        return judged


def baselines(
    train: LabelledImages,
    test: LabelledImages,
    *,
    k: int = 20,
    temperature: float = 0.07,
    side: int = 32,
    threads: int = 2,
) -> dict[str, float]:
    """Returns kNN on centered raw pixels (side x side) and on color histograms (8 x 8 x 8 bins, of three channels): features
    without a network."""

    def plain(x: torch.Tensor) -> torch.Tensor:
        """Returns both kinds side by side: [B, C, S, S] -> [B, C * side * side + 512]."""
        small = F.interpolate(x.float(), size=(side, side), mode="bilinear", antialias=True).flatten(1)
        last = x.shape[1] - 1
        bins = x[:, [0, min(1, last), min(2, last)]].long() // 32  # [B, 3, S, S], 0..7
        index = (bins[:, 0] * 64 + bins[:, 1] * 8 + bins[:, 2]).flatten(1)  # [B, S*S]
        counts = torch.zeros(len(index), 512).scatter_add_(1, index, torch.ones(index.shape))
        # the cosine of square roots is the Bhattacharyya coefficient
        return torch.cat([small - small.mean(1, keepdim=True), counts.sqrt()], dim=1)

    known, known_labels = train.made(plain, threads=threads)
    asked, labels = test.made(plain, threads=threads)
    return {
        figure: knn_top1(known[:, columns], known_labels, asked[:, columns], labels, k=k, temperature=temperature)
        for figure, columns in (("knn_pixels", slice(None, -512)), ("knn_colours", slice(-512, None)))
    }
