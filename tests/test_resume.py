"""Stopping and going on: the losses of an interrupted run are those of one that was left alone, bit for bit."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from seer.data import synthetic as sample
from tests.messages import says
from tests.program import SMALL, finished, losses, start, wait, went_on_from

pytestmark = pytest.mark.slow
STEPS = 40  # so many that a run is still at it when a busy machine lets this process see its first ones


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for key, fields in sample.samples(50, seed=3):
        (folder / f"{key}.jpg").write_bytes(fields["jpg"])
    return folder


def _after(run: Path, steps: int, limit_s: float = 120) -> None:
    """Wait until a run has logged so many steps."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) >= steps:
            return
        time.sleep(0.02)
    raise AssertionError(f"{run} did not reach step {steps}")


@pytest.fixture(scope="module")
def quiet(images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of steps that nothing disturbs and that save nothing in between."""
    run = tmp_path_factory.mktemp("quiet") / "run"
    ended = finished(
        "pretrain", *SMALL, f"data.source={images}", f"steps={STEPS}", "every.checkpoint=0", f"output={run}"
    )
    assert ended.status == 0, ended.words
    assert len(losses(run)) == STEPS
    return losses(run)


def test_ctrl_c_saves_exits_75_and_the_same_command_continues_bit_for_bit(
    images: Path, tmp_path: Path, quiet: list[float]
) -> None:
    words = ("pretrain", *SMALL, f"data.source={images}", f"steps={STEPS}", "every.checkpoint=0")
    run = tmp_path / "disturbed"
    process = start(*words, f"output={run}")
    _after(run, 5)
    os.kill(process.pid, signal.SIGINT)
    stopped = wait(process)
    assert stopped.status == 75 and stopped.result["exit"] == 75 and "Traceback" not in stopped.words
    done = len(losses(run))
    assert 5 <= done < STEPS
    again = finished(*words, f"output={run}")
    assert again.status == 0 and went_on_from(again) == done
    assert losses(run) == quiet


def test_a_killed_run_continues_from_its_last_checkpoint_bit_for_bit(
    images: Path, tmp_path: Path, quiet: list[float]
) -> None:
    words = ("pretrain", *SMALL, f"data.source={images}", f"steps={STEPS}", "every.checkpoint=4")
    run = tmp_path / "killed"
    process = start(*words, f"output={run}")
    _after(run, 7)
    while not (run / "checkpoints" / "last").exists():  # written beside the steps: a busy disk may take more than three
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.communicate()
    step = json.loads((run / "checkpoints" / "last" / "manifest.json").read_text())["step"]
    again = finished(*words, f"output={run}")
    assert again.status == 0 and 4 <= step < STEPS and went_on_from(again) == step
    assert losses(run) == quiet


def test_two_ranks_give_the_losses_of_one_process(tmp_path: Path) -> None:
    """In float32, where an untrained network multiplies rounding errors: few blocks, and NCHW, since torch's
    channels_last batch norm rounds ten times more coarsely than the grouped one (LOG.md, "Two ranks and one")."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for key, fields in sample.samples(200, seed=3):
        (folder / f"{key}.jpg").write_bytes(fields["jpg"])
    small = [w for w in SMALL if not w.startswith(("model=", "batch="))]
    network = ("model=regnety_tiny", "batch=64", "augment.sizes=[48,32]", "parallel.channels_last=false")
    words = ("pretrain", *small, *network, f"data.source={folder}", "steps=20", "schedule.peak=0.05@256")
    assert finished(*words, f"output={tmp_path / 'one'}").status == 0
    two = wait(start(*words, f"output={tmp_path / 'two'}", ranks=2))
    assert two.status == 0, two.words
    one_losses, two_losses = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one_losses) == 20
    assert two_losses == pytest.approx(one_losses, abs=1e-4)
    assert max(one_losses) - min(one_losses) > 1e-3  # they moved, so agreeing says something


def test_images_whose_folder_was_renamed_go_on_bit_for_bit_and_others_do_not(
    images: Path, tmp_path: Path, quiet: list[float]
) -> None:
    words = ("pretrain", *SMALL, f"steps={STEPS}", "every.checkpoint=0", f"output={tmp_path / 'run'}")
    shutil.copytree(images, tmp_path / "before")
    process = start(*words, f"data.source={tmp_path / 'before'}")
    _after(tmp_path / "run", 5)
    os.kill(process.pid, signal.SIGINT)
    assert wait(process).status == 75
    (tmp_path / "before").rename(tmp_path / "after")
    first = sorted((tmp_path / "after").iterdir())[0]
    first.rename(tmp_path / "kept")
    (tmp_path / "after" / "another.jpg").write_bytes((tmp_path / "kept").read_bytes())
    refused = finished(*words, f"data.source={tmp_path / 'after'}")
    assert refused.status == 78 and says(refused.result["error"], "restore", "names")
    (tmp_path / "after" / "another.jpg").rename(first)
    again = finished(*words, f"data.source={tmp_path / 'after'}")
    assert again.status == 0 and losses(tmp_path / "run") == quiet
