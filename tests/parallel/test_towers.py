"""Two towers in one model: each is recomputed, counted, compiled and sharded block by block, under names of its own."""

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from seer.core.errors import RequestError
from seer.models.heads.swav import SwAVHead
from seer.models.multicrop import MultiCropModel
from seer.models.regnet import RegNet
from seer.parallel.blocks import around, blocks, stages_of, towers
from seer.parallel.collectives import gather_to_rank0
from seer.parallel.memory import recomputed_within, step_memory
from seer.parallel.remat import remat
from seer.parallel.world import World
from seer.parallel.wrap import parallelize
from tests.ranks import run_ranks

CPU = torch.device("cpu")
FIRST = ["stage1.block0", "stage2.block0", "stage2.block1"]
SECOND = ["text.stage1.block0", "text.stage1.block1", "text.stage2.block0"]
SHAPES = [(4, 3, 32, 32), (4, 3, 24, 24)]


class TwoTowers(nn.Module):
    """Towers that differ in shape, one of them inside a module of its own, and heads in a container."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = RegNet((16, 24), (1, 2), (8, 8))
        self.text = nn.Module()
        self.text.backbone = RegNet((8, 16), (2, 1), (8, 8))
        self.text.scale = nn.Linear(16, 16)
        self.heads = nn.ModuleDict({"both": nn.Linear(40, 13)})

    def forward(self, crops: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """[b, 3, S, S] of each size -> features [B, 40], scores [B, 13]."""
        text = self.text.scale(torch.cat([self.text.backbone(x.flip(1)) for x in crops]))
        features = torch.cat([torch.cat([self.backbone(x) for x in crops]), text], 1)
        return features, self.heads["both"](features)


def plain() -> TwoTowers:
    torch.manual_seed(0)
    return TwoTowers()


def crops(step: int, rank: int = 0, ranks: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(*shape, generator=generator).chunk(ranks)[rank] for shape in SHAPES]


def trained(model: nn.Module, inner: nn.Module, world: World) -> dict:
    """Two steps of SGD: losses, gradients of the last, weights and statistics."""
    optimizer = torch.optim.SGD(inner.parameters(), lr=0.1)
    losses = []
    for step in range(2):
        optimizer.zero_grad()
        loss = model.train()(crops(step, world.rank, world.size))[1].square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    gradients = gather_to_rank0({n: p.grad for n, p in inner.named_parameters()}, world.group)
    return {
        "losses": torch.stack(losses),
        "gradients": gradients,
        "state": gather_to_rank0(inner.state_dict(), world.group),
    }


def test_blocks_of_the_backbone_keep_their_names_and_those_of_another_tower_begin_with_its():
    model = plain()
    assert list(towers(model)) == ["", "text."] and list(blocks(model)) == FIRST + SECOND
    assert blocks(model)["text.stage2.block0"] is model.text.backbone.stage2.block0
    assert list(around(model)) == [model.text.scale, model.heads["both"]]
    alone = MultiCropModel(RegNet((16, 24), (1, 2), (8, 8)), SwAVHead(24, (16,), 8, 12))
    assert list(blocks(alone)) == list(blocks(alone.backbone)) == FIRST and list(around(alone)) == [alone.head]
    assert list(around(alone.backbone)) == []


def test_an_attribute_called_blocks_makes_no_tower_and_blocks_must_count_from_0():
    module = nn.Module()
    module.blocks = nn.Sequential(nn.Linear(2, 2))
    assert towers(module) == {} and stages_of(module) == {}

    class Skipping(nn.Module):
        def blocks(self):
            return {"stage1.block1": self}

    with pytest.raises(ValueError, match=r"stage1\.block1"):
        stages_of(Skipping())


def test_one_tower_in_two_places_is_counted_once():
    module = nn.Module()
    module.backbone = RegNet((8,), (1,), (8,))
    module.again = module.backbone
    assert list(blocks(module)) == ["stage1.block0"]


POLICIES = {
    "block": FIRST + SECOND,
    "stage": [FIRST[0], *SECOND[:1]],
    "text.stage1": SECOND[:2],
    "stage2.block0-1": FIRST[1:],
}


@pytest.mark.parametrize("policy", POLICIES)
def test_recompute_covers_both_and_changes_no_bit(policy):
    one, other = plain(), remat(plain(), policy if policy in ("block", "stage") else [policy])
    runs = dict.fromkeys(FIRST + SECOND, 0)
    for name, block in blocks(other).items():
        block.a.conv.register_forward_hook(lambda *_, n=name: runs.update({n: runs[n] + 1}))
    world = World(0, 1, 0, CPU)
    wanted, found = trained(one, one, world), trained(other, other, world)
    assert torch.equal(found["losses"], wanted["losses"])
    for part in ("gradients", "state"):
        assert all(torch.equal(found[part][name], value) for name, value in wanted[part].items())
    once = 2 * len(SHAPES)  # two steps
    assert runs == {name: once * (1 + (name in POLICIES[policy])) for name in runs}


def test_blocks_that_are_not_there_are_refused_with_those_that_are():
    for wrong in ("text.stage3", "text.stage2.block1", "image.stage1"):
        with pytest.raises(RequestError, match=wrong):
            remat(plain(), [wrong])


def test_a_tower_whose_blocks_stand_in_no_sequential_is_refused():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(2, 2)])

        def blocks(self):
            return {f"block{i}": layer for i, layer in enumerate(self.layers)}

    with pytest.raises(RequestError, match=r"no nn\.Sequential.*parallel\.remat=none"):
        remat(Loop(), "block")


@pytest.mark.slow
def test_memory_is_counted_of_both_and_a_budget_may_choose_blocks_of_both():
    model = plain()
    everything, by_block = step_memory(model, SHAPES), step_memory(model, SHAPES, policy="block")
    first = step_memory(model, SHAPES, policy=["stage1", "stage2"])
    assert by_block.kept < first.kept < everything.kept
    chosen = recomputed_within(model, by_block.peak, SHAPES)
    assert set(chosen) & set(FIRST) and set(chosen) & set(SECOND)
    assert step_memory(model, SHAPES, policy=chosen).peak <= by_block.peak


@pytest.mark.parametrize("policy", ["none", "block"])
def test_every_tower_is_compiled_or_each_of_its_blocks(policy, monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, **_: compiled.append(module))
    model = parallelize(plain(), World(0, 1, 0, CPU), remat=policy, compiled=True)
    wanted = towers(model) if policy == "none" else blocks(model)
    assert len(wanted) == (2 if policy == "none" else 6)
    assert list(map(id, compiled)) == list(map(id, wanted.values()))


def speak(world: World) -> dict:
    said = {}
    for policy in ("none", "block"):
        inner = plain()
        model = parallelize(inner, world, mode="fsdp", remat=policy)
        said[policy] = {
            **trained(model, inner, world),
            "units": [name for name, block in blocks(inner).items() if isinstance(block, FSDPModule)],
            "towers": [name for name, tower in towers(inner).items() if isinstance(tower, FSDPModule)],
            "whole": [name for name, p in inner.named_parameters() if not isinstance(p, DTensor)],
        }
    loose = plain()
    loose.temperature = nn.Parameter(torch.zeros(()))
    try:
        parallelize(loose, world, mode="fsdp")
    except RequestError as error:
        said["refused"] = str(error)
    return said


@pytest.fixture(scope="module")
def said() -> list[dict]:
    return run_ranks(speak, 2)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["none", "block"])
def test_fsdp_shards_both_block_by_block_and_trains_as_one_process_does(said, policy):
    model = plain()
    one = trained(model, model, World(0, 1, 0, CPU))
    for rank in said:
        assert rank[policy]["units"] == FIRST + SECOND and rank[policy]["towers"] == ["", "text."]
        assert rank[policy]["whole"] == []
    assert torch.stack([rank[policy]["losses"] for rank in said]).mean(0) == pytest.approx(one["losses"], abs=1e-6)
    for part in ("gradients", "state"):
        for name, truth in one[part].items():
            found = said[0][policy][part][name]
            scale = max(float(truth.float().norm()), 1e-2)  # some have rounding alone for a gradient
            assert float((found.float() - truth.float()).norm()) <= 3e-5 * scale, (part, name)


@pytest.mark.slow
def test_fsdp_refuses_a_parameter_that_it_cannot_shard(said):
    assert all("temperature" in rank["refused"] and "parallel.mode=ddp" in rank["refused"] for rank in said)
