"""DDP and FSDP against one process with the joined batch: the same gradients, weights, statistics, features; names and shapes too."""

import sys

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from seer.core.errors import RequestError
from seer.models.heads.swav import SwAVHead
from seer.models.multicrop import MultiCropModel
from seer.models.regnet import RegNet
from seer.optim.lars import LARS
from seer.parallel.collectives import gather_to_rank0
from seer.parallel.fairscale_backend import shard
from seer.parallel.world import World
from seer.parallel.wrap import parallelize
from tests.messages import naming
from tests.ranks import run_ranks

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
IMAGES, STEPS = 8, 3
HOW = [
    *(("ddp", "none", False), ("ddp", "block", True), ("fsdp", "none", False), ("fsdp", "none", True)),
    *(("fsdp", "block", False), ("fsdp", "stage", False), ("fsdp", "selective", False)),
    ("fsdp", ["stage1", "stage3.block0"], False),
]

NARROW = [("ddp", "none"), ("fsdp", "none"), ("fsdp", "block"), ("fsdp", ["stage1", "stage3.block0"])]


def plain() -> MultiCropModel:
    torch.manual_seed(0)
    return MultiCropModel(RegNet((16, 24, 40), (1, 1, 2), (8, 8, 8)), SwAVHead(40, (17,), 8, 13))


def crops(step: int, rank: int = 0, ranks: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    both = [torch.randn(IMAGES, 3, side, side, generator=generator) for side in (32, 24)]
    return [x.chunk(ranks)[rank] for x in both]


def trained(model: nn.Module, inner: MultiCropModel, world: World, dtype: torch.dtype = torch.float32) -> dict:
    """A few steps of LARS with clipping-sized norms; everything whole, on the first rank."""
    named = list(inner.named_parameters())
    optimizer = LARS([p for _, p in named], lr=0.5, weight_decay=1e-3)
    model.train()
    losses = []
    for step in range(STEPS):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model(crops(step, world.rank, world.size))[1].square().mean()
        loss.backward()
        gradients = gather_to_rank0({n: p.grad for n, p in named}, world.group)
        optimizer.step()
        inner.head.normalize_prototypes()
        optimizer.zero_grad()
        losses.append(loss.detach())
    momentum = gather_to_rank0({n: optimizer.state[p]["momentum_buffer"] for n, p in named}, world.group)
    inner.eval()
    with (
        torch.no_grad(),
        torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
    ):  # as evaluators do: the backbone alone
        features = inner.backbone(crops(99)[0])
        stages = inner.backbone.forward_stages(crops(99)[0])
        scores = inner.head.scores(torch.eye(8))
    state = inner.state_dict()
    return {
        "losses": torch.stack(losses),
        "gradients": gradients,
        "momentum": momentum,
        "weights": gather_to_rank0(state, world.group),
        "features": features,
        "scores": scores,
        **{f"stages/{n}": x for n, x in stages.items()},
        "sharded": sorted(n for n, t in state.items() if isinstance(t, DTensor)),
    }


def speak(world: World) -> dict:
    said = {}
    for mode, remat, channels_last in HOW:
        inner = plain()
        model = parallelize(inner, world, mode=mode, remat=remat, channels_last=channels_last)
        said[mode, str(remat), channels_last] = trained(model, inner, world)
    for mode, remat in NARROW:
        inner = plain()
        model = parallelize(inner, world, mode=mode, remat=remat, dtype=torch.bfloat16, channels_last=False)
        said["bf16", mode, str(remat)] = trained(model, inner, world, torch.bfloat16)
    return said


@pytest.fixture(scope="module", params=[2, 4])
def said(request) -> list[dict]:
    return run_ranks(speak, request.param)


@pytest.fixture(scope="module")
def one() -> dict:
    model = plain()
    return trained(model, model, World(0, 1, 0, CPU))


@pytest.mark.parametrize("how", HOW, ids=str)
def test_ranks_train_as_one_process_does_on_the_joined_batch(said, one, how):
    key = (how[0], str(how[1]), how[2])
    found = said[0][key]
    assert torch.stack([r[key]["losses"] for r in said]).mean(0) == pytest.approx(one["losses"], abs=1e-6)
    for part in ("gradients", "momentum", "weights"):
        assert list(found[part]) == list(one[part])
        for name, truth in one[part].items():
            assert found[part][name].shape == truth.shape
            # a bias before a batch norm has rounding alone for a gradient
            scale = max(float(truth.float().norm()), 1e-2)
            assert float((found[part][name].float() - truth.float()).norm()) <= 3e-5 * scale, (part, name)
    for rank in said:
        for name in ("features", "scores", "stages/stage1", "stages/stage3"):
            torch.testing.assert_close(rank[key][name], one[name], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("how", HOW, ids=str)
def test_fsdp_shards_every_parameter_and_no_buffer_and_ddp_nothing(said, how):
    parameters = sorted(name for name, _ in plain().named_parameters())
    for rank in said:
        assert rank[how[0], str(how[1]), how[2]]["sharded"] == (parameters if how[0] == "fsdp" else [])


def test_one_process_gets_the_model_itself_in_every_mode():
    for mode in ("auto", "ddp", "fsdp"):
        model = plain()
        assert parallelize(model, World(0, 1, 0, CPU), mode=mode) is model
    with pytest.raises(RequestError, match=naming("parallel.mode=fsdp1", "auto, ddp, fsdp, fairscale")):
        parallelize(plain(), World(0, 1, 0, CPU), mode="fsdp1")


@pytest.mark.parametrize("how", NARROW[1:], ids=str)
def test_in_bfloat16_fsdp_trains_as_ddp_does(said, how):
    """Weights are narrowed before they are gathered, not after: the same numbers. Batch norms and prototypes stay float32."""
    found, truth = said[0]["bf16", how[0], str(how[1])], said[0]["bf16", "ddp", "none"]
    torch.testing.assert_close(found["losses"], truth["losses"], rtol=1e-3, atol=0)
    for part in ("gradients", "weights"):
        for name, value in truth[part].items():
            scale = max(float(value.float().norm()), 1e-2)
            assert found[part][name].dtype == value.dtype
            assert float((found[part][name].float() - value.float()).norm()) <= 0.02 * scale, (part, name)


def test_fairscale_that_is_missing_is_told_with_what_replaces_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "fairscale.optim.oss", None)
    with pytest.raises(RequestError, match=naming("pip install fairscale==0.4.13", "parallel.mode=fsdp")):
        shard(plain(), [], LARS, World(0, 2, 0, CPU))


@pytest.mark.long
@pytest.mark.parametrize("remat", ["none", "block"])
def test_a_compiled_model_trains_as_the_plain_one_and_is_evaluated_plainly(one, remat):
    model = plain()
    compiled = parallelize(model, World(0, 1, 0, CPU), remat=remat, compiled=True, channels_last=False)
    torch._dynamo.utils.counters.clear()
    found = trained(compiled, model, World(0, 1, 0, CPU))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs >= 2  # one for each size of crops at least
    torch.testing.assert_close(found["losses"], one["losses"], rtol=0, atol=1e-6)
    for name, truth in one["weights"].items():
        assert float((found["weights"][name].float() - truth.float()).norm()) <= 1e-4 * max(
            float(truth.float().norm()), 1e-2
        )
    with pytest.raises(RequestError, match=naming("selective", "convolutions")):
        parallelize(plain(), World(0, 1, 0, CPU), remat="selective", compiled=True)
