"""Finds things with a box and a mask each: torchvision's Mask R-CNN on a feature pyramid over named stages.

Everything after the backbone is here: the pyramid (with one level more, every second cell of the coarsest), the network that
proposes regions, and the heads that name, move and mask them. Names of the tensors are torchvision's: `fpn.…`, `rpn.…`,
`roi_heads.…`. Surprising:

- In training it takes targets and returns losses, since what is learned depends on which regions were proposed. `forward` has both,
  so that wrappers of several ranks see one call.
- Regions to learn from are drawn by the step and the number of the draw in it, not by torch's global generator, so that a run that
  goes on draws what it would have drawn.
- Only convolutions and linear layers run in 16 bits; what they say becomes float32 at once. torchvision computes boxes in the
  precision of the maps, and bfloat16 at 800 pixels is 4 pixels coarse.

Legend: B images, S side, Y classes, M things of an image, n things found, L levels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

ASPECTS = (0.5, 1.0, 2.0)  # height / width of anchors
SIDE_IN_CELLS = 8.0  # side of the anchors of a level, in cells of it: 32 pixels at stride 4
EXTRA = "pool"  # the level beyond the coarsest stage, as torchvision calls it
DEPTH = 4  # convolutions of the mask head, and with batch norm of the box head

Targets = Mapping[str, Tensor]


class KeyedSampler:
    """Draws which regions of an image are learned from: as torchvision's, half of them things at the most or a given share, all by
    one number of the step and one of the draw."""

    def __init__(self, count: int, share: float):
        self.count, self.share = count, share
        self.step, self.draw = 0, 0

    def begin(self, step: int) -> None:
        """Says which step begins."""
        self.step, self.draw = step, 0

    def __call__(self, matched: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        things: list[Tensor] = []
        grounds: list[Tensor] = []
        for labels in matched:
            seed = (self.step << 20) + self.draw
            self.draw += 1
            generator = torch.Generator(labels.device).manual_seed(seed)
            thing, ground = torch.where(labels >= 1)[0], torch.where(labels == 0)[0]
            most = min(thing.numel(), int(self.count * self.share))
            rest = min(ground.numel(), self.count - most)
            for found, at, number in ((things, thing, most), (grounds, ground, rest)):
                mask = torch.zeros_like(labels, dtype=torch.uint8)
                order = torch.randperm(at.numel(), generator=generator, device=labels.device)
                mask[at[order[:number]]] = 1
                found.append(mask)
        return things, grounds


def _widened(module: nn.Module, given: Any, said: Any) -> Any:
    """Turns what a layer says into float32 (a forward hook)."""
    if isinstance(said, Tensor):
        return said.float()
    return type(said)(_widened(module, None, one) for one in said)


class _Maps(nn.Module):
    """Stands for the backbone while torchvision puts its parts together."""

    def __init__(self, width: int):
        super().__init__()
        self.out_channels = width


class MaskRCNNHead(nn.Module):
    """Maps stages to things. features: channels of each stage, by its name, from fine to coarse. outputs: Y. width: channels of the
    pyramid. anchors: sides in pixels, one for each stage and one more. batch_norm: in the pyramid and both heads (torchvision's
    second version), grouped over ranks as the backbone's; else there is none (the first version). regions: of an image, from which
    the heads learn; half as many for the network that proposes them."""

    def __init__(
        self,
        features: Mapping[str, int],
        outputs: int,
        width: int = 256,
        *,
        anchors: Sequence[float],
        batch_norm: bool = False,
        regions: int = 512,
    ):
        super().__init__()
        self.stages, self.anchors, self.batch_norm = tuple(features), tuple(anchors), batch_norm
        norm = nn.BatchNorm2d if batch_norm else None
        self.fpn = FeaturePyramidNetwork(list(features.values()), width, LastLevelMaxPool(), norm)
        proposed = -(-regions * 2000 // 512)  # as many for each region as torchvision has
        inside = 4 * width  # numbers of a region; with 256 channels all sizes are torchvision's
        whole = MaskRCNN(
            _Maps(width),
            rpn_pre_nms_top_n_train=proposed,
            rpn_post_nms_top_n_train=proposed,
            rpn_anchor_generator=AnchorGenerator(tuple((side,) for side in anchors), (ASPECTS,) * len(anchors)),
            box_roi_pool=MultiScaleRoIAlign(self.stages, output_size=7, sampling_ratio=2),
            box_head=FastRCNNConvFCHead((width, 7, 7), [width] * DEPTH, [inside], norm_layer=norm)
            if norm
            else TwoMLPHead(width * 7 * 7, inside),
            box_predictor=FastRCNNPredictor(inside, outputs + 1),  # the first class is the ground
            mask_roi_pool=MultiScaleRoIAlign(self.stages, output_size=14, sampling_ratio=2),
            mask_head=MaskRCNNHeads(width, [width] * DEPTH, 1, norm_layer=norm),
            mask_predictor=MaskRCNNPredictor(width, width, outputs + 1),
        )
        self.rpn, self.roi_heads = whole.rpn, whole.roi_heads
        self.samplers = [KeyedSampler(-(-regions // 2), 0.5), KeyedSampler(regions, 0.25)]
        self.rpn.fg_bg_sampler, self.roi_heads.fg_bg_sampler = self.samplers
        for layer in (self.fpn, self.rpn.head, self.roi_heads.box_predictor, self.roi_heads.mask_predictor):
            layer.register_forward_hook(_widened_maps if layer is self.fpn else _widened)

    def begin(self, step: int) -> None:
        """Says which step begins, by whose number regions are drawn."""
        for sampler in self.samplers:
            sampler.begin(step)

    def read(
        self, features: Tensor, maps: Mapping[str, Tensor], side: tuple[int, int], targets: Targets | None = None
    ) -> Any:
        """Returns what is found on images of `side` (height, width), or losses by targets."""
        return self(maps, side, targets)

    def forward(self, maps: Mapping[str, Tensor], side: tuple[int, int], targets: Targets | None = None) -> Any:
        """Returns of each image `boxes` [n, 4] in pixels, `labels` [n] from 0, `scores` [n], best first, and `masks` [n, 28, 28],
        the probability of each part of the box. In training, by targets of the batch, losses by name instead."""
        pyramid = self.fpn({stage: maps[stage] for stage in self.stages})
        count = len(next(iter(pyramid.values())))
        images = ImageList(torch.empty(count, 0, *side, device="meta"), [side] * count)
        wanted = None if targets is None else things_of(targets, side)
        regions, losses = self.rpn(images, pyramid, wanted)
        found, more = self.roi_heads(pyramid, regions, images.image_sizes, wanted)
        if self.training:
            return {**losses, **more}
        return [{**one, "labels": one["labels"] - 1, "masks": one["masks"][:, 0]} for one in found]


def _widened_maps(module: nn.Module, given: Any, said: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: found.float() for name, found in said.items()}


def things_of(targets: Targets, side: tuple[int, int]) -> list[dict[str, Tensor]]:
    """Returns what torchvision learns of each image, from fields of a batch: boxes [B, M, 4], box_label [B, M], box_count [B] and
    instances uint8 [B, M, S * S / 8], packed line after line."""
    found, (height, width) = [], side
    for i, count in enumerate(targets["box_count"].tolist()):  # waits for the device once a step
        packed = targets["instances"][i, :count].view(count, height, -(-width // 8))
        shifts = torch.arange(7, -1, -1, device=packed.device, dtype=torch.uint8)
        masks = ((packed[..., None] >> shifts) & 1).flatten(2)[..., :width]
        found.append(
            {"boxes": targets["boxes"][i, :count], "labels": targets["box_label"][i, :count] + 1, "masks": masks}
        )
    return found


def anchors_of(strides: Sequence[float]) -> tuple[float, ...]:
    """Returns the sides of the anchors of stages with these strides in pixels, and of the level beyond them."""
    return tuple(SIDE_IN_CELLS * stride for stride in (*strides, 2 * strides[-1]))
