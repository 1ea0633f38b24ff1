"""torch.compile, with dynamo's own eager backend: how many graphs there are, and that none is cut or given up, on one rank and two."""

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from seer.models.heads.swav import SwAVHead
from seer.models.multicrop import MultiCropModel
from seer.models.regnet import RegNet
from seer.parallel.batchnorm import GroupBatchNorm1d, GroupBatchNorm2d, group_batchnorm
from seer.parallel.world import World
from seer.parallel.wrap import parallelize
from tests.ranks import run_ranks

CPU = torch.device("cpu")
BLOCKS, SIZES = 3, (32, 24)
HOW = {  # mode, recompute -> graphs: the network for each size; each block, too; and again in the backward pass
    ("ddp", "none"): len(SIZES),
    ("ddp", "block"): 2 * BLOCKS * len(SIZES),
    ("fsdp", "none"): BLOCKS * len(SIZES),
}


def trained(world: World, mode: str, remat: str, compiled: bool) -> dict:
    """Losses and gradient norms of three steps, and what dynamo counted."""
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    inner = MultiCropModel(RegNet((16, 24), (1, 2), (8, 8)), SwAVHead(24, (16,), 8, 12))
    model = parallelize(inner, world, mode=mode, remat=remat, compiled=compiled, channels_last=False).train()
    numbers = []
    for step in range(3):
        generator = torch.Generator().manual_seed(2 * step + world.rank)
        loss = model([torch.randn(4, 3, side, side, generator=generator) for side in SIZES])[1].square().mean()
        loss.backward()
        gradients = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in inner.parameters()]
        numbers.append(torch.stack([loss.detach(), torch.nn.utils.get_total_norm(gradients)]))
        inner.zero_grad(set_to_none=True)
    cuts = sum(counters["graph_break"].values())
    return {"numbers": torch.stack(numbers), "graphs": counters["stats"]["unique_graphs"], "cuts": cuts}


def read_by_dynamo_alone(patch: pytest.MonkeyPatch) -> None:
    real = nn.Module.compile
    patch.setattr(nn.Module, "compile", lambda module, **how: real(module, backend="eager", **how))
    patch.setattr(torch._dynamo.config, "fail_on_recompile_limit_hit", True)


def speak(world: World) -> dict:
    read_by_dynamo_alone(pytest.MonkeyPatch())
    return {(*how, compiled): trained(world, *how, compiled) for how in HOW for compiled in (False, True)}


@pytest.fixture(scope="module")
def said() -> list[dict]:
    return run_ranks(speak, 2)


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW, ids=str)
def test_two_ranks_with_shared_statistics_are_compiled_without_a_cut(said, how):
    for rank in said:
        found = rank[*how, True]
        assert (found["graphs"], found["cuts"]) == (HOW[how], 0)


@pytest.mark.slow
@pytest.mark.parametrize("how", HOW, ids=str)
def test_two_ranks_that_are_compiled_train_as_they_do_uncompiled(said, how):
    for rank in said:
        torch.testing.assert_close(rank[*how, True]["numbers"], rank[*how, False]["numbers"], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_one_process_is_one_graph_for_each_size_of_crops(monkeypatch):
    read_by_dynamo_alone(monkeypatch)
    found = trained(World(0, 1, 0, CPU), "auto", "none", True)
    assert (found["graphs"], found["cuts"]) == (2, 0)


def test_on_a_gpu_what_is_compiled_has_the_statistics_that_compile_can_read():
    def kinds(compiled: bool) -> list[type]:
        model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm2d(3))
        return [type(m) for m in group_batchnorm(model, object(), torch.device("cuda"), compiled=compiled)]

    assert kinds(True) == [GroupBatchNorm1d, GroupBatchNorm2d]
    assert kinds(False) == [nn.SyncBatchNorm, nn.SyncBatchNorm]
