"""The determinism switch: what it sets, and that measuring its cost leaves no trace."""

import time

import pytest
import torch

from seer.core.records import StepOutput
from seer.engine.determinism import cost, use_deterministic
from seer.engine.precision import Precision
from tests.program import SMALL, losses, seer

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def as_before():
    yield
    use_deterministic(False, CPU)


def test_with_the_switch_torch_refuses_what_it_cannot_repeat():
    use_deterministic(True, CPU)
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    use_deterministic(False, torch.device("cuda", 0))
    assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.benchmark


@pytest.mark.slow
def test_a_run_with_the_switch_prints_its_cost_and_gives_the_losses_of_one_without_on_a_cpu(tmp_path, capfd):
    words = ("pretrain", *SMALL, "data.drawn=40", "data.drawn_test=0", "steps=3")
    plain = seer(capfd, *words, f"output={tmp_path / 'plain'}")
    switched = seer(capfd, *words, "parallel.deterministic=true", f"output={tmp_path / 'switched'}")
    assert plain.status == switched.status == 0, switched.words
    assert "times as long here" in switched.words and "times as long" not in plain.words
    assert losses(tmp_path / "switched") == losses(tmp_path / "plain")


def test_the_cost_is_a_ratio_of_times_and_leaves_the_switch_on(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", time.process_time)  # neighbours take time, too

    class Slower:
        """A task that takes longer when all must be deterministic."""

        def __init__(self):
            self.model = torch.nn.BatchNorm2d(3)

        def loss(self, batch):
            times = 40 if torch.are_deterministic_algorithms_enabled() else 4
            y = self.model(batch)
            for _ in range(times):
                y = y + batch.sin()
            return StepOutput(y.square().mean())

        def state_dict(self):
            return self.model.state_dict()

        def load_state_dict(self, state):
            self.model.load_state_dict(state)

    task = Slower()
    assert cost(task, torch.randn(8, 3, 64, 64), Precision(CPU), CPU) > 2
    assert torch.are_deterministic_algorithms_enabled()
    assert task.model.num_batches_tracked == 0 and task.model.weight.grad is None
