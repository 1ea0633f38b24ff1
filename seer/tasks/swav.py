"""SwAV: predict the code of one view from another (Caron et al. 2020, arXiv 2006.09882), on one screen.

Legend: B images per rank, V views, A assign views, D embedding, K prototypes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from seer.core.errors import RequestError
from seer.core.records import Batch, StepOutput
from seer.data.augment import finish
from seer.data.multicrop import MultiCrop
from seer.losses.sinkhorn import residual, sinkhorn
from seer.losses.swav import code_entropy, swav_loss, used_prototypes
from seer.models.heads import SwAVHead
from seer.models.multicrop import MultiCropModel
from seer.parallel.collectives import Group


class SwAVTask:
    """backbone, crop, group: given by the program. The rest are the method's numbers (`facts/seer.md` section 2.1).

    hidden, embedding, prototypes, batch_norm, last_batch_norm: see `SwAVHead`. temperature of the prediction; epsilon and iterations of
    Sinkhorn; assign: the views whose codes are predicted, among the large ones.
    """

    def __init__(
        self,
        backbone: nn.Module,
        crop: MultiCrop,
        group: Group | None = None,
        *,
        hidden: Sequence[int] = (2048,),
        embedding: int = 128,
        prototypes: int = 3000,
        batch_norm: bool = True,
        last_batch_norm: bool = False,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        assign: Sequence[int] = (0, 1),
    ):
        if not assign or max(assign) >= crop.counts[0] or min(assign) < 0 or len(set(assign)) != len(assign):
            raise RequestError(f"task.assign={list(assign)}: distinct views among the {crop.counts[0]} largest, from 0")
        if temperature <= 0 or epsilon <= 0 or iterations < 1:
            raise RequestError(
                f"task.temperature={temperature}, task.epsilon={epsilon}, task.iterations={iterations}: all above 0"
            )
        self.backbone = backbone
        self.head = SwAVHead(backbone.feature_dim, hidden, embedding, prototypes, batch_norm, last_batch_norm)  # type: ignore[arg-type]
        self.model: nn.Module = MultiCropModel(backbone, self.head)
        self.crop, self.group = crop, group
        self.temperature, self.epsilon, self.iterations, self.assign = temperature, epsilon, iterations, tuple(assign)
        self.chance_loss = math.log(prototypes)  # what a model that predicts nothing scores

    def loss(self, batch: Batch) -> StepOutput:
        with torch.no_grad(), torch.autocast(batch.crops[0].device.type, enabled=False):
            views = [
                finish(x, c, self.crop.mean, self.crop.std) for x, c in zip(batch.crops, batch.colours, strict=True)
            ]
        _, scores = self.model(views)  # [V*B, K]
        scores = scores.unflatten(0, (self.crop.views, -1))  # [V, B, K]
        with torch.no_grad():
            codes = sinkhorn(
                scores[list(self.assign)], epsilon=self.epsilon, iterations=self.iterations, group=self.group
            )  # [A, B, K]
        loss = swav_loss(scores, codes, temperature=self.temperature, assign=self.assign)
        return StepOutput(
            loss,
            {
                "codes/entropy": code_entropy(codes),
                "codes/used_prototypes": used_prototypes(codes, self.group),
                "codes/residual": residual(codes, self.group),
            },
        )

    def before_step(self, step: int) -> None:
        """Nothing: prototypes are of unit length from the start."""

    def after_step(self, step: int) -> None:
        self.head.normalise_prototypes()

    def state_dict(self) -> dict[str, Any]:
        return {
            **{f"backbone.{k}": v for k, v in self.backbone.state_dict().items()},
            **{f"head.{k}": v for k, v in self.head.state_dict().items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, module in (("backbone.", self.backbone), ("head.", self.head)):
            module.load_state_dict(
                {k.removeprefix(name): v for k, v in state.items() if k.startswith(name)}, strict=True
            )
