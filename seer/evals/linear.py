"""Trains a linear classifier on frozen features.

Features are taken once from the center cut, standardized, and a softmax regression is trained on them to convergence by
L-BFGS, so the figure has no learning rate, no epochs and no seed. (The published protocol trains with random crops; the
two differ by a point or so, and this one takes minutes.) Where several penalties are given, one is chosen on a part of the
train images that is kept aside for it, and the test images have no say. Legend: M train images, C features, Y classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from seer.core.errors import RequestError
from seer.core.protocols import Modules
from seer.evals.features import LabelledImages, backbone_of, extract
from seer.evals.figures import paired
from seer.evals.judged import Judged, chance, class_tables, names_of
from seer.evals.tagged_images import TaggedImages

ASIDE = 5  # one image of so many of each class is kept aside to choose a penalty


@dataclass(frozen=True)
class Fitted:
    """Holds a classifier of features: standardization [C] and weights [Y, C], [Y]."""

    mean: torch.Tensor
    std: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """Returns [Q, Y] of [Q, C]."""
        return (features - self.mean) / self.std @ self.weight.T + self.bias

    def top1(self, features: torch.Tensor, labels: torch.Tensor) -> float:
        return int((self.scores(features).argmax(1) == labels).sum()) / len(labels)


def fit(train: torch.Tensor, labels: torch.Tensor, *, penalty: float, iterations: int = 200) -> Fitted:
    """Trains a softmax regression to convergence. [M, C], [M]. penalty: weight of the squared weights, per row.

    Raises RequestError for a negative penalty. The same arguments give the same weights, on the same machine.
    """
    classes = int(labels.max()) + 1  # of another one nothing can be learned, and its test rows are wrong
    return converged(train, classes, lambda scores: nn.functional.cross_entropy(scores, labels), penalty, iterations)


def converged(
    train: torch.Tensor,
    classes: int,
    loss: Callable[[torch.Tensor], torch.Tensor],
    penalty: float,
    iterations: int,
) -> Fitted:
    """Trains weights [Y, C] of Y classes on standardized rows [M, C] until nothing is gained. loss: of scores [M, Y]. Others as
    `fit`."""
    if penalty < 0 or iterations < 1:
        raise RequestError(f"penalty={penalty}, iterations={iterations}: not negative, and at least 1")
    std, mean = torch.std_mean(train, 0)
    std = torch.nan_to_num(std).clamp(min=1e-6)  # one row has no deviation
    train = (train - mean) / std
    weight, bias = torch.zeros(classes, train.shape[1], requires_grad=True), torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        total = loss(train @ weight.T + bias) + penalty * weight.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimizer.step(closure)
    return Fitted(mean, std, weight.detach(), bias.detach())


def choose(train: torch.Tensor, labels: torch.Tensor, penalties: Sequence[float], *, iterations: int = 200) -> float:
    """Returns the penalty that does best on every ASIDE-th image of each class, learned from the others; of equals the
    largest. Where no class has ASIDE images, nothing can be kept aside, and it is the middle one."""
    if len(penalties) == 1:
        return penalties[0]
    aside = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        aside[(labels == label).nonzero().flatten()[ASIDE - 1 :: ASIDE]] = True
    if not aside.any():
        return sorted(penalties)[len(penalties) // 2]
    rated = [
        (fit(train[~aside], labels[~aside], penalty=one, iterations=iterations).top1(train[aside], labels[aside]), one)
        for one in penalties
    ]
    return max(rated)[1]


def linear_top1(
    train: torch.Tensor,
    train_labels: torch.Tensor,
    test: torch.Tensor,
    test_labels: torch.Tensor,
    *,
    penalty: float = 1e-3,
    iterations: int = 200,
) -> float:
    """Returns the share of test rows classified right. [M, C], [M], [Q, C], [Q]. penalty: weight of the squared
    weights, per row."""
    return fit(train, train_labels, penalty=penalty, iterations=iterations).top1(test, test_labels)


class Linear:
    """Evaluates features of train and test by a softmax regression.

    penalty     weight of the squared weights, per image; of several one is chosen on a part of train
    iterations  of L-BFGS at the most
    stages      of the backbone, whose maps are averaged and judged by themselves; none = its features
    several     an image may have several classes, or none; judged by mean average precision
    draws       of the bootstrap, from which its interval comes
    """

    def __init__(
        self,
        train: LabelledImages | TaggedImages,
        test: LabelledImages | TaggedImages,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        penalty: float | Sequence[float] = 1e-3,
        iterations: int = 200,
        stages: Sequence[str] = (),
        several: bool = False,
        draws: int = 500,
        batch: int | None = None,
        threads: int = 2,
        dtype: torch.dtype = torch.float32,
    ):
        self.penalties = (penalty,) if isinstance(penalty, int | float) else tuple(penalty)
        if not self.penalties or min(self.penalties) < 0:
            raise RequestError(f"eval.penalty={penalty}: one or several numbers, not negative")
        if several != isinstance(train, TaggedImages):
            raise RequestError(
                f"several={several}: images were opened with {'any number of classes' if not several else 'one label'} each; "
                "`seer evaluate eval=linear eval.several=true` opens those of several classes, and probes of a run have one label"
            )
        if draws < 0:
            raise RequestError(f"eval.draws={draws}: at least 0")
        self.train, self.test, self.iterations, self.stages = train, test, iterations, tuple(stages)
        self.several, self.draws = several, draws
        self._options = {"mean": mean, "std": std, "batch": batch, "threads": threads, "dtype": dtype}

    def run(self, task: Modules) -> dict[str, float]:
        """Returns linear_top1, or one a stage, and the penalty of each where it was chosen."""
        if self.several:
            return self._judged_tags(task, 0).figures
        found, labels, _ = self._fitted(task)
        figures: dict[str, float] = {}
        for stage, (scores, penalty) in found.items():
            name = f"linear_top1/{stage}" if stage else "linear_top1"
            figures[name] = int((scores.argmax(1) == labels).sum()) / len(labels)
            if len(self.penalties) > 1:
                figures[name.replace("top1", "penalty")] = penalty
        return figures

    def judge(self, task: Modules) -> Judged:
        """Returns top-1 and top-5 with intervals, what chance comes to, tables of classes, and how far each stage lies behind
        the best one, on the same images."""
        if self.several:
            return self._judged_tags(task, self.draws)
        found, labels, train_labels = self._fitted(task)
        judged, rights = Judged(), dict[str, torch.Tensor]()
        for stage, (scores, penalty) in found.items():
            tail = f"/{stage}" if stage else ""
            rights[stage] = scores.argmax(1) == labels
            judged.add_share(f"linear_top1{tail}", rights[stage])
            if scores.shape[1] > 5:
                judged.add_share(f"linear_top5{tail}", (scores.topk(5, dim=1).indices == labels[:, None]).any(1))
            if len(self.penalties) > 1:
                judged.figures[f"linear_penalty{tail}"] = penalty
            file = f"linear-{stage}" if stage else "linear"
            judged.tables |= class_tables(file, scores.argmax(1), labels, names_of(self.test), train_labels)
        judged.told["chance"] = chance(train_labels, labels)
        if len(self.penalties) > 1:
            judged.told["penalty_chosen_on"] = f"every {ASIDE}th image of each class of train"
        if len(rights) > 1:
            best = max(rights, key=lambda stage: int(rights[stage].sum()))
            behind = {stage: paired(rights[best], right) for stage, right in rights.items() if stage != best}
            judged.told["behind"] = {
                "best": best,
                **{stage: {"share": share, "interval95": list(bounds)} for stage, (share, bounds) in behind.items()},
            }
        return judged

    def _judged_tags(self, task: Modules, draws: int) -> Judged:
        from seer.evals import linear_tags  # which is made of this file

        found, true, known = self._fitted(task)
        judged = linear_tags.judged(found, true, known, names_of(self.test), draws)
        if len(self.penalties) > 1:
            judged.told["penalty_chosen_on"] = f"every {ASIDE}th image of train"
        left_out = {
            side: getattr(images, "left_out", {}) for side, images in (("train", self.train), ("test", self.test))
        }
        if any(left_out.values()):
            judged.told["left_out"] = left_out
        return judged

    def _fitted(self, task: Modules) -> tuple[dict[str, tuple[torch.Tensor, float]], torch.Tensor, torch.Tensor]:
        """Returns scores [Q, Y] and the penalty of each stage ("" for the features), the labels [Q], and those of train [M]."""
        model = Pooled(backbone_of(task), self.stages) if self.stages else backbone_of(task)  # type: ignore[arg-type]
        known, known_labels = extract(model, self.train, **self._options)  # type: ignore[arg-type]
        asked, asked_labels = extract(model, self.test, **self._options)  # type: ignore[arg-type]
        widths = model.widths if isinstance(model, Pooled) else {"": known.shape[1]}
        ways = (choose, fit)
        if self.several:
            from seer.evals import linear_tags

            ways = (linear_tags.choose, linear_tags.fit)  # type: ignore[assignment]
        found = {}
        columns = zip(known.split(list(widths.values()), dim=1), asked.split(list(widths.values()), dim=1), strict=True)
        for stage, (x, q) in zip(widths, columns, strict=True):
            penalty = ways[0](x, known_labels, self.penalties, iterations=self.iterations)
            classifier = ways[1](x, known_labels, penalty=penalty, iterations=self.iterations)
            found[stage] = classifier.scores(q), penalty
        return found, asked_labels, known_labels


class Pooled(nn.Module):
    """Averages the maps of some stages of a backbone over their positions, side by side. widths: channels of each, known once
    it was called."""

    def __init__(self, backbone: nn.Module, stages: Sequence[str]):
        super().__init__()
        self.backbone, self.stages = backbone, tuple(stages)
        self.widths: dict[str, int] = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns [B, sum of widths] of [B, 3, S, S]. Raises RequestError for a stage that there is not."""
        maps = self.backbone.forward_stages(x)  # type: ignore[operator]
        if unknown := [stage for stage in self.stages if stage not in maps]:
            raise RequestError(f"eval.stages={unknown[0]}: the backbone has {', '.join(maps)}")
        self.widths = {stage: maps[stage].shape[1] for stage in self.stages}
        return torch.cat([maps[stage].float().mean((2, 3)) for stage in self.stages], dim=1)
