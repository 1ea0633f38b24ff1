"""Asked to stop before or after training, a run ends with 75 and its JSON line: schedulers queue it again."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from seer.engine import loop
from seer.run import assemble, session
from seer.run import finish as ending
from seer.tasks.swav import SwAVTask
from tests.messages import says
from tests.program import SMALL, Ended, seer, start, wait
from tests.test_peers import told, workers

pytestmark = [pytest.mark.slow, pytest.mark.alone]
WORDS = ("pretrain", *SMALL, "model=regnety_tiny", "steps=2")
DRAWING = ("data.source=null", "data.drawn=60000")  # minutes of it


@pytest.fixture
def drawing() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A function that starts a run and waits until it draws its images: rank 0 alone, the others wait."""
    started = []

    def begin(run: Path, ranks: int = 1) -> subprocess.Popen[str]:
        process = start(*WORDS, *DRAWING, f"output={run}", ranks=ranks)
        started.append(process)
        end = time.monotonic() + 180
        while not (run / "pictures").exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert (run / "pictures").exists()
        return process

    yield begin
    for process in started:
        process.kill()  # the kernel ends the ranks of a launcher
        process.wait()


def stopped_early(ended: Ended, run: Path, name: str) -> None:
    assert ended.result["exit"] == 75, ended.words
    assert says(ended.result["error"], name, "before", "same command")
    assert json.loads((run / "result.json").read_text())["exit"] == 75
    assert len(told(ended)) == 1 and "Traceback" not in ended.words.split("torch/distributed")[0]


@pytest.mark.parametrize(
    "number", [signal.SIGUSR1, *(pytest.param(s, marks=pytest.mark.long) for s in (signal.SIGTERM, signal.SIGINT))]
)
def test_a_signal_while_images_are_drawn_ends_with_75(drawing, tmp_path, number):
    process = drawing(tmp_path / "run")
    os.kill(process.pid, number)
    ended = wait(process, 60)
    stopped_early(ended, tmp_path / "run", signal.Signals(number).name)
    assert ended.status == 75


@pytest.mark.parametrize(
    ("number", "to"),
    [
        pytest.param(signal.SIGUSR1, [0, 1], marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, [0, 1], marks=pytest.mark.long),
        (signal.SIGTERM, [0]),
    ],
)
def test_of_several_ranks_one_tells_and_all_end_also_those_that_heard_no_signal(drawing, tmp_path, number, to):
    process = drawing(tmp_path / "run", ranks=2)
    ranks, since = workers(process.pid), time.monotonic()
    for rank in to:
        os.kill(ranks[rank], number)
    ended = wait(process, 120)
    assert time.monotonic() - since < 50  # one that waited for a rank in vain would end after parallel.timeout_s, 600 s
    stopped_early(ended, tmp_path / "run", number.name)


def test_a_rank_that_is_killed_before_training_is_named_though_the_launcher_sends_sigterm(drawing, tmp_path):
    process = drawing(tmp_path / "run", ranks=2)
    killed = workers(process.pid)[1]
    os.kill(killed, signal.SIGKILL)
    ended = wait(process, 60)
    assert len(told(ended)) == 1 and f"rank 1 (pid {killed} on " in told(ended)[0], ended.words


@pytest.fixture
def signalled(monkeypatch):
    """A function that makes a part of the run be reached by a signal."""

    def at(place: object, name: str) -> None:
        monkeypatch.setattr(place, name, lambda *_, **__: signal.raise_signal(signal.SIGUSR1))

    return at


@pytest.mark.parametrize(
    ("place", "name", "words"),
    [
        (assemble, "task", ()),
        (session, "announce", ()),
        (SwAVTask, "seed_prototypes", ("task.kmeans=32",)),
        (loop, "on_device", ()),
    ],
)
def test_wherever_a_signal_comes_before_training_the_run_ends_with_75(capfd, tmp_path, signalled, place, name, words):
    signalled(place, name)
    ended = seer(capfd, *WORDS, "data.source=null", "data.drawn=32", f"output={tmp_path / 'run'}", *words)
    assert ended.status == 75 and says(ended.result["error"], "SIGUSR1", "before")


def test_a_signal_after_training_leaves_the_last_checkpoint_and_the_next_start_ends_the_run(
    capfd, tmp_path, monkeypatch, signalled
):
    words = (*WORDS, "data.source=null", "data.drawn=32", f"output={tmp_path / 'run'}")
    monkeypatch.setattr(ending, "SMALL", 0)
    with monkeypatch.context():
        signalled(ending, "write_bundle")
        ended = seer(capfd, *words)
    assert ended.status == 75 and says(ended.result["error"], "SIGUSR1", "step 2 saved", "same")
    monkeypatch.undo()
    assert seer(capfd, *words).status == 0 and (tmp_path / "run" / "bundle" / "backbone.safetensors").exists()


@pytest.mark.parametrize(
    ("number", "small", "bundle"),
    [
        (signal.SIGINT, 0, True),
        (signal.SIGTERM, 0, False),
        (signal.SIGUSR1, 0, False),
        (signal.SIGTERM, ending.SMALL, True),
    ],
)
def test_between_the_last_save_and_exit_75_a_bundle_is_written_only_for_people_or_where_it_is_small(
    capfd, tmp_path, monkeypatch, number, small, bundle
):
    """Whoever sends SIGTERM or SIGUSR1 may kill soon, and queues the run again only if it has ended with 75 by then."""
    after_step = SwAVTask.after_step

    def strike(task: SwAVTask, step: int) -> None:
        after_step(task, step)
        if step == 0:
            signal.raise_signal(number)

    monkeypatch.setattr(SwAVTask, "after_step", strike)
    monkeypatch.setattr(ending, "SMALL", small)
    ended = seer(capfd, *WORDS, "data.source=null", "data.drawn=32", f"output={tmp_path / 'run'}")
    assert ended.status == 75 and ended.result["steps"] == 1 and says(ended.result["error"], "saved")
    assert (tmp_path / "run" / "bundle").exists() == bundle == ("bundle" in ended.result)
