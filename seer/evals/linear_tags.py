"""Trains a linear classifier of several classes an image on frozen features, and judges it by mean average precision.

As `linear`, but a logistic regression for each class, all trained together by L-BFGS to convergence: their losses have no weight in
common, so each is what it would be alone. Where several penalties are given, the one of the highest mAP on every ASIDE-th train
image is taken, learned from the others; the test images have no say.

Legend: M train images, Q test images, C features, Y classes.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from seer.evals import resampling
from seer.evals.figures import mean_average_precision
from seer.evals.judged import Judged, table
from seer.evals.linear import ASIDE, Fitted, converged

Scored = dict[str, tuple[torch.Tensor, float]]  # of each stage ("" for the features) scores [Q, Y], and the penalty


def fit(train: torch.Tensor, targets: torch.Tensor, *, penalty: float, iterations: int = 200) -> Fitted:
    """Trains Y logistic regressions to convergence. [M, C], 0 and 1 [M, Y]. penalty: weight of the squared weights, per row.

    Raises RequestError for a negative penalty. The same arguments give the same weights, on the same machine.
    """

    def loss(scores: torch.Tensor) -> torch.Tensor:
        return binary_cross_entropy_with_logits(scores, targets, reduction="none").mean(0).sum()

    return converged(train, targets.shape[1], loss, penalty, iterations)


def choose(train: torch.Tensor, targets: torch.Tensor, penalties: Sequence[float], *, iterations: int = 200) -> float:
    """Returns the penalty of the highest mAP on every ASIDE-th image, learned from the others; of equals the largest. Where there
    are fewer images, or none of them has a class, nothing can be asked, and it is the middle one."""
    if len(penalties) == 1:
        return penalties[0]
    aside = torch.zeros(len(targets), dtype=torch.bool)
    aside[ASIDE - 1 :: ASIDE] = True
    if not targets[aside].any():
        return sorted(penalties)[len(penalties) // 2]
    rated = []
    for one in penalties:
        fitted = fit(train[~aside], targets[~aside], penalty=one, iterations=iterations)
        rated.append((mean_average_precision(fitted.scores(train[aside]), targets[aside] > 0.5)[0], one))
    return max(rated)[1]


def judged(found: Scored, true: torch.Tensor, known: torch.Tensor, names: Sequence[str], draws: int) -> Judged:
    """Returns mAP with its interval, what chance comes to, and a table of classes, of each stage. true: [Q, Y] of test, known:
    [M, Y] of train. draws: of the bootstrap."""
    result, positive = Judged(), true > 0.5
    share = positive.double().mean(0)
    for stage, (scores, penalty) in found.items():
        tail = f"/{stage}" if stage else ""
        mean, each = mean_average_precision(scores, positive)
        result.figures[f"linear_map{tail}"] = mean
        result.figures[f"linear_penalty{tail}"] = penalty
        columns = (known.sum(0).int().tolist(), positive.sum(0).tolist(), each)
        file = f"linear-{stage}-per-class.csv" if stage else "linear-per-class.csv"
        result.tables[file] = table(["class", "train", "test", "ap"], zip(names, *columns, strict=True))
        plain, there = scores.double().numpy(), positive.numpy()

        def draw(weights: np.ndarray, plain: np.ndarray = plain, there: np.ndarray = there) -> np.ndarray:
            own = [resampling.average_precisions(plain[:, y], there[:, y], weights) for y in range(plain.shape[1])]
            return resampling.nan_mean(np.stack(own, 1))

        if bounds := resampling.interval(len(plain), draws, 0, draw):
            result.intervals[f"linear_map{tail}"] = bounds
    some = share[share > 0]
    result.told["chance"] = {"map": float(some.mean()) if len(some) else None}  # of scores that say nothing
    return result
