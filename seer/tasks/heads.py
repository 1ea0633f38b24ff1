"""Learns from labels: a head on a backbone, trained together, from scratch or from weights. One head so far,
`classify`.

Legend: B images per rank, S side, Y classes.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from seer.core.errors import RequestError
from seer.core.protocols import Task
from seer.core.records import Batch, StepOutput
from seer.data.augment import augment_batch
from seer.data.transforms.one_view import OneView
from seer.models.classifier import Classifier
from seer.parallel.collectives import Group


class HeadsTask(Task):
    """Trains a classifying head on a backbone. backbone, transform, group: given by the program. The rest:

    classes    names of the classes, in the order of the scores; [] = those of the data
    several    an image may have several classes or none (binary cross-entropy), else it has exactly one (cross-entropy)
    smoothing  share of the target that is spread over all classes, from 0 up to 1
    """

    learns_classes = True

    def __init__(
        self,
        backbone: nn.Module,
        transform: OneView,
        group: Group | None = None,
        *,
        classes: Sequence[str] = (),
        several: bool = False,
        smoothing: float = 0.0,
    ):
        if not isinstance(transform, OneView):
            raise RequestError(
                f"augment: a head learns from one view an image, not from {type(transform).__name__}'s; augment=one_view"
            )
        least = 1 if several else 2
        if len(classes) < least or len(set(classes)) < len(classes):
            raise RequestError(
                f"task.classes: {len(classes)} classes, {len(set(classes))} of them different; at least {least}, each once"
            )
        if not 0 <= smoothing < 1:
            raise RequestError(f"task.smoothing={smoothing}: a share from 0 up to 1")
        self.backbone, self.transform, self.classes = backbone, transform, tuple(classes)
        self.model: nn.Module = Classifier(backbone, len(classes))
        self.head = self.model.classify
        self.several, self.smoothing = several, smoothing
        self.targets = ("labels",) if several else ("label",)
        self.chance_loss = math.log(2) if several else math.log(len(classes))

    def modules(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "classify": self.head}

    def loss(self, batch: Batch) -> StepOutput:
        size, target = self.transform.input_size, batch.fields[self.targets[0]]
        with torch.no_grad(), torch.autocast(target.device.type, enabled=False):
            view = augment_batch(batch.fields, size, self.transform.mean, self.transform.std)  # [B, 3, S, S]
        scores = self.model(view).float()  # [B, Y]
        if self.several:
            soft = target * (1 - self.smoothing) + self.smoothing / 2
            loss = F.binary_cross_entropy_with_logits(scores, soft)
            right = ((scores > 0) == (target > 0.5)).float().mean()
        else:
            loss = F.cross_entropy(scores, target, label_smoothing=self.smoothing)
            right = (scores.argmax(1) == target).float().mean()
        return StepOutput(loss, {"classify/train_right": right.detach()})
