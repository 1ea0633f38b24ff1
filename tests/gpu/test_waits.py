"""Asks torch, on a GPU, whether a training step between two logged ones waits for the device.

On a CPU: tests/tasks/test_waits_for_the_device.py.
"""

import warnings

import pytest
import torch

from seer.engine.monitor import Monitor
from tests.program import SMALL, seer


@pytest.mark.parametrize("optim", ["lars", "adamw"])
def test_steps_between_logged_ones_do_not_synchronize(device, tmp_path, capfd, monkeypatch, optim):
    if device.type == "cpu":
        pytest.skip("nothing is asynchronous on a CPU")
    begin, log = Monitor.begin, Monitor.log

    def begun(self, step):
        begin(self, step)
        torch.cuda.set_sync_debug_mode("warn" if step % 10 not in (0, 9) else "default")

    def logged(self, step):
        torch.cuda.set_sync_debug_mode("default")
        return log(self, step)

    monkeypatch.setattr(Monitor, "begin", begun)
    monkeypatch.setattr(Monitor, "log", logged)
    words = [w for w in SMALL if not w.startswith(("parallel.device", "every.log"))]
    words += [
        "data.drawn=64",
        "data.drawn_test=0",
        "steps=40",
        "every.log=10",
        f"optim={optim}",
        "parallel.device=cuda",
    ]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        ended = seer(capfd, "pretrain", *words, f"output={tmp_path / 'run'}")
    torch.cuda.set_sync_debug_mode("default")
    assert ended.status == 0, ended.words
    seen = [f"{w.filename}:{w.lineno}" for w in told if "synchronizing" in str(w.message).lower()]
    assert seen == []
