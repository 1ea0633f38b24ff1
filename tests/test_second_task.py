"""A task of forty lines outside SEER trains, is judged, saved, resumed to the bit, repeated, and runs on two ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seer.core import build as builder
from seer.core.build import allow
from seer.core.errors import Interrupted, NumericsError, RequestError
from seer.core.protocols import StopTraining
from seer.run.config import RunConfig
from seer.run.opened import open_run
from seer.run.plan import plan
from seer.run.replay import replay
from seer.run.session import train
from tests.program import ROOT, losses

pytestmark = pytest.mark.slow
TARGET = "tests.second_task.MeanColor"


@pytest.fixture
def admitted(monkeypatch):
    """The test's module may be named as a task while the test runs."""
    monkeypatch.setattr(builder, "_allowed", {})
    allow("task", "tests.second_task")


def config(images: Path, output: Path, **changes: object) -> RunConfig:
    one_view = {"sizes": [32], "counts": [2], "scales": [[0.3, 1.0]], "blur": 0.0}
    plain = RunConfig(
        model={"_target_": "seer.models.regnet.RegNet", "widths": [8, 16], "depths": [1, 1], "group_widths": [8, 8]},
        task={"_target_": TARGET, "weight": 2.0, "quiet_until": "10%"},
        augment={"_target_": "seer.data.multicrop.MultiCrop", **one_view},
        optim={"_target_": "torch.optim.SGD", "lr": 0.0, "momentum": 0.9, "weight_decay": 0.0},
        schedule={"_target_": "seer.optim.schedules.warmup_cosine", "peak": 0.05, "total": None, "warmup": 0},
        precision={"_target_": "seer.engine.precision.Precision", "dtype": "fp32"},
        output=str(output),
        steps=12,
        batch=8,
    )
    every = {"log": 1, "checkpoint": 4, "evaluate": 6}
    small = {"data": {"source": str(images), "threads": 1}, "every": every, "parallel": {"device": "cpu"}}
    return plain.replace(**{**small, "log": {"tensorboard": False}, **changes})


class Stop:
    """A sink that has seen enough after so many steps."""

    def __init__(self, after: int):
        self.after, self.rows = after, []

    def write(self, step, values):
        self.rows.append((step, dict(values)))
        if step + 1 == self.after:
            raise StopTraining

    def close(self):
        pass


class Judge:
    """Judges the head, which an evaluator of features alone could not."""

    def run(self, task):
        assert not task.modules()["head"].training
        return {"head/norm": float(task.modules()["head"].weight.norm())}


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "_allowed", {"task": ("tests.second_task",)})
        run = tmp_path_factory.mktemp("second") / "run"
        result = train(config(images, run), evaluators=[Judge()])
    assert result["steps"] == 12 and result["images"] == 96
    return run


def test_it_learns_is_judged_while_it_trains_and_its_duration_is_heeded(undisturbed):
    rows = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    found = losses(undisturbed)
    assert found[:2] == [0.0, 0.0] and found[2] > 0  # quiet_until: 10% of 12 steps, rounded up
    assert min(found[-3:]) < 0.5 * found[2]
    assert [row["step"] for row in rows if "head/norm" in row] == [0, 5, 11]
    assert all(row["color/error"] > 0 for row in rows if "loss" in row)


def test_stopped_by_a_sink_and_started_again_it_gives_the_same_bits(undisturbed, images, tmp_path, admitted):
    asked, stop = config(images, tmp_path / "run"), Stop(after=5)
    with pytest.raises(Interrupted) as caught:
        train(asked, sinks=[stop])
    assert caught.value.step == 5 and len(stop.rows) == 5
    assert train(asked)["steps"] == 12
    assert losses(tmp_path / "run") == losses(undisturbed)


def test_the_config_file_of_a_run_is_what_ran_and_can_be_read_back(undisturbed, images):
    from seer.run.folder import read_config

    assert RunConfig.of(read_config(undisturbed)) == config(images, undisturbed, groups=[])


def test_a_step_that_breaks_is_captured_and_repeated(images, tmp_path, admitted):
    hot = {"peak": 1e30, "warmup": 0}
    with pytest.raises(NumericsError):
        train(config(images, tmp_path / "run", schedule=hot))
    (capture,) = (tmp_path / "run").glob("capture-*")
    found = replay(capture, device="cpu")
    assert found["same"] is True and found["first_activation"]


def test_it_can_be_opened_and_stands_where_it_was_saved(undisturbed, images, admitted):
    from safetensors.torch import load_file

    run = open_run(undisturbed)
    assert run.step == 12 and run.config.batch == 8 and sum(map(len, run.shards)) == 20
    assert [row["loss"] for row in run.metrics if "loss" in row] == losses(undisturbed)
    (file,) = (undisturbed / "checkpoints" / "step-00000012").glob("*.safetensors")
    saved = {name.removeprefix("task/"): tensor for name, tensor in load_file(file).items() if name.startswith("task/")}
    held = run.task.state_dict()
    parameters = {name for name in held if name.rsplit(".", 1)[-1] in ("weight", "bias")}
    assert parameters <= saved.keys() and all(torch.equal(held[name], saved[name]) for name in parameters)
    assert {int(tensor) for name, tensor in held.items() if name.endswith("num_batches_tracked")} == {12}


def test_it_is_planned(images, tmp_path, admitted):
    alone, shared = (plan(config(images, tmp_path, batch=64), gpus, 80.0) for gpus in (1, 2))
    assert alone["parameters"] == shared["parameters"] > 0 and alone["fits"]
    assert 0 < shared["step"] <= alone["step"]


def test_no_file_and_no_word_admits_it(images, tmp_path, monkeypatch):
    monkeypatch.setattr(builder, "_allowed", {})
    with pytest.raises(RequestError) as caught:
        train(config(images, tmp_path / "run"))
    assert TARGET in str(caught.value) and not (tmp_path / "run").exists()


def test_two_ranks_give_the_losses_of_one(undisturbed, images, tmp_path):
    asked = config(images, tmp_path / "run").plain()
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "tests.second_task"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *launch, json.dumps(asked)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    assert torch.tensor(losses(tmp_path / "run")).allclose(torch.tensor(losses(undisturbed)), atol=1e-4)
