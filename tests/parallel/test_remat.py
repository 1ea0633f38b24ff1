"""Recompute changes memory, and neither a gradient nor a running statistic by one bit."""

import copy

import pytest
import torch
from torch import nn

from seer.core.errors import RequestError
from seer.models import zoo
from seer.models.heads.swav import SwAVHead
from seer.models.multicrop import MultiCropModel
from seer.models.regnet import RegNet
from seer.models.resnet import ResNet
from seer.parallel.remat import remat
from tests.messages import naming

POLICIES = ["block", "stage", "selective", ["stage1", "stage3.block0-1", "stage3.block2"], ["stage2.block1"]]


def plain() -> MultiCropModel:
    torch.manual_seed(0)
    backbone = RegNet((16, 24, 40), (1, 2, 4), (8, 8, 8)).to(memory_format=torch.channels_last)
    return MultiCropModel(backbone, SwAVHead(40, (16,), 8, 12))


def crops() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(4, 3, side, side, generator=generator).to(memory_format=torch.channels_last) for side in (32, 24)
    ]


def step(model: nn.Module, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    model.train()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = model(crops())[1].square().sum()
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return gradients | {name: b.clone() for name, b in model.named_buffers()}


def saved_bytes(model: nn.Module, x: torch.Tensor) -> int:
    """What autograd keeps of one forward pass, weights apart; each storage once."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        output = model.train()(x)
    assert output.requires_grad
    return sum(t.untyped_storage().nbytes() for t in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_gradients_and_running_statistics_are_those_of_a_plain_step_to_the_last_bit(policy, dtype):
    one, other = plain(), remat(plain(), policy)
    wanted, found = step(one, dtype), step(other, dtype)
    assert all(torch.equal(found[name], wanted[name]) for name, _ in one.named_buffers())
    if policy == "selective" and dtype == torch.bfloat16:
        # weights are cast for each crop size, so the gradients of the sizes are added in float32, elsewhere in bfloat16
        assert all(
            float((found[n] - wanted[n]).norm()) <= 0.02 * float(wanted[n].norm()) + 1e-3
            for n, _ in one.named_parameters()
        )
    else:
        assert all(torch.equal(value, wanted[name]) for name, value in found.items())
    assert list(wanted) == list(step(plain()))
    assert wanted["backbone.stem.bn.num_batches_tracked"] == 2  # two resolutions
    assert all(b.momentum == 0.1 for b in other.modules() if isinstance(b, nn.BatchNorm2d))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_names_copies_and_evaluation_are_as_before(policy):
    one, other = plain(), remat(plain(), policy)
    assert list(one.state_dict()) == list(other.state_dict())
    for model in (one, other):
        step(model)
        model.eval()
    maps = [m.backbone.forward_stages(crops()[0]) for m in (one, other, copy.deepcopy(other))]
    assert all(torch.equal(maps[0][k], m[k]) for m in maps[1:] for k in maps[0])


def test_less_is_kept_the_more_is_made_again():
    x = crops()[0]
    kept = {str(p): saved_bytes(remat(plain(), p).backbone, x) for p in ("none", "block", "stage", ["stage1"])}
    # what selective keeps lies elsewhere, out of sight of these hooks
    assert kept["block"] < kept["['stage1']"] < kept["none"]
    assert kept["stage"] == saved_bytes(remat(plain(), ["stage1", "stage2.block0"]).backbone, x)
    inputs = {}
    plain_model = plain().backbone
    for name, module in plain_model.named_modules():
        if ".block" in name and name.count(".") == 1:
            module.register_forward_pre_hook(lambda m, i, n=name: inputs.update({n: i[0].numel() * 4}))
    plain_model.train()(x)
    stem = saved_bytes(plain_model.stem, x)
    later = [size for name, size in inputs.items() if name != "stage1.block0"]  # whose input the stem keeps already
    assert len(later) == 6 and kept["block"] == stem + sum(later)


def test_cumulative_statistics_are_not_counted_twice_either():
    one, other = plain(), remat(plain(), "block")
    for model in (one, other):
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.momentum = None
    wanted, found = step(one), step(other)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_a_resnet_is_recomputed_too():
    made = []
    for policy in ("none", "block", ["layer3.block0"]):
        torch.manual_seed(0)
        made.append(step(MultiCropModel(remat(ResNet([1, 1, 2, 1], 1, 8), policy), SwAVHead(2048, (16,), 8, 12))))
    assert all(torch.equal(m[name], made[0][name]) for m in made[1:] for name in made[0])


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ("blocks", ("parallel.remat=blocks", "none, block, stage, selective")),
        ("fairscale", ("fairscale", "twice", "DDP")),
        ("fairscale", ("fairscale", "parallel.remat=block")),
        (["stage9"], ("'stage9'", "stage1, stage2, stage3")),
        (["stage3.block4"], ("'stage3.block4'", "0 to 3")),
        (["stage3.block2-1"], ("'stage3.block2-1'", "0 to 3")),
        (["stage3.block0-2", "stage3.block2"], ("block 2", "stage3", "twice")),
    ],
)
def test_wrong_policies_are_refused_by_name(policy, words):
    with pytest.raises(RequestError, match=naming(*words)):
        remat(plain(), policy)
    with pytest.raises(RequestError, match=naming("Sequential", "parallel.remat=none")):
        remat(nn.Sequential(nn.Linear(2, 2)), "block")


@pytest.mark.parametrize(
    ("policy", "times"), [("none", 0), ("stage", 3), ("block", 4), ("selective", 4), (["stage2.block0"], 1)]
)
def test_free_memory_goes_back_once_a_stage_before_it_is_made_again(policy, times, monkeypatch):
    made: list[str] = []
    monkeypatch.setattr("seer.parallel.remat.trim_heap", lambda: made.append("trim"))
    network = remat(zoo.build("regnety_200mf").train(), policy)
    loss = network(torch.randn(2, 3, 64, 64)).square().mean()
    assert made == []
    loss.backward()
    assert len(made) == times
