"""Computes what is published about scores of images whose answers are known: shares, per class, calibration, precision.

All in float64 on the host, by closed forms, so that a figure is the same on every machine. Surprising: a class of which there
is no image has no figure of its own (nan) and is left out of means, and a tie in scores counts by the order of the classes.

Legend: Q images, Y classes, P pixels.
"""

import math
from typing import NamedTuple

import torch

Z95 = 1.959963984540054  # of a normal variable 95 % lie within so many standard deviations


class Interval(NamedTuple):
    """Holds the bounds of a share, both from 0 to 1."""

    low: float
    high: float


def wilson(right: int, count: int, z: float = Z95) -> Interval:
    """Returns Wilson's interval for a share: right of count independent trials (Wilson 1927). Raises ValueError."""
    if not 0 <= right <= count or count < 1:
        raise ValueError(f"{right} right of {count}: from 0 up to the count, and at least one trial")
    share, square = right / count, z * z / count
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return Interval(max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)))


def paired(first: torch.Tensor, second: torch.Tensor, z: float = Z95) -> tuple[float, Interval]:
    """Returns how much larger the share of the first is than that of the second, of the same images, and the interval of that
    difference (Bonett and Price 2012: one added to each kind of disagreement). bool [Q] each."""
    first, second = first.bool(), second.bool()
    count, more, less = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    gain, loss = (more + 1) / (count + 2), (less + 1) / (count + 2)
    half = z * math.sqrt((gain + loss - (gain - loss) ** 2) / (count + 2))
    return (more - less) / count, Interval(max(-1.0, gain - loss - half), min(1.0, gain - loss + half))


def top_k(scores: torch.Tensor, labels: torch.Tensor, k: int) -> float:
    """Returns the share of [Q, Y] scores in which the label, int [Q], is among the k highest; a label that is no class
    (below 0, or from Y on) is never."""
    k = min(k, scores.shape[1])
    return float((scores.topk(k, dim=1).indices == labels[:, None]).any(1).double().mean())


def confusion(found: torch.Tensor, labels: torch.Tensor, classes: int, ignore: int | None = None) -> torch.Tensor:
    """Returns int64 [Y, Y]: how often class i (row) was answered as class j (column). found, labels: int of one shape.

    ignore: a label that is not counted. Raises ValueError for any other number outside the classes.
    """
    found, labels = found.reshape(-1).long(), labels.reshape(-1).long()
    if ignore is not None:
        keep = labels != ignore
        found, labels = found[keep], labels[keep]
    if len(labels) and not (0 <= int(labels.min()) and int(labels.max()) < classes):
        raise ValueError(f"labels from {int(labels.min())} to {int(labels.max())}: from 0 to {classes - 1} are known")
    if len(found) and not (0 <= int(found.min()) and int(found.max()) < classes):
        raise ValueError(f"answers from {int(found.min())} to {int(found.max())}: from 0 to {classes - 1} are known")
    return torch.bincount(labels * classes + found, minlength=classes * classes).reshape(classes, classes)


def per_class(counts: torch.Tensor) -> torch.Tensor:
    """Returns float64 [Y]: the share of each class that was answered right, nan for one without an image. counts: confusion."""
    return counts.diagonal().double() / counts.sum(1).double()


def iou(counts: torch.Tensor) -> torch.Tensor:
    """Returns float64 [Y]: intersection over union of each class, nan for one that is neither asked for nor answered."""
    right = counts.diagonal().double()
    return right / (counts.sum(0) + counts.sum(1) - counts.diagonal()).double()


def segmentation(counts: torch.Tensor) -> dict[str, float]:
    """Returns pixel (share of pixels right), class (mean share a class) and miou, from a confusion over pixels."""
    total = int(counts.sum())
    return {
        "pixel": float(counts.diagonal().sum()) / total if total else math.nan,
        "class": float(per_class(counts).nanmean()),
        "miou": float(iou(counts).nanmean()),
    }


def calibration_error(probabilities: torch.Tensor, labels: torch.Tensor, bins: int = 15) -> float:
    """Returns the expected calibration error of [Q, Y]: |confidence - share right|, mean over bins of equal width weighted
    by their images (Guo et al. 2017, arXiv 1706.04599). A confidence on a border belongs to the bin below it."""
    sure, found = probabilities.double().max(1)
    right = (found == labels).double()
    bin_of = (sure * bins).ceil().long().clamp(1, bins) - 1  # [Q]
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, bin_of, sure - right)
    return float(gaps.abs().sum() / len(labels))


def average_precision(scores: torch.Tensor, positive: torch.Tensor) -> float:
    """Returns the area under precision over recall as a sum of steps, without interpolation. scores [Q], positive bool [Q].

    Images of equal score count together, as scikit-learn counts them. nan where nothing is positive.
    """
    order = scores.double().argsort(descending=True, stable=True)
    scores, hits = scores.double()[order], positive.bool()[order].double()
    if not hits.sum():
        return math.nan
    last = torch.cat([scores[1:] != scores[:-1], torch.tensor([True])])  # the end of each run of equal scores
    right, seen = hits.cumsum(0)[last], torch.arange(1, len(scores) + 1, dtype=torch.float64)[last]
    gained = torch.diff(right, prepend=torch.zeros(1, dtype=torch.float64)) / hits.sum()
    return float((gained * right / seen).sum())


def mean_average_precision(scores: torch.Tensor, positive: torch.Tensor) -> tuple[float, list[float]]:
    """Returns the mean over classes that have a positive, and the figure of each (nan without). [Q, Y] and bool [Q, Y]."""
    each = [average_precision(scores[:, y], positive[:, y]) for y in range(scores.shape[1])]
    some = [one for one in each if not math.isnan(one)]
    return (sum(some) / len(some) if some else math.nan), each


def bootstrap(values: torch.Tensor, draws: int = 2000, seed: int = 0) -> Interval:
    """Returns the 95 % interval of a mean over images by drawing them anew with replacement. values: float [Q]."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(values), (draws, len(values)), generator=generator)
    means = values.double()[rows].mean(1).sort().values
    return Interval(float(means[int(0.025 * draws)]), float(means[math.ceil(0.975 * draws) - 1]))
