"""Figures of a step against a clock that the test moves: what a step costs, and nothing that is not training."""

import pytest
import torch

from seer.engine import step_timer as module
from seer.engine.step_timer import StepTimer


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def window(
    probe: StepTimer, clock: Clock, steps: int, *, saving: float = 0.0, device: float = 0.18
) -> dict[str, float]:
    """Of steps that take 20 ms of images, nothing of the host and `device` seconds of a device that only the last one
    waits for, as the loop has it."""
    told: dict[str, float] = {}
    for step in range(1, steps + 1):
        clock.now += 0.02
        probe.waited()
        probe.stepped()
        if step == steps:
            clock.now += device * steps - 0.02 * (steps - 1)  # while images are read the device goes on
            told = probe.read()
        if saving and step == 1:
            probe.mark()
            clock.now += saving
            probe.skip()
        probe.mark()
    return told


@pytest.mark.parametrize("log", [1, 10])
def test_each_window_tells_the_time_of_its_own_steps_also_where_the_device_is_waited_for_once_a_window(clock, log):
    probe = StepTimer(torch.device("cpu"), batch=50)
    for _ in range(3):
        told = window(probe, clock, log)
        expected = (0.02 + 0.18 * log) / log
        assert told["step_ms"] == pytest.approx(1e3 * expected)
        assert told["images_per_s"] == pytest.approx(50 / expected)
        assert told["data_wait"] == pytest.approx(0.02 / expected)


def test_a_checkpoint_is_no_part_of_what_a_step_costs(clock):
    probe = StepTimer(torch.device("cpu"), batch=50)
    assert window(probe, clock, 10, saving=7.0) == pytest.approx(window(probe, clock, 10))
