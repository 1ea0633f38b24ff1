"""Computes the average precision of found boxes by COCO's rule, as pycocotools does.

Of each class, found boxes of all images are taken from the surest down. One is right if a true box of its image overlaps it by at
least a threshold (intersection over union) and no surer one has that box; of several it takes the one it overlaps most, of equals
the last. Precision is made to fall with recall and read at recalls 0, 0.01 … 1; `ap50` is the mean over classes at the threshold
0.5, `ap` that over 0.5, 0.55 … 0.95 as well. Surprising: of each class at most 100 boxes of an image count; where a box may be
ignored (a crowd), its overlap is measured by the found box alone, and whatever is found there is neither right nor wrong; a
class without a true box has no figure (nan).

Legend: n boxes found, m true boxes of an image, T thresholds, D found boxes of all images, Q images, d draws, R recalls.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100  # found boxes of a class that count in an image
TINY = float(np.spacing(1))
AT_ONCE = 4_000_000  # weights of found boxes in memory at once


class Answer(NamedTuple):
    """Holds what was found in an image, and what is there. edges float64 [n, 4] left, top, right, bottom; labels int64 [n];
    scores float64 [n]; true_edges [m, 4]; true_labels [m]; ignored bool [m]."""

    edges: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    true_edges: np.ndarray
    true_labels: np.ndarray
    ignored: np.ndarray


class Matched(NamedTuple):
    """Holds the found boxes of one class in all images, the surest first. right, wrong: bool [T, D]; image: int64 [D], of each;
    there: int64 [Q], true boxes of each image."""

    right: np.ndarray
    wrong: np.ndarray
    image: np.ndarray
    there: np.ndarray


def overlaps(found: np.ndarray, true: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """Returns intersection over union, [n, 4] and [m, 4] -> float64 [n, m]; over the found box alone where one is ignored."""
    low, high = np.maximum(found[:, None, :2], true[None, :, :2]), np.minimum(found[:, None, 2:], true[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(2)
    own, other = (found[:, 2:] - found[:, :2]).prod(1)[:, None], (true[:, 2:] - true[:, :2]).prod(1)[None]
    union = np.where(ignored[None], own, own + other - common)
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def assign(overlap: np.ndarray, ignored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns which of n found boxes, the surest first, are right, and which lie on what is ignored: bool [T, n] each.
    overlap [n, m], ignored bool [m]."""
    thresholds = np.minimum(THRESHOLDS, 1 - 1e-10)
    n, m = overlap.shape
    right, passed = np.zeros((len(thresholds), n), dtype=bool), np.zeros((len(thresholds), n), dtype=bool)
    free = np.ones((len(thresholds), m), dtype=bool)
    for i in np.flatnonzero((overlap >= thresholds[0]).any(1)) if m else ():
        near = overlap[i][None] >= thresholds[:, None]  # [T, m]
        for takes, among in ((right, free & near & ~ignored), (passed, near & ignored)):
            open_ = ~right[:, i] & among.any(1)
            # of equals the last, as in pycocotools
            best = m - 1 - np.where(among, overlap[i][None], -1.0)[:, ::-1].argmax(1)
            takes[open_, i] = True
            if takes is right:
                free[np.flatnonzero(open_), best[open_]] = False
    return right, passed


def matched(answers: Sequence[Answer], label: int) -> Matched:
    """Returns the found boxes of a class in all images, and which of them are right."""
    rights, wrongs, scores, images, there = [], [], [], [], []
    for image, one in enumerate(answers):
        own = np.flatnonzero(one.labels == label)
        own = own[np.argsort(-one.scores[own], kind="stable")][:MOST]
        true = (one.true_labels == label) | (one.ignored & (one.true_labels < 0))
        ignored = one.ignored[true]
        there.append(int((~ignored).sum()))
        right, passed = assign(overlaps(one.edges[own], one.true_edges[true], ignored), ignored)
        rights.append(right)
        wrongs.append(~right & ~passed)
        scores.append(one.scores[own])
        images.append(np.full(len(own), image))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    right, wrong = (np.concatenate(each, axis=1)[:, order] for each in (rights, wrongs))
    return Matched(right, wrong, np.concatenate(images)[order], np.array(there))


def precision(one: Matched, weights: np.ndarray) -> np.ndarray:
    """Returns the average precision at each threshold, of images that count so often: float64 [d, Q] -> [d, T], nan where
    no true box is left."""
    total = weights @ one.there  # [d]
    found = np.full((len(weights), len(one.right)), np.nan)
    step = max(1, AT_ONCE // max(1, len(one.image)))
    for first in range(0, len(weights), step):
        own = weights[first : first + step][:, one.image]  # [d, D]
        for t in range(len(one.right)):
            right, wrong = (own * one.right[t]).cumsum(1), (own * one.wrong[t]).cumsum(1)
            falling = np.maximum.accumulate((right / (right + wrong + TINY))[:, ::-1], axis=1)[:, ::-1]
            for i in range(len(own)):
                all_ = total[first + i]
                if all_:
                    at = np.searchsorted(right[i] / all_, RECALLS, side="left")
                    found[first + i, t] = falling[i, at[at < falling.shape[1]]].sum() / len(RECALLS)
    return found
