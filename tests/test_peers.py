"""When one rank of several dies, stops, hangs or fails: all end soon, one message names it, and the saved state stays."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from seer.data import synthetic as sample
from tests.messages import says
from tests.program import SMALL, Ended, alive, gone, losses, start, wait

pytestmark = [pytest.mark.slow, pytest.mark.alone]
LIMIT_S = 20


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for key, fields in sample.samples(64, seed=3):
        (folder / f"{key}.jpg").write_bytes(fields["jpg"])
    return folder


def begin(images: Path, run: Path, *words: str, fault: str | None = None) -> subprocess.Popen[str]:
    often = ("steps=4000", "every.checkpoint=3", f"parallel.timeout_s={LIMIT_S}")
    return start("pretrain", *SMALL, *often, f"data.source={images}", f"output={run}", *words, ranks=2, fault=fault)


def workers(agent: int) -> list[int]:
    """Process numbers of the ranks under a launcher, in rank order."""
    found = {}
    for task in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((task / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == agent:
                names = dict(e.partition("=")[::2] for e in (task / "environ").read_text().split("\0"))
                found[int(names["RANK"])] = int(task.name)
        except (OSError, KeyError, ValueError):
            continue
    return [found[rank] for rank in sorted(found)]


def saved(run: Path, limit_s: float = 180) -> None:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if (run / "checkpoints" / "last").exists():
            return
        time.sleep(0.05)
    raise AssertionError("no checkpoint came")


def told(ended: Ended) -> list[str]:
    """The messages of the program, without those of torchrun."""
    return [line for line in ended.words.splitlines() if line.startswith("seer pretrain: ")]


@pytest.mark.parametrize(("number", "within_s"), [(signal.SIGKILL, 30), (signal.SIGSTOP, LIMIT_S + 30)])
def test_a_rank_that_is_killed_or_stopped_is_named_and_all_end(images, tmp_path, number, within_s):
    run = tmp_path / "run"
    agent = begin(images, run)
    saved(run)
    ranks = workers(agent.pid)
    assert len(ranks) == 2
    os.kill(ranks[1], number)
    since = time.monotonic()
    ended = wait(agent)
    assert time.monotonic() - since < within_s
    assert gone(ranks)
    assert len(told(ended)) == 1, ended.words
    assert f"rank 1 (pid {ranks[1]} on " in told(ended)[0] and says(told(ended)[0], "is saved", "same command")
    assert ended.result["exit"] == 75 and json.loads((run / "result.json").read_text())["exit"] == 75


def test_when_the_first_rank_is_killed_the_next_one_speaks(images, tmp_path):
    run = tmp_path / "run"
    agent = begin(images, run)
    saved(run)
    first, second = workers(agent.pid)
    os.kill(first, signal.SIGKILL)
    ended = wait(agent)
    assert len(told(ended)) == 1 and f"rank 0 (pid {first} on " in told(ended)[0]
    assert json.loads((run / "result.json").read_text())["exit"] == 75 and gone([second])


def test_when_the_launcher_is_killed_the_ranks_save_and_end(images, tmp_path):
    run = tmp_path / "run"
    agent = begin(images, run)
    saved(run)
    ranks = workers(agent.pid)
    agent.kill()
    gone(ranks, 90)
    left = [rank for rank in ranks if alive(rank)]
    for rank in left:
        os.kill(rank, signal.SIGKILL)
    agent.communicate()  # ends when the ranks have, which hold its pipes
    assert not left
    assert json.loads((run / "result.json").read_text())["exit"] == 75
    assert json.loads((run / "checkpoints" / "last" / "manifest.json").read_text())["step"] == len(losses(run))


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_a_signal_to_the_whole_group_saves_once_and_exits_75(images, tmp_path, number):
    run = tmp_path / "run"
    agent = begin(images, run)
    saved(run)
    ranks = workers(agent.pid)
    for pid in (*ranks, agent.pid):  # as the terminal and SLURM do; torchrun sends it to the ranks again
        os.kill(pid, number)
    ended = wait(agent)
    assert ended.result["exit"] == 75 and len(told(ended)) == 1 and says(told(ended)[0], "saved")
    assert json.loads((run / "checkpoints" / "last" / "manifest.json").read_text())["step"] == len(losses(run))


def last(run: Path) -> int:
    return json.loads((run / "checkpoints" / "last" / "manifest.json").read_text())["step"]


def test_one_bit_of_one_weight_on_one_rank_is_found_and_never_saved(images, tmp_path):
    run = tmp_path / "run"
    ended = wait(begin(images, run, "every.compare=2", fault="bit"))
    assert ended.result["exit"] == 70 and len(told(ended)) == 1, ended.words
    assert says(told(ended)[0], "weights", "step 6", "1 of ", "stem")
    assert last(run) == 3 and len(losses(run)) == 6  # the bit turned in step 6


def test_a_rank_that_fails_tells_why_and_the_others_end_with_its_status(images, tmp_path):
    run = tmp_path / "run"
    ended = wait(begin(images, run, fault="error"))
    assert told(ended) == ["seer pretrain: rank 1: the battery of rank 1 is empty"]
    assert ended.result["exit"] == 78 and json.loads((run / "result.json").read_text())["exit"] == 78


@pytest.mark.long
def test_a_rank_that_hangs_is_named_with_what_it_was_at_and_all_end_within_the_limit(images, tmp_path):
    run = tmp_path / "run"
    agent = begin(images, run, "every.checkpoint=2", fault="hang")
    saved(run)
    ranks, since = workers(agent.pid), time.monotonic()
    ended = wait(agent)
    assert time.monotonic() - since < LIMIT_S + 30 + 10  # ten for the steps before it hangs
    assert gone(ranks) and len(told(ended)) == 1, ended.words
    assert says(told(ended)[0], f"rank 1 (pid {ranks[1]} on ", "at step 5", "training")
    assert ended.result["exit"] == 75


def test_a_rank_that_was_started_with_other_words_is_named_before_training(images, tmp_path):
    ended = wait(begin(images, tmp_path / "run", fault="words"))
    assert ended.result["exit"] == 78 and len(told(ended)) == 1
    assert says(told(ended)[0], "rank 1", "optim.momentum 0.5", "rank 0", 0.9)


@pytest.mark.long
def test_a_slow_rank_is_named(images, tmp_path):
    run = tmp_path / "run"
    ended = wait(begin(images, run, "steps=12", "every.log=2", "every.checkpoint=0", fault="slow"))
    assert ended.result["exit"] == 0
    assert "rank 1 on " in ended.words and "keeps the others waiting: busy " in ended.words


def test_steps_are_logged_while_a_slow_disk_takes_a_checkpoint(images, tmp_path):
    run = tmp_path / "run"
    small = ("model=regnety_tiny", "steps=12", "every.checkpoint=3")
    ended = wait(begin(images, run, *small, fault="disk"))
    assert ended.result["exit"] == 0, ended.words
    assert len(losses(run)) == 12 and last(run) == 12
    rows = [
        [int(n) for n in line.split()] for line in (tmp_path / "rows-before-and-after-saves").read_text().splitlines()
    ]
    assert sum(after > before for before, after in rows) >= 3, rows
    # a rank whose save waits for the other's is busy all the same; that one rank is slower for a while is the machine's
    waited = re.findall(r"rank 0 on \S+ keeps the others waiting: .*median of the others is busy (\S+) s", ended.words)
    assert all(float(seconds) > 0 for seconds in waited), waited


def test_where_one_rank_can_save_nothing_all_try_again_and_end_together_after_three_failures(images, tmp_path):
    run = tmp_path / "run"
    ended = wait(begin(images, run, "model=regnety_tiny", "every.background=true", fault="full"))
    assert ended.result["exit"] == 74 and len(told(ended)) == 1, ended.words
    assert says(told(ended)[0], "step 9", "last 3")
    assert ended.words.count("the next save tries anew") == 2
    assert len(losses(run)) < 13 and not list((run / "checkpoints").iterdir())
