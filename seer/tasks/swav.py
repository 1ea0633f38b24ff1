"""Learns by SwAV: predicts the code of one view from another (Caron et al. 2020, arXiv 2006.09882), on one screen.

Legend: B images per rank, V views, A assign views, D embedding, H heads, K prototypes of each, Q queued images per rank.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from seer.core.errors import RequestError
from seer.core.log import log
from seer.core.protocols import Task
from seer.core.records import Batch, StepOutput
from seer.data.augment import augment_batch
from seer.data.multicrop import MultiCrop
from seer.losses.queue import Queue
from seer.losses.sinkhorn import harden, residual, sinkhorn
from seer.losses.swav import code_entropy, embedding_spread, swav_loss, used_prototypes
from seer.models.heads.swav import SwAVHead
from seer.models.kmeans import spherical_kmeans
from seer.models.multicrop import MultiCropModel
from seer.parallel.collectives import Group, all_gather_stack, copy_full_tensor_
from seer.tasks.swav_alarms import alarms


class SwAVTask(Task):
    """Learns by SwAV. backbone, transform, group: given by the program. The rest are the method's numbers
    (`facts/seer.md` section 2.1).

    hidden           widths of the head's inner layers, [] for none; see `SwAVHead`
    embedding        dimensions of an embedding
    prototypes       clusters that codes tell of
    heads            sets of prototypes; the loss is the mean over them
    batch_norm       between the inner layers
    last_batch_norm  before embeddings get unit length; keeps them apart in small batches
    temperature      of the prediction
    epsilon          of Sinkhorn: smaller codes are sharper
    iterations       of Sinkhorn
    assign           the views whose codes are predicted, among the large ones
    hard_until       before this step codes are one-hot; a duration
    queue            images whose embeddings stand beside the batch in Sinkhorn, 0 = none; used once it is full
    queue_from       the queue fills from this step on; a duration
    kmeans           prototypes start from the features of so many images, by k-means; 0 = at random
    """

    durations = ("hard_until", "queue_from")  # of the arguments: given as steps
    groups = ({"pattern": r"^head\.prototypes", "frozen_steps": "1ep"},)

    def __init__(
        self,
        backbone: nn.Module,
        transform: MultiCrop,
        group: Group | None = None,
        *,
        hidden: Sequence[int] = (2048,),
        embedding: int = 128,
        prototypes: int = 3000,
        heads: int = 1,
        batch_norm: bool = True,
        last_batch_norm: bool = False,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        assign: Sequence[int] = (0, 1),
        hard_until: int = 0,
        queue: int = 0,
        queue_from: int = 0,
        kmeans: int = 0,
    ):
        if transform.views < 2:
            raise RequestError("augment.counts: SwAV predicts one view from another, so it needs two views or more")
        if not assign or max(assign) >= transform.counts[0] or min(assign) < 0 or len(set(assign)) != len(assign):
            raise RequestError(
                f"task.assign={list(assign)}: distinct views among the {transform.counts[0]} largest, from 0"
            )
        if temperature <= 0 or epsilon <= 0 or iterations < 1:
            raise RequestError(
                f"task.temperature={temperature}, task.epsilon={epsilon}, task.iterations={iterations}: all above 0"
            )
        if epsilon < 0.015:
            raise RequestError(
                f"task.epsilon={epsilon}: at least 0.015 (SwAV 0.05, SEER-10B 0.03), down to which codes are exact to 1e-5; "
                "codes sharper still are task.hard_until's"
            )
        if kmeans and kmeans < prototypes:
            raise RequestError(
                f"task.kmeans={kmeans} images for {prototypes} prototypes: at least one each, better ten; or 0"
            )
        if queue < 0:
            raise RequestError(f"task.queue={queue}: a number of images, 0 for no queue")
        self.backbone = backbone
        features: int = backbone.feature_dim  # type: ignore[assignment]
        self.head = SwAVHead(features, hidden, embedding, prototypes, batch_norm, last_batch_norm, heads)
        self.model: nn.Module = MultiCropModel(backbone, self.head)
        self.transform, self.group, self.prototypes, self.heads = transform, group, prototypes, heads
        self.temperature, self.epsilon, self.iterations, self.assign = temperature, epsilon, iterations, tuple(assign)
        self.queue = Queue(queue, group) if queue else None
        self.hard_until, self.queue_from, self.step, self.kmeans = hard_until, queue_from, 0, kmeans
        self._whole: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []  # codes and metrics for parts to come
        self.chance_loss = math.log(prototypes)  # what a model that predicts nothing scores
        self.alarms = alarms(self.chance_loss, prototypes)

    def modules(self) -> dict[str, nn.Module]:
        return {"backbone": self.backbone, "head": self.head}

    def describe(self, batch_size: int) -> list[str]:
        """Warns of more prototypes than images that share them. batch_size: images of a step, over all ranks."""
        queue = 0 if self.queue is None else self.queue.length
        if self.prototypes <= batch_size + queue:
            return []
        return [
            f"{self.prototypes} prototypes share {batch_size + queue} images a step (batch {batch_size} + queue {queue}), so some "
            "get none; use fewer task.prototypes, a larger batch, or task.queue"
        ]

    def loss(self, batch: Batch) -> StepOutput:
        every_view, scores = self._seen(batch)  # [V*B, D], [V*B, H*K]
        embeddings = every_view.detach().unflatten(0, (self.transform.views, -1))[list(self.assign)]  # [A, B, D]
        by_head = scores.unflatten(0, (self.transform.views, -1)).split(self.prototypes, dim=2)  # H of [V, B, K]
        if self._whole:
            codes, metrics = self._whole.pop(0)
            return StepOutput(self._by_codes(by_head, codes), metrics, {"embeddings": every_view.detach()})
        codes, deviation = self._codes(torch.stack([s.detach()[list(self.assign)] for s in by_head]))  # [H, A, B, K]
        largest = scores.detach().amax()
        loss = self._by_codes(by_head, codes)
        queued = {} if self.queue is None else {f"queue.{k}": v for k, v in self.queue.state_dict().items()}
        if self.queue is not None and self.step >= self.queue_from:
            self.queue.push(embeddings)
        metrics = self._figures(codes, deviation, embeddings, largest)
        return StepOutput(loss, metrics, {"embeddings": every_view.detach(), **queued})

    @torch.no_grad()
    def before_parts(self, parts: Sequence[Batch]) -> None:
        """Makes the codes of all parts together, as for the whole batch: one forward pass of each part before the one that it
        learns from. Running statistics are put back, so that each part counts once; the queue gets the batch."""
        before = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        seen = []
        for part in parts:
            every_view, scores = self._seen(part)
            of_assigned = [x.unflatten(0, (self.transform.views, -1))[list(self.assign)] for x in (every_view, scores)]
            seen.append((*of_assigned, scores.amax()))
        for name, buffer in self.model.named_buffers():
            buffer.copy_(before[name])
        embeddings, scores = (torch.cat([one[i] for one in seen], dim=1) for i in (0, 1))  # [A, B, D], [A, B, H*K]
        codes, deviation = self._codes(torch.stack(scores.split(self.prototypes, dim=2)))  # [H, A, B, K]
        metrics = self._figures(codes, deviation, embeddings, torch.stack([one[2] for one in seen]).amax())
        if self.queue is not None and self.step >= self.queue_from:
            self.queue.push(embeddings)
        self._whole = [(share, metrics) for share in codes.chunk(len(parts), dim=2)]

    def _seen(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns embeddings [V*B, D] and scores [V*B, H*K]."""
        device = batch.fields[f"views/{self.transform.sizes[0]}"].device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            views = [
                augment_batch(batch.fields, size, self.transform.mean, self.transform.std)
                for size in self.transform.sizes
            ]
        return self.model(views)

    def _by_codes(self, by_head: Sequence[torch.Tensor], codes: torch.Tensor) -> torch.Tensor:
        """Returns the loss [] of scores, H of [V, B, K], for codes [H, A, B, K]. The scores of an only head are lost."""
        losses = [
            swav_loss(s, q, temperature=self.temperature, assign=self.assign, overwrite=True)
            for s, q in zip(by_head, codes, strict=True)
        ]
        return torch.stack(losses).mean()

    def _figures(
        self, codes: torch.Tensor, deviation: torch.Tensor, embeddings: torch.Tensor, largest: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        return {
            "codes/entropy": code_entropy(codes),
            "codes/used_prototypes": torch.stack([used_prototypes(q, self.group) for q in codes]).float().mean(),
            "codes/residual": deviation,
            "embeddings/spread": embedding_spread(embeddings, self.group),
            "scores/largest": largest,
        }

    def warm_start(self, batches: Iterator[Batch], seed: int) -> None:
        """Starts prototypes from the embeddings of the first images, where `kmeans` asks for it."""
        if self.kmeans:
            log.info(f"{self.prototypes} prototypes start from the embeddings of {self.kmeans} images")
            self.seed_prototypes(batches, seed)

    @torch.no_grad()
    def seed_prototypes(self, batches: Iterator[Batch], seed: int) -> None:
        """Starts prototypes by k-means on the embeddings of the first large view of `kmeans` images; every head
        by a seed of its own.

        In training mode and the caller's precision, as the first step will see them; running statistics are put back. The same
        on all ranks.
        """
        before = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
        rows: list[torch.Tensor] = []
        device = self.head.prototypes.weight.device
        while sum(map(len, rows)) < self.kmeans:
            batch = next(batches).to(device)
            with torch.autocast(device.type, enabled=False):
                views = augment_batch(
                    batch.fields, self.transform.sizes[0], self.transform.mean, self.transform.std
                )  # [v*B, 3, S, S]
            embeddings = self.model([views])[0].unflatten(0, (self.transform.counts[0], -1))[0]  # [B, D]
            rows.append(all_gather_stack(embeddings.contiguous(), self.group).flatten(0, 1))  # [R*B, D]
        joined = torch.cat(rows)[: self.kmeans].float()
        with torch.autocast(device.type, enabled=False):
            centers = [spherical_kmeans(joined, self.prototypes, seed=seed + head) for head in range(self.heads)]
        copy_full_tensor_(self.head.prototypes.weight, torch.cat(centers).to(device))
        for name, buffer in self.model.named_buffers():
            buffer.copy_(before[name])

    @torch.no_grad()
    def explain(self, evidence: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns the evidence of a step, and its scores [V*B, H*K], made again from prototypes that have not
        moved since."""
        return {**evidence, "scores": self.head.scores(evidence["embeddings"])}

    @torch.no_grad()
    def _codes(self, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns codes [H, A, B, K] of scores of the same shape, and the residual [] of Sinkhorn, which also
        saw the queue."""
        images = scores.shape[2]
        if self.queue is not None and self.queue.full:
            kept = self.head.scores(self.queue.local_rows(scores.device))  # [A, Q, H*K], by today's prototypes
            scores = torch.cat([torch.stack(kept.split(self.prototypes, dim=2)), scores], dim=2)  # [H, A, Q+B, K]
        codes = sinkhorn(scores, epsilon=self.epsilon, iterations=self.iterations, group=self.group)
        deviation, codes = residual(codes, self.group), codes[:, :, -images:]
        return harden(codes) if self.step < self.hard_until else codes, deviation

    def before_step(self, step: int) -> None:
        """Notes the step, which says whether codes are hard and when the queue fills. Prototypes are of unit
        length from the start."""
        self.step = step

    def after_step(self, step: int) -> None:
        self.head.normalize_prototypes()

    def counted(self, model: nn.Module, ranks: int) -> "SwAVTask":
        """Returns a copy with a full queue and, where codes are ever one-hot, with those."""
        twin = copy.copy(self)
        twin.model, twin.backbone, twin.head, twin.group = model, model.backbone, model.head, None  # type: ignore[assignment]
        twin.step, twin._whole = 0, []
        if self.queue is not None:
            share = max(1, self.queue.length // ranks)
            twin.queue = Queue(share)
            width = self.head.prototypes.weight.shape[1]
            twin.queue.load_state_dict({"rows": torch.empty(len(self.assign), share, width)})
        return twin

    def parts(self) -> dict[str, Any]:
        return self.modules() if self.queue is None else {**self.modules(), "queue": self.queue}
