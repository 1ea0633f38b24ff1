"""A run whose reader process is killed goes on as if nothing had been; a run that is killed leaves no reader behind."""

import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from seer.data import synthetic as sample
from seer.data.shards.writer import write_shards
from tests.program import SMALL, alive, finished, losses, start, wait

STEPS = 60


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_shards(sample.samples(128, seed=0), folder, total=128, per_shard=64)
    return folder


def words_of(images: Path, run: Path) -> tuple[str, ...]:
    return ("pretrain", *SMALL, f"steps={STEPS}", "every.checkpoint=0", f"data.source={images}", f"output={run}")


def begun(images: Path, run: Path, ranks: int = 1):
    return start(*words_of(images, run), ranks=ranks)


def children(pid: int) -> list[int]:
    """Those that run: one that has ended stays in the list until its parent asks for it."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # the thread has ended meanwhile
            found += map(int, path.read_text().split())
    return [child for child in found if alive(child)]


def logged(run: Path) -> int:
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def until(happened, limit_s: float = 120) -> None:
    end = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_killing_the_reader_of_a_run_twice_changes_no_loss_and_is_told(images, tmp_path):
    assert finished(*words_of(images, tmp_path / "quiet")).status == 0
    process = begun(images, tmp_path / "run")
    for step in (4, 16):  # well before the reader has made the last batch
        until(lambda step=step: logged(tmp_path / "run") >= step)
        until(lambda: children(process.pid))  # the second: once its death was noticed, which batches made ahead put off
        (reader,) = children(process.pid)
        os.kill(reader, signal.SIGKILL)
    ended = wait(process)
    assert ended.status == 0, ended.words
    assert ended.words.count("the reader process ended by signal SIGKILL") == 2
    assert losses(tmp_path / "run") == losses(tmp_path / "quiet") and len(losses(tmp_path / "run")) == STEPS


@pytest.mark.slow
def test_a_killed_rank_takes_its_reader_with_it(images, tmp_path):
    process = begun(images, tmp_path / "run", ranks=2)
    until(lambda: logged(tmp_path / "run") >= 3)
    ranks = children(process.pid)
    readers = {rank: children(rank) for rank in ranks}
    assert len(ranks) == 2 and all(len(found) == 1 for found in readers.values())
    os.kill(ranks[0], signal.SIGKILL)
    until(lambda: not alive(readers[ranks[0]][0]), 30)
    assert wait(process).status != 0
    until(lambda: not alive(readers[ranks[1]][0]), 30)


@pytest.mark.slow
def test_storage_that_stops_answering_ends_a_run_with_74_and_names_the_place(images, tmp_path):
    words = (*SMALL, f"steps={STEPS}", f"data.source={images}", f"output={tmp_path / 'run'}", "parallel.timeout_s=5")
    ended = wait(start("pretrain", *words, fault="storage"))
    assert ended.status == 74 and ended.result["exit"] == 74, ended.words
    place = r"reading lane \d+, row \d+ of \S+\.tar"
    assert re.search(rf"storage has not answered for [4-9] s: {place}.*run the same command again", ended.words)
