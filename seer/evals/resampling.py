"""Gives intervals for figures of images that have no closed form: images are drawn anew with replacement, by a fixed seed.

A draw is told by how often each image comes, so that figures are computed of all draws at once. Surprising: a draw in which a
class does not occur has no figure of that class, and a figure without any draw has no interval.

Legend: Q images, Y classes, d draws.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from seer.evals.figures import Interval

AT_ONCE = 4_000_000  # counts in memory at once


def draws(images: int, count: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yields how often each image comes in each draw, float64 [d, Q], until there were `count` draws."""
    generator, step = torch.Generator().manual_seed(seed), max(1, AT_ONCE // max(1, images))
    for first in range(0, count, step):
        rows = torch.randint(images, (min(step, count - first), images), generator=generator)
        yield (
            torch.zeros(rows.shape, dtype=torch.float64)
            .scatter_add_(1, rows, torch.ones(1, dtype=torch.float64).expand(rows.shape))
            .numpy()
        )


def interval(images: int, count: int, seed: int, figure: Callable[[np.ndarray], np.ndarray]) -> Interval | None:
    """Returns where 95 % of a figure's draws lie. figure: float64 [d, Q] -> [d], nan where there is none."""
    return bounds(np.concatenate([figure(weights) for weights in draws(images, count, seed)])) if count else None


def bounds(each: np.ndarray) -> Interval | None:
    """Returns where 95 % of the numbers among a figure's draws [d] lie; None where there is none."""
    each = np.sort(each[np.isfinite(each)])
    if not len(each):
        return None
    last = len(each) - 1
    return Interval(float(each[int(0.025 * last)]), float(each[int(np.ceil(0.975 * last))]))


def average_precisions(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the average precision of one class in each draw, as `figures.average_precision` has it: float64 [Q], bool [Q],
    [d, Q] -> [d]."""
    order = np.argsort(-scores, kind="stable")
    scores, own = scores[order], weights[:, order]
    last = np.append(scores[1:] != scores[:-1], True)  # the end of each run of equal scores
    right, seen = (own * positive[order]).cumsum(1)[:, last], own.cumsum(1)[:, last]
    total = right[:, -1]
    gained = np.diff(right, axis=1, prepend=0.0)
    share = np.divide(right, seen, out=np.zeros_like(right), where=seen > 0)
    with np.errstate(invalid="ignore"):
        return (gained * share).sum(1) / np.where(total > 0, total, np.nan)


def nan_mean(values: np.ndarray) -> np.ndarray:
    """Returns the mean over the last axis of what is a number, nan where nothing is."""
    known = np.isfinite(values)
    count = known.sum(-1)
    total = np.where(known, values, 0.0).sum(-1)
    return np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)


def correlations(found: np.ndarray, true: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns Pearson's correlation of one number in each draw: float64 [Q], [Q], [d, Q] -> [d], nan where one side is constant."""
    found, true = found - found.mean(), true - true.mean()  # for the sake of rounding
    total = weights.sum(1)
    mean_x, mean_y = weights @ found / total, weights @ true / total
    both = weights @ (found * true) / total - mean_x * mean_y
    spread = (weights @ found**2 / total - mean_x**2) * (weights @ true**2 / total - mean_y**2)
    return np.divide(both, np.sqrt(np.clip(spread, 0, None)), out=np.full(len(total), np.nan), where=spread > 1e-24)
