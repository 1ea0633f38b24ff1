"""Learns from labels: one or several heads on a backbone, trained together, from scratch or from weights.

A head is a row of `task.heads`: its kind, and what that takes. Each kind says here which targets of an image it learns, what
its network is and its loss; networks are in `models/heads`, losses in torch and `losses/boxes`. With `surgery=freeze` the
backbone and its statistics stay as they are, and the heads alone learn.

Legend: B images per rank, S side, Y classes or numbers of a head, M boxes at the most.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from seer.core import rng
from seer.core.errors import RequestError
from seer.core.protocols import Task
from seer.core.records import FEATURES, Batch, StepOutput
from seer.data.augment import augment_batch
from seer.data.transforms.one_view import OneView
from seer.data.transforms.whole_image import WholeImage
from seer.losses.boxes import detection_loss
from seer.models.head_files import HeadCard
from seer.models.heads.detect import Cells, DetectHead
from seer.models.heads.linear import LinearHead
from seer.models.heads.map import MapHead
from seer.models.heads.mask_rcnn import MaskRCNNHead, anchors_of
from seer.models.multi_head import Head, MultiHead, stages
from seer.parallel.collectives import Group
from seer.tasks.mixing import mixing

MOST_BOXES = 100  # of an image, where augment.boxes says nothing
IGNORE = 255  # of a mask: pixels that teach nothing
BOXED = ("detect", "mask_rcnn")  # kinds of heads that learn boxes


@dataclass(frozen=True)
class Spec:
    """Says what a head is. kind: classify (one class an image), tags (any number of classes), regress (numbers), map (a class
    a pixel), detect (boxes), mask_rcnn (boxes, and a mask each).

    classes: their names in the order of the scores; null = those of the data, for classify and tags. outputs: how many
    numbers, for regress. stages: of the backbone, from fine to coarse; null = its features, or of map the third from the end
    and of detect the last three, of mask_rcnn the last four. width: channels inside these. weight: of its loss beside the
    others'. smoothing: share of the target that is spread over all classes. anchors: of mask_rcnn, sides in pixels, one for each
    stage and one more; null = 8 cells of each. batch_norm: of mask_rcnn, whether its pyramid and heads have any. regions: of
    mask_rcnn, of an image, from which it learns.
    """

    kind: str
    classes: Sequence[str] | None = None
    outputs: int = 1
    stages: Sequence[str] | None = None
    width: int = 64
    weight: float = 1.0
    smoothing: float = 0.0
    anchors: Sequence[float] | None = None
    batch_norm: bool = False
    regions: int = 512

    @property
    def count(self) -> int:
        """Returns Y."""
        return self.outputs if self.kind == "regress" else len(self.classes or ())


Loss = Callable[[Any, Mapping[str, Tensor], Spec], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class Kind:
    """Says what a kind of head learns from, and how. targets: fields of a batch; the first is the one that data must have."""

    targets: tuple[str, ...]
    loss: Loss


class HeadsTask(Task):
    """Trains heads on a backbone. backbone, transform, group: given by the program. The rest:

    heads      by name, what each is (`Spec`); null = one that is called classify, of the other arguments
    classes    of that one: names of the classes, in the order of the scores; [] = those of the data
    several    an image may have several classes or none (binary cross-entropy), else it has exactly one (cross-entropy)
    smoothing  share of the target that is spread over all classes, from 0 up to 1
    heads_first  the backbone rests for so long, its statistics too, and heads learn alone; a duration
    mixup      images are blended two and two, by shares of the beta distribution of this number; 0 = not
    cutmix     a box of each image is replaced by that of another, its area by the same rule; 0 = not, with mixup either by chance
    """

    durations = ("heads_first",)
    learns_classes = True
    judged = True  # by `evals.heads`, on held-out images

    def __init__(
        self,
        backbone: nn.Module,
        transform: OneView,
        group: Group | None = None,
        *,
        heads: Mapping[str, Mapping[str, Any]] | None = None,
        classes: Sequence[str] = (),
        several: bool = False,
        smoothing: float = 0.0,
        heads_first: int = 0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
    ):
        if not isinstance(transform, OneView):
            raise RequestError(
                f"augment: a head learns from one view an image, not from {type(transform).__name__}'s; augment=one_view"
            )
        if heads_first < 0:
            raise RequestError(f"task.heads_first={heads_first}: at least 0")
        self.specs = specs(heads, classes, several, smoothing)
        self._mixing = mixing(mixup, cutmix, {name: spec.kind for name, spec in self.specs.items()})
        self.mixes = self._mixing is not None
        self.thresholds: dict[
            str, tuple[float, ...]
        ] = {}  # of tags, chosen on images kept out of training; none: one half
        self.heads_first, self._alone, self._step = heads_first, group is None, 0
        self.backbone, self.transform = backbone, transform
        known = stages(backbone) if any(spec.kind != "classify" or spec.stages for spec in self.specs.values()) else {}
        made = {name: _head(name, spec, backbone, known) for name, spec in self.specs.items()}
        self._plain = MultiHead(backbone, made)
        self.model: nn.Module = self._plain
        self._heads = made
        self.targets = tuple(dict.fromkeys(KINDS[spec.kind].targets[0] for spec in self.specs.values()))
        self.batch_fields = {name for spec in self.specs.values() for name in KINDS[spec.kind].targets}
        for spec in self.specs.values():  # what the transform must lay out, where the config does not say it
            transform.mask |= spec.kind == "map"
            transform.boxes = transform.boxes or (MOST_BOXES if spec.kind in BOXED else 0)
            transform.values = transform.values or (spec.outputs if spec.kind == "regress" else 0)
        transform.mask_classes = self.mask_classes
        # those that learn in their forward pass
        self._inside = [head for head in made.values() if isinstance(head, MaskRCNNHead)]
        if self._inside:
            if not isinstance(transform, WholeImage):
                raise RequestError("heads=mask_rcnn finds things on whole images; augment=whole_image shows them")
            transform.instances = transform.boxes
        self.classes = next((tuple(s.classes or ()) for s in self.specs.values() if s.kind in ("classify", "tags")), ())
        self.chance_loss = _chance(self.specs)

    @property
    def head(self) -> nn.Module:
        """Returns the first head."""
        return next(iter(self._heads.values()))

    @classmethod
    def label_field(cls, arguments: Mapping[str, Any]) -> str | None:
        """Returns the field of a batch for which the program finds classes in the data: label, labels, or None."""
        rows = arguments.get("heads") or {"classify": {"kind": "tags" if arguments.get("several") else "classify"}}
        kinds = [row.get("kind") for row in rows.values() if isinstance(row, Mapping)]
        return "labels" if "tags" in kinds else "label" if "classify" in kinds else None

    @property
    def mask_classes(self) -> int | None:
        """Returns how many classes of a mask heads know, of several heads the fewest; None where none learns masks."""
        return min((spec.count for spec in self.specs.values() if spec.kind == "map"), default=None)

    @property
    def box_classes(self) -> tuple[str, ...]:
        """Returns the classes of heads that learn boxes, () where there is none."""
        return next((tuple(map(str, s.classes or ())) for s in self.specs.values() if s.kind in BOXED), ())

    def modules(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, **self._heads}

    @property
    def resting(self) -> dict[str, int]:
        return {"backbone": self.heads_first}

    def before_step(self, step: int) -> None:
        self._step = step
        for head in self._inside:
            head.begin(step)
        if not self.heads_first:
            return
        rests = step < self.heads_first
        if self.backbone.training == rests:  # the loop sets the mode of all after each evaluation
            self.backbone.train(not rests)
        # ranks that reduce gradients wait for those of every parameter, which are dropped then (`optim.groups`)
        self._plain.backbone_rests = rests and self._alone

    @property
    def reads_features(self) -> bool:
        return not self.mixes and all(isinstance(head, LinearHead) and not head.stages for head in self._heads.values())

    def features(self, batch: Batch) -> Tensor | None:
        return self._plain.features(self._view(batch)) if self.reads_features else None

    def head_cards(self) -> dict[str, HeadCard]:
        return {name: _card(self.specs[name], head, self.thresholds.get(name)) for name, head in self._heads.items()}

    def loss(self, batch: Batch) -> StepOutput:
        fields: Mapping[str, Tensor] = batch.fields
        if FEATURES in fields:
            answers = self._plain.answer(fields[FEATURES])
        else:
            x = self._view(batch)
            if self._mixing is not None:
                x, fields = self._mixing(x, fields, len(self.classes), rng.key(self.seed, "mixing", self._step))
            answers = self.model(x, self._learned(batch)) if self._inside else self.model(x)
        total: Tensor | None = None
        metrics: dict[str, Tensor] = {}
        for name, spec in self.specs.items():
            loss, found = KINDS[spec.kind].loss(answers[name], fields, spec)
            total = spec.weight * loss if total is None else total + spec.weight * loss
            metrics |= {f"{name}/{figure}": value.detach() for figure, value in found.items()}
            if len(self.specs) > 1:
                metrics[f"{name}/loss"] = loss.detach()
        assert total is not None
        return StepOutput(total, metrics)

    def _learned(self, batch: Batch) -> dict[str, Tensor]:
        """Returns what heads need in their forward pass."""
        return {name: batch.fields[name] for name in KINDS["mask_rcnn"].targets}

    def _view(self, batch: Batch) -> Tensor:
        """Returns the images of a batch as the network takes them: float [B, 3, S, S]."""
        size = self.transform.input_size
        with torch.no_grad(), torch.autocast(batch.fields[f"views/{size}"].device.type, enabled=False):
            return augment_batch(batch.fields, size, self.transform.mean, self.transform.std)


def specs(
    heads: Mapping[str, Mapping[str, Any]] | None, classes: Sequence[str], several: bool, smoothing: float
) -> dict[str, Spec]:
    """Returns what each head is. Raises RequestError for what cannot be learned."""
    if heads is None:
        rows: Mapping[str, Mapping[str, Any]] = {
            "classify": {"kind": "tags" if several else "classify", "smoothing": smoothing}
        }
    else:
        rows = heads
    known = {one.name for one in fields(Spec)}
    found: dict[str, Spec] = {}
    for name, row in rows.items():
        where = f"task.heads.{name}"
        if not isinstance(row, Mapping) or row.get("kind") not in KINDS:
            raise RequestError(
                f"{where}: its kind is one of {', '.join(KINDS)}; {dict(row) if row else row!r} is given"
            )
        if strange := set(row) - known:
            raise RequestError(f"{where}.{min(strange)}: a head takes {', '.join(sorted(known))}")
        spec = Spec(**row)
        if spec.classes is None and spec.kind in ("classify", "tags"):
            spec = replace(spec, classes=tuple(classes))
        found[name] = spec
        _check(where if heads is not None else "task", spec)
    if not found:
        raise RequestError("task.heads={}: at least one head")
    return found


def _check(where: str, spec: Spec) -> None:
    names = spec.classes or ()
    least = 2 if spec.kind in ("classify", "map") else 1
    if spec.kind != "regress" and (len(names) < least or len(set(names)) < len(names)):
        raise RequestError(
            f"{where}.classes: {len(names)} classes, {len(set(names))} of them different; at least {least}, each once"
        )
    if not 0 <= spec.smoothing < 1:
        raise RequestError(f"{where}.smoothing={spec.smoothing}: a share from 0 up to 1")
    sides = spec.anchors if spec.anchors is not None else (1,)
    if spec.kind != "mask_rcnn" and (spec.anchors is not None or spec.batch_norm):
        raise RequestError(f"{where}: anchors and batch_norm are of mask_rcnn, and its kind is {spec.kind}")
    if isinstance(sides, str) or not all(isinstance(side, int | float) and 0 < side < math.inf for side in sides):
        raise RequestError(f"{where}.anchors={spec.anchors}: sides in pixels, above 0")
    if min(spec.outputs, spec.width, spec.regions) < 1 or not 0 < spec.weight < math.inf:
        raise RequestError(
            f"{where}: outputs={spec.outputs}, width={spec.width} and regions={spec.regions} are at least 1, "
            f"weight={spec.weight} above 0"
        )


def _head(name: str, spec: Spec, backbone: nn.Module, known: Mapping[str, tuple[int, float]]) -> Head:
    """Makes the network of a head. known: channels and stride of the stages of the backbone, none where no head reads a stage."""
    names = list(known)
    default = {"map": names[-3:-2], "detect": names[-3:], "mask_rcnn": names[-4:]}.get(spec.kind, [])
    read = list(spec.stages if spec.stages is not None else default)
    if unknown := [stage for stage in read if stage not in known]:
        raise RequestError(f"task.heads.{name}.stages={unknown[0]}: the backbone has {', '.join(known)}")
    if spec.kind in BOXED and not read:
        raise RequestError(f"task.heads.{name}.stages=[]: at least one stage")
    width = {stage: known[stage][0] for stage in read}
    if spec.kind == "detect":
        return DetectHead(width, spec.count, spec.width)
    if spec.kind == "mask_rcnn":
        sides = spec.anchors or anchors_of([known[stage][1] for stage in read])
        if len(sides) != len(read) + 1:
            raise RequestError(
                f"task.heads.{name}.anchors={spec.anchors}: {len(read) + 1} sides for {len(read)} stages, one more for the "
                "level beyond them"
            )
        return MaskRCNNHead(
            width, spec.count, spec.width, anchors=sides, batch_norm=spec.batch_norm, regions=spec.regions
        )
    if len(read) > 1 or (spec.kind == "map" and not read):
        raise RequestError(f"task.heads.{name}.stages={read}: one stage")
    if spec.kind == "map":
        return MapHead(width[read[0]], spec.count, read[0], spec.width)
    features = width[read[0]] if read else int(backbone.feature_dim)  # type: ignore[arg-type]
    return LinearHead(features, spec.count, read[0] if read else None)


def _card(spec: Spec, head: Head, chosen: tuple[float, ...] | None = None) -> HeadCard:
    """Returns what a bundle says of a head. A class of tags is there from a probability of one half, the loss's own threshold,
    where none was chosen."""
    if isinstance(head, DetectHead):
        read: Iterable[nn.Module] = (head.lateral[stage] for stage in head.stages)
    elif isinstance(head, MaskRCNNHead):
        read = (block[0] for block in head.fpn.inner_blocks)
    else:
        read = [head if isinstance(head, LinearHead) else head.inner[0]]
    features = tuple(int(getattr(one, "in_features", 0) or one.in_channels) for one in read)  # type: ignore[arg-type]
    classes = None if spec.classes is None or spec.kind == "regress" else tuple(map(str, spec.classes))
    thresholds = (chosen or (0.5,) * spec.count) if spec.kind == "tags" else None
    width = spec.width if spec.kind in ("map", *BOXED) else None
    card = HeadCard(spec.kind, tuple(head.stages), features, spec.count, classes, thresholds, width)
    return replace(card, anchors=head.anchors, batch_norm=head.batch_norm) if isinstance(head, MaskRCNNHead) else card


def _chance(found: Mapping[str, Spec]) -> float | None:
    """Returns the loss of heads that predict nothing, where each has one that is known."""
    each = {"classify": lambda s: math.log(s.count), "tags": lambda s: math.log(2), "map": lambda s: math.log(s.count)}
    if any(spec.kind not in each for spec in found.values()):
        return None
    return sum(spec.weight * each[spec.kind](spec) for spec in found.values())


def _classify(scores: Tensor, batch: Mapping[str, Tensor], spec: Spec) -> tuple[Tensor, dict[str, Tensor]]:
    scores, target = scores.float(), batch["label"]  # [B, Y], and [B], or of mixed images [B, Y]
    loss = F.cross_entropy(scores, target, label_smoothing=spec.smoothing)
    most = target.argmax(1) if target.ndim == 2 else target
    return loss, {"train_right": (scores.argmax(1) == most).float().mean()}


def _tags(scores: Tensor, batch: Mapping[str, Tensor], spec: Spec) -> tuple[Tensor, dict[str, Tensor]]:
    scores, target = scores.float(), batch["labels"]  # [B, Y]
    soft = target * (1 - spec.smoothing) + spec.smoothing / 2
    right = ((scores > 0) == (target > 0.5)).float().mean()
    return F.binary_cross_entropy_with_logits(scores, soft), {"train_right": right}


def _regress(values: Tensor, batch: Mapping[str, Tensor], spec: Spec) -> tuple[Tensor, dict[str, Tensor]]:
    difference = values.float() - batch["values"]  # [B, Y]
    return difference.square().mean(), {"train_error": difference.abs().mean()}


def _map(scores: Tensor, batch: Mapping[str, Tensor], spec: Spec) -> tuple[Tensor, dict[str, Tensor]]:
    target = batch["mask"].long()  # [B, S, S]
    known = target != IGNORE
    count = known.sum().clamp(min=1)  # a batch of which nothing is known teaches nothing, and its loss is 0
    each = F.cross_entropy(
        scores.float(), torch.where(known, target, 0), label_smoothing=spec.smoothing, reduction="none"
    )
    right = ((scores.argmax(1) == target) & known).sum() / count
    return (each * known).sum() / count, {"train_right": right.float()}


def _detect(cells: Cells, batch: Mapping[str, Tensor], spec: Spec) -> tuple[Tensor, dict[str, Tensor]]:
    loss = detection_loss(*cells, batch["boxes"], batch["box_label"], batch["box_count"])
    return loss, {"box_overflow": batch["box_overflow"].sum().float()}


def _mask_rcnn(
    losses: Mapping[str, Tensor], batch: Mapping[str, Tensor], spec: Spec
) -> tuple[Tensor, dict[str, Tensor]]:
    found = {name.removeprefix("loss_"): loss for name, loss in losses.items()}
    return torch.stack(list(found.values())).sum(), {**found, "box_overflow": batch["box_overflow"].sum().float()}


KINDS: dict[str, Kind] = {
    "classify": Kind(("label",), _classify),
    "tags": Kind(("labels",), _tags),
    "regress": Kind(("values",), _regress),
    "map": Kind(("mask",), _map),
    "detect": Kind(("boxes", "box_label", "box_count", "box_overflow"), _detect),
    "mask_rcnn": Kind(("boxes", "box_label", "box_count", "box_overflow", "instances"), _mask_rcnn),
}
