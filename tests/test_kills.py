"""Killed at random moments, again and again, a run ends in the same bits as one that was left alone.

The real program, two ranks under torchrun: RegNetY-200MF, multi-crop, a queue that is full, checkpoints in the background.
A share of the kills waits for a save to begin. SEER_KILLS=200 makes the long test as long as a release wants it.
"""

import faulthandler
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from seer.data import synthetic as sample
from tests.program import SMALL, gone, losses, start, wait, went_on_from
from tests.test_peers import workers

EVERY = 4  # steps between two checkpoints
LONG = int(os.environ.get("SEER_KILLS", 20))
WORDS = ("task.queue=32", "task.queue_from=0", f"every.checkpoint={EVERY}", "parallel.timeout_s=60")


@dataclass
class Disturbance:
    run: Path
    images: Path
    steps: int
    random: random.Random
    inside_a_save: int = 0
    lost: list[tuple[int, bool]] = field(default_factory=list)  # steps, and whether a save was under way
    statuses: list[int] = field(default_factory=list)

    def start(self) -> subprocess.Popen[str]:
        words = ("pretrain", *SMALL, *WORDS, f"steps={self.steps}", f"data.source={self.images}")
        return start(*words, f"output={self.run}", ranks=2)

    def disturb(self, numbers: tuple[int, ...], in_save: bool) -> bool:
        """Start, wait for a moment, send a signal to one rank or to all. False when the run ended before."""
        before = self.last()
        agent = self.start()
        while self.last() == before:  # at least one more checkpoint, or it would never end
            if agent.poll() is not None:
                assert wait(agent).result.get("exit") == 0
                return False
            time.sleep(0.01)
        if in_save:
            end = time.monotonic() + 20
            while not list((self.run / "checkpoints").glob("*.writing")) and time.monotonic() < end:
                time.sleep(0.001)
            time.sleep(self.random.uniform(0, 0.02))
        else:
            time.sleep(self.random.uniform(0, 1.5))
        ranks = workers(agent.pid)
        targets = self.random.choice([ranks, ranks[:1], ranks[1:]])
        number = self.random.choice(numbers)
        for pid in targets:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        if number == signal.SIGKILL:
            saving = any((self.run / "checkpoints").glob("step-*.writing"))
            self.inside_a_save += saving
            if targets is ranks:
                agent.kill()
        ended = wait(agent)
        assert not before or went_on_from(ended) == before, ended.words
        self.statuses.append(json.loads((self.run / "result.json").read_text())["exit"] if ended.result else -number)
        assert gone(ranks)
        if number == signal.SIGKILL:
            self.lost.append((len(losses(self.run)) - self.last(), saving))
        return True

    def last(self) -> int:
        """Step of the newest checkpoint that is whole by its name."""
        found = [int(p.name[5:]) for p in (self.run / "checkpoints").glob("step-*") if p.name[5:].isdigit()]
        return max(found, default=0)


def final(run: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted((run / "checkpoints" / "last").resolve().glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def disturbed(tmp_path: Path, times: int, numbers: tuple[int, ...]) -> Disturbance:
    """A run that was left alone, and one that was disturbed; asserts that they end the same."""
    images = tmp_path / "pictures"
    images.mkdir()
    for key, fields in sample.samples(64, seed=3):
        (images / f"{key}.jpg").write_bytes(fields["jpg"])
    steps = EVERY * (4 * times + 2)
    quiet = Disturbance(tmp_path / "quiet", images, steps, random.Random(0))
    assert wait(quiet.start(), 600 + 60 * LONG).status == 0
    rough = Disturbance(tmp_path / "rough", images, steps, random.Random(1))
    for index in range(times):
        if not rough.disturb(numbers, in_save=index % 2 == 0):
            break
    ended = wait(rough.start(), 600 + 60 * LONG)
    assert ended.status == 0, ended.words
    assert losses(rough.run) == losses(quiet.run) and len(losses(rough.run)) == steps
    one, other = final(quiet.run), final(rough.run)
    assert one.keys() == other.keys() and any("queue" in name for name in one)
    assert all(one[name].equal(other[name]) for name in one)
    assert not list(rough.run.rglob("*.writing"))
    assert len(rough.statuses) >= 0.8 * times
    return rough


def _check_loss(rough: Disturbance) -> None:
    """An interval, and where a kill met a save what was trained while that was written, at most up to the next save."""
    assert all(lost <= EVERY * (1 + saving) for lost, saving in rough.lost), rough.lost


@pytest.mark.slow
def test_three_random_kills_lose_at_most_an_interval_and_no_bit(tmp_path):
    _check_loss(disturbed(tmp_path, 3, (signal.SIGKILL,)))


@pytest.fixture
def patient():
    """The limit of a test, for as many kills as are asked for."""
    faulthandler.dump_traceback_later(1800 + 180 * LONG, exit=True, file=sys.__stderr__)


@pytest.mark.long
def test_many_random_kills_lose_at_most_an_interval_and_no_bit(tmp_path, patient):
    rough = disturbed(tmp_path, LONG, (signal.SIGKILL,))
    print(f"{len(rough.lost)} kills, {rough.inside_a_save} inside a save, steps lost {sorted(rough.lost)}")
    _check_loss(rough)
    assert rough.inside_a_save >= len(rough.lost) / 4, (rough.inside_a_save, len(rough.lost))


@pytest.mark.long
def test_random_requests_to_stop_save_exit_75_and_lose_nothing(tmp_path, patient):
    rough = disturbed(tmp_path, LONG // 2, (signal.SIGTERM, signal.SIGUSR1))
    assert set(rough.statuses) == {75}
