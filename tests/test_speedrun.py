"""The run against the clock, at toy size: its split, its clock, what it asks, and what it does with wrong words."""

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.program import SMALL

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "speedrun.py"


@pytest.fixture(scope="module")
def labelled_folder(tmp_path_factory) -> Path:
    folder, draw = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    for i, name in enumerate(("dark", "light")):
        (folder / name).mkdir()
        for n in range(40):
            pixels = draw.integers(120 * i, 120 * i + 130, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{n}.png")
    return folder


def speedrun(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)


@pytest.mark.slow
def test_each_seed_is_trained_for_the_time_and_asked_on_images_that_it_never_saw(tmp_path, labelled_folder):
    words = [word for word in SMALL if not word.startswith(("steps", "output", "data.", "every.evaluate"))]
    given = ["time=2s", "seeds=0,3", "held_out=20%", "recipe=none", f"output={tmp_path}", *words]
    ended = speedrun(str(labelled_folder), *given)
    assert ended.returncode == 0, ended.stderr
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [row["seed"] for row in rows] == [0, 3]
    for row in rows:
        assert row["pretrain"]["seconds_of"]["training"] < 60 and row["pretrain"]["steps"] >= 1
        assert row["knn"] == row["evaluate"]["knn_top1"]
        assert row["evaluate"]["weights"] == str(tmp_path / f"seed-{row['seed']}")
        assert row["pretrain"]["data"]["used"] == 64  # of 80: the others were held out
    found = [row["knn"] for row in rows]
    assert f"mean {statistics.mean(found):.4f}" in ended.stderr
    assert f"standard error {statistics.stdev(found) / math.sqrt(2):.4f}" in ended.stderr


@pytest.mark.slow
def test_a_wrong_word_ends_it_before_the_next_seed(tmp_path, labelled_folder):
    ended = speedrun(str(labelled_folder), "time=2s", "held_out=20%", f"output={tmp_path}", "optim.no_such=1")
    assert ended.returncode == 1 and "ended with 78" in ended.stderr and ended.stdout == ""


def test_without_images_it_says_how_it_is_called_and_that_nothing_was_run():
    ended = speedrun()
    assert ended.returncode == 0 and "cifar10-train.tar" in ended.stdout and "not run" in ended.stdout
