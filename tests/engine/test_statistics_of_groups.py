"""Two ranks with batch statistics of their own: evaluation and bundle take the mean of them, and training does not notice."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from seer.core.protocols import Modules
from seer.data import synthetic as sample
from seer.data.shards.writer import write_shards
from seer.engine.probes import evaluate
from seer.evals.features import Alone
from seer.parallel.world import World
from seer.run.weights import state
from tests.program import SMALL, finished, losses
from tests.ranks import run_ranks

pytestmark = pytest.mark.slow


class Statistics:
    def run(self, task: Modules) -> dict[str, torch.Tensor]:
        model = task.modules()["backbone"]
        assert not model.training
        return {name: buffer.clone() for name, buffer in model.named_buffers()}


class Fails:
    def run(self, task: Modules) -> dict[str, float]:
        raise ValueError("no image")


def speak(world: World) -> list[dict[str, torch.Tensor]]:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    for step in range(3 + 2 * world.rank):
        model(torch.randn(5, 3, generator=torch.Generator().manual_seed(10 * world.rank + step)) + world.rank)
    task = SimpleNamespace(model=model, modules=lambda: {"backbone": model})
    own = Statistics().run(Alone(model.eval()))
    seen = evaluate(task, [Statistics()], world, 2)
    alone = evaluate(task, [Statistics()], world, 1)
    try:
        evaluate(task, [Fails()], world, 2)
    except ValueError:
        after = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return [own, seen, alone, after]


def test_evaluation_has_the_mean_of_the_groups_statistics_and_training_its_own_again_even_after_an_error():
    (own, seen, alone, after), (other, seen_there, *_) = run_ranks(speak, 2)
    for name in own:
        assert not torch.equal(own[name], other[name])
        mean = ((own[name].double() + other[name].double()) / 2).to(own[name].dtype)
        assert torch.equal(seen[name], mean) and torch.equal(seen_there[name], mean)
        assert torch.equal(alone[name], own[name]) and torch.equal(after[name], own[name])


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """The same three steps on two ranks, looked at after every step, and never."""
    folder = tmp_path_factory.mktemp("runs")
    images = folder / "pictures"
    write_shards(sample.samples(64, seed=0), images, total=64, per_shard=32)
    for name, often in (("looked", 1), ("blind", 0)):
        words = ["pretrain", *SMALL, "steps=3", "parallel.batch_norm_group=1", f"data.source={images}"]
        words += [f"output={folder / name}", f"every.evaluate={often}"]
        words += [f"eval.train={images}", f"eval.test={images}"] if often else []
        ended = finished(*words, ranks=2)
        assert ended.status == 0, ended.words
    return [folder / "looked", folder / "blind"]


def test_a_bundle_holds_the_mean_of_the_statistics_that_the_checkpoint_keeps_of_each_group(runs):
    sets: dict[str, torch.Tensor] = {}
    for path in (runs[0] / "checkpoints" / "last").resolve().glob("*.safetensors"):
        sets |= load_file(path)
    bundle = load_file(runs[0] / "bundle" / "backbone.safetensors")
    differing = 0
    for name in [n for n in bundle if n.endswith(("running_mean", "running_var"))]:
        one, other = (sets[f"statistics-{group:05d}/task/backbone.{name}"] for group in (0, 1))
        differing += not torch.equal(one, other)
        assert torch.equal(bundle[name], ((one.double() + other.double()) / 2).float()), name
    assert differing > 10


def test_the_backbone_read_from_the_checkpoint_is_the_bundles_with_the_mean_of_the_statistics(runs):
    found = state(str(runs[0] / "checkpoints" / "last"))
    bundle = load_file(runs[0] / "bundle" / "backbone.safetensors")
    read = found.backbone.state_dict()
    assert found.kind == "checkpoint" and read.keys() == bundle.keys()
    assert all(torch.equal(read[name], bundle[name]) for name in bundle)


def test_looking_at_the_features_after_every_step_changes_no_bit_of_training(runs):
    looked, blind = runs
    assert losses(looked) == losses(blind) and len(losses(looked)) == 3
    one, other = (load_file(run / "bundle" / "backbone.safetensors") for run in runs)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
