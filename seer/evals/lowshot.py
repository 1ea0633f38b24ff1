"""Measures what features are worth where few images have labels: a softmax regression on shares of the train images.

For each share the images are drawn some times, class by class, so that every class keeps its part; a draw of a smaller share
lies within that of a larger one. Each draw chooses its own penalty on a part of itself (`linear.choose`): what is kept from it
is kept from all of its choices. Surprising: a class always keeps one image, so 1 % of small classes is more than 1 %, and the
result tells the count. The interval is Student's over the draws, for the same test images.

Legend: M train images, C features, R draws.
"""

import math
import statistics
from collections.abc import Sequence

import torch

from seer.core.errors import RequestError
from seer.core.protocols import Modules
from seer.evals.features import LabelledImages, backbone_of, extract
from seer.evals.figures import Interval
from seer.evals.judged import Judged, chance
from seer.evals.linear import ASIDE, choose, fit

STUDENT95 = (math.nan, 12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)  # by degrees of freedom


def draw(labels: torch.Tensor, part: float | int, seed: int) -> torch.Tensor:
    """Returns the sorted rows of a draw, int64. labels: [M]. part: a share below 1 of each class, or so many images of each;
    at least one of each class, and no more than there are."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for label in labels.unique():  # sorted: the draws of a class do not depend on the others' size
        own = (labels == label).nonzero().flatten()
        count = max(1, round(part * len(own))) if part < 1 else int(part)
        rows.append(own[torch.randperm(len(own), generator=generator)[:count]])
    return torch.cat(rows).sort().values


def half_width(values: Sequence[float]) -> float:
    """Returns half of the 95 % interval of a mean, by Student's distribution; nan for one value."""
    if len(values) < 2:
        return math.nan
    freedom = len(values) - 1
    t = STUDENT95[freedom] if freedom < len(STUDENT95) else 1.96 + 2.5 / freedom  # within 0.3 % from 10 on
    return t * statistics.stdev(values) / math.sqrt(len(values))


class LowShot:
    """Evaluates features with few labels.

    parts       shares of each class (below 1), or numbers of images of each class (from 1)
    draws       how often each part is drawn
    seed        of the draws
    penalties   of the squared weights, of which each draw chooses one
    iterations  of L-BFGS at the most
    """

    def __init__(
        self,
        train: LabelledImages,
        test: LabelledImages,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        parts: Sequence[float] = (0.01, 0.05, 0.1, 0.2, 0.5),
        draws: int = 5,
        seed: int = 0,
        penalties: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1),
        iterations: int = 200,
        batch: int | None = None,
        threads: int = 2,
        dtype: torch.dtype = torch.float32,
    ):
        wrong = [part for part in parts if part <= 0 or (part > 1 and part != int(part))]
        if wrong or not parts or draws < 1 or not penalties or min(penalties) < 0:
            raise RequestError(
                f"eval.parts={list(parts)}, eval.draws={draws}, eval.penalties={list(penalties)}: shares between 0 and 1 or whole "
                "numbers of images a class, at least one draw, and penalties that are not negative"
            )
        self.train, self.test, self.parts, self.draws, self.seed = train, test, tuple(parts), draws, seed
        self.penalties, self.iterations = tuple(penalties), iterations
        self._options = {"mean": mean, "std": std, "batch": batch, "threads": threads, "dtype": dtype}

    def run(self, task: Modules) -> dict[str, float]:
        """Returns for each part: lowshot_top1/PART (the mean of the draws), its half_width (95 %), and images of a draw."""
        return self.judge(task).figures

    def judge(self, task: Modules) -> Judged:
        """Returns the like, with the interval of each mean, what each draw came to, and what chance comes to."""
        model = backbone_of(task)
        known, labels = extract(model, self.train, **self._options)  # type: ignore[arg-type]
        asked, asked_labels = extract(model, self.test, **self._options)  # type: ignore[arg-type]
        found: dict[str, float] = {}
        judged, each = Judged(found), dict[str, list[float]]()
        for part in self.parts:
            name, right = f"{part:.3g}".rstrip() if part >= 1 else f"{100 * part:g}%", []
            for i in range(self.draws):
                rows = draw(labels, part, self.seed + i)
                penalty = choose(known[rows], labels[rows], self.penalties, iterations=self.iterations)
                classifier = fit(known[rows], labels[rows], penalty=penalty, iterations=self.iterations)
                right.append(classifier.top1(asked, asked_labels))
            found[f"lowshot_top1/{name}"] = statistics.fmean(right)
            found[f"lowshot_half_width/{name}"] = half = half_width(right)
            found[f"lowshot_images/{name}"] = len(rows)
            each[name] = right
            if not math.isnan(half):
                middle = found[f"lowshot_top1/{name}"]
                judged.intervals[f"lowshot_top1/{name}"] = Interval(max(0.0, middle - half), min(1.0, middle + half))
        judged.told |= {"draws": each, "chance": chance(labels, asked_labels)}
        if len(self.penalties) > 1:
            judged.told["penalty_chosen_on"] = f"every {ASIDE}th image of each class of a draw, where it has so many"
        return judged
