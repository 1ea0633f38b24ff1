"""Mask R-CNN on named stages: equal to torchvision's own whole model, drawn by the step, and what it does in odd batches."""

import json

import pytest
import torch
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator

from seer.models.head_files import HeadCard, card_in, stored
from seer.models.heads.mask_rcnn import KeyedSampler, MaskRCNNHead, anchors_of
from seer.models.multi_head import MultiHead, stages
from seer.models.regnet import RegNet

FEATURES = {"stage1": 8, "stage2": 16}
ANCHORS = (16.0, 32.0, 64.0)


def backbone() -> RegNet:
    torch.manual_seed(0)
    return RegNet(widths=[8, 16], depths=[1, 1], group_widths=[8, 8])


def head(width: int = 16, **words) -> MaskRCNNHead:
    torch.manual_seed(1)
    return MaskRCNNHead(FEATURES, 3, width, anchors=ANCHORS, **words)


def targets(boxes: list[list[list[float]]], side: int = 64, most: int = 3) -> dict[str, torch.Tensor]:
    count = torch.tensor([len(each) for each in boxes])
    edges, labels = torch.zeros(len(boxes), most, 4), torch.zeros(len(boxes), most, dtype=torch.int64)
    masks = torch.zeros(len(boxes), most, side, side, dtype=torch.uint8)
    for i, each in enumerate(boxes):
        for j, box in enumerate(each):
            edges[i, j], labels[i, j] = torch.tensor(box), j
            left, top, right, bottom = map(int, box)
            masks[i, j, top:bottom, left:right] = 1
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)
    packed = (masks.view(len(boxes), most, side, side // 8, 8) * weights).sum(-1, dtype=torch.uint8).flatten(2)
    return {"boxes": edges, "box_label": labels, "box_count": count, "instances": packed}


SOME = [[[4.0, 6, 30, 40], [32, 8, 60, 60]], [[10.0, 10, 50, 30]]]


class Stages(nn.Module):
    """What torchvision calls a backbone with a pyramid."""

    def __init__(self, body: nn.Module, fpn: nn.Module, width: int):
        super().__init__()
        self.body, self.fpn, self.out_channels = body, fpn, width

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = self.body.forward_stages(x)
        return self.fpn({name: maps[name] for name in FEATURES})


@pytest.mark.slow
def test_what_is_found_is_what_torchvisions_whole_model_finds():
    body, ours = backbone(), head(256)
    theirs = MaskRCNN(
        Stages(body, ours.fpn, 256), num_classes=4, min_size=64, max_size=64, image_mean=[0.0] * 3, image_std=[1.0] * 3,
        rpn_anchor_generator=AnchorGenerator(tuple((side,) for side in ANCHORS), ((0.5, 1.0, 2.0),) * 3),
        box_roi_pool=ours.roi_heads.box_roi_pool, mask_roi_pool=ours.roi_heads.mask_roi_pool, box_score_thresh=0.0,
    )  # fmt: skip
    own = {name: tensor for name, tensor in ours.state_dict().items() if not name.startswith("fpn.")}
    missing, unexpected = theirs.load_state_dict(own, strict=False)
    assert not unexpected and all(
        name.startswith("backbone.") for name in missing
    )  # names and shapes are torchvision's
    ours.roi_heads.score_thresh = 0.0
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    model = MultiHead(body, {"m": ours}).eval()
    with torch.no_grad():
        a, b = model(x)["m"], theirs.eval()(list(x))
    for mine, other in zip(a, b, strict=True):
        assert len(mine["scores"]) > 20 and torch.allclose(mine["boxes"], other["boxes"], atol=1e-4)
        assert torch.equal(mine["labels"] + 1, other["labels"]) and torch.allclose(
            mine["scores"], other["scores"], atol=1e-6
        )


def losses(one: MaskRCNNHead, wanted, step: int) -> dict[str, torch.Tensor]:
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    model = MultiHead(backbone(), {"m": one}).train()
    one.begin(step)
    return model(x, wanted)["m"]


def test_regions_are_drawn_by_the_step_alone():
    one = head(regions=16)
    torch.manual_seed(7)
    first = losses(one, targets(SOME), 3)
    torch.manual_seed(8)
    again, other = losses(one, targets(SOME), 3), losses(one, targets(SOME), 4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    assert set(first) == {"loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg"}


def test_the_sampler_takes_things_up_to_their_share_and_fills_up_with_ground():
    sampler = KeyedSampler(8, 0.25)
    sampler.begin(0)
    labels = torch.tensor([1] * 5 + [0] * 20 + [-1] * 4)
    (things,), (grounds,) = sampler([labels])
    assert things.sum() == 2 and grounds.sum() == 6
    assert (labels[things.bool()] == 1).all() and (labels[grounds.bool()] == 0).all()


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("boxes", [SOME, [[], [[10.0, 10, 50, 30]]], [[], []]])
def test_every_batch_has_a_finite_loss_and_reaches_every_parameter(boxes, batch_norm):
    one = head(batch_norm=batch_norm)
    total = torch.stack(list(losses(one, targets(boxes), 0).values())).sum()
    total.backward()
    assert torch.isfinite(total)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in one.parameters())
    assert batch_norm == any(isinstance(module, nn.BatchNorm2d) for module in one.modules())


def test_boxes_are_made_in_float32_also_where_layers_run_in_bfloat16():
    body, one = backbone().eval(), head().eval()
    one.roi_heads.score_thresh = 0.0
    model = MultiHead(body, {"m": one}).eval()
    x = torch.randn(1, 3, 512, 512, generator=torch.Generator().manual_seed(2))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (found,) = model(x)["m"]
    assert found["boxes"].dtype == torch.float32
    inner = found["boxes"][(found["boxes"] > 256).any(1)]
    assert len(inner) and not torch.equal(inner, inner.bfloat16().float())  # whose steps are 2 pixels from 256 on


def test_strides_and_anchors_are_those_of_the_stages():
    assert stages(backbone()) == {"stem": (32, 2), "stage1": (8, 4), "stage2": (16, 8)}
    assert anchors_of([4, 8, 16, 32]) == (32, 64, 128, 256, 512)  # torchvision's


def test_a_head_file_makes_the_same_head():
    one = head(batch_norm=True)
    card = HeadCard("mask_rcnn", tuple(FEATURES), (8, 16), 3, ("a", "b", "c"), None, 16, ANCHORS, True)
    kept = stored(card, {name: tensor.contiguous() for name, tensor in one.state_dict().items()}, backbone="x")
    described = json.loads(kept.description)
    assert card_in(described, what="it") == card and described["anchors"] == list(ANCHORS)
    again = kept.build()
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), again.state_dict().values(), strict=True))
    plain = json.loads(stored(HeadCard("regress", (), (8,), 1), {}, backbone="x").description)
    assert "anchors" not in plain and "batch_norm" not in plain  # files of other heads stay as they were


@pytest.mark.parametrize(
    "change", [{"anchors": None}, {"anchors": [1, 2]}, {"anchors": [0, 1, 2]}, {"batch_norm": None}, {"stages": []}, {"width": None}]
)  # fmt: skip
def test_a_description_that_makes_no_head_is_refused(change):
    card = HeadCard("mask_rcnn", tuple(FEATURES), (8, 16), 3, ("a", "b", "c"), None, 16, ANCHORS, True)
    described = json.loads(stored(card, {}, backbone="x").description)
    with pytest.raises(ValueError, match=next(iter(change))):
        card_in({**described, **change}, what="it")
