"""What a run does when storage refuses a checkpoint: it goes on, tells, tries anew, and ends when that is hopeless."""

import json
import threading
import time
from pathlib import Path

import pytest
import torch

from seer.data import synthetic as sample
from seer.engine import checkpoint_files as checkpoint
from seer.engine.manifest import read_manifest
from seer.run import finish as ending
from seer.run.weights import state
from tests.messages import says
from tests.program import SMALL, losses, seer

pytestmark = pytest.mark.slow
WORDS = ("pretrain", *SMALL, "model=regnety_tiny", "every.checkpoint=2")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for key, fields in sample.samples(32, seed=3):
        (folder / f"{key}.jpg").write_bytes(fields["jpg"])
    return folder


@pytest.fixture
def refused(monkeypatch) -> list[int]:
    """The numbers of the saves that storage refuses, the first is 0."""
    numbers: list[int] = []
    count, made = iter(range(1000)), checkpoint._made

    def refuse(final: Path) -> str:
        if next(count) in numbers:
            raise OSError(28, "No space left on device")
        return made(final)

    monkeypatch.setattr(checkpoint, "_made", refuse)
    return numbers


@pytest.mark.parametrize("background", ["true", "false"])
def test_saves_that_fail_are_told_and_the_run_goes_on_to_its_end(capfd, tmp_path, images, refused, background):
    refused += [0, 2, 3]
    words = (f"data.source={images}", f"output={tmp_path / 'run'}", "steps=10", f"every.background={background}")
    ended = seer(capfd, *WORDS, *words)
    assert ended.status == 0 and len(losses(tmp_path / "run")) == 10
    assert ended.words.count("the next save tries anew") == 3 and says(ended.words, "checkpoint of step 2")
    assert {p.name for p in (tmp_path / "run" / "checkpoints").glob("step-*")} == {"step-00000004", "step-00000010"}


@pytest.mark.parametrize("background", ["true", "false"])
def test_three_failures_on_end_end_the_run_with_74_long_before_its_end(capfd, tmp_path, images, refused, background):
    refused += [1, 2, 3]
    words = (f"data.source={images}", f"output={tmp_path / 'run'}", "steps=40", f"every.background={background}")
    ended = seer(capfd, *WORDS, *words)
    assert ended.status == 74 and says(ended.result["error"], "checkpoint", "last 3")
    assert len(losses(tmp_path / "run")) < 12 and (tmp_path / "run" / "checkpoints" / "step-00000002").is_dir()


def test_a_third_failure_that_comes_when_the_next_save_is_due_ends_the_run_all_the_same(
    capfd, tmp_path, images, monkeypatch
):
    """Storage that refuses slowly: no step between hears of it."""
    count, made = iter(range(1000)), checkpoint._made

    def refuse(final: Path) -> str:
        if (number := next(count)) in (1, 2, 3):
            time.sleep(number == 3)  # many steps
            raise OSError(28, "No space left on device")
        return made(final)

    monkeypatch.setattr(checkpoint, "_made", refuse)
    ended = seer(capfd, *WORDS, f"data.source={images}", f"output={tmp_path / 'run'}", "steps=40")
    assert ended.status == 74 and says(ended.result["error"], "checkpoint", "last 3"), ended.words
    assert ended.words.count("the next save tries anew") == 2 and len(losses(tmp_path / "run")) < 12


def test_the_last_save_must_succeed(capfd, tmp_path, images, refused):
    refused += [1]
    ended = seer(capfd, *WORDS, f"data.source={images}", f"output={tmp_path / 'run'}", "steps=4")
    assert ended.status == 74 and says(ended.result["error"], "checkpoint of step 4")


@pytest.fixture
def bundles(monkeypatch) -> list[tuple[int, int]]:
    """(step of a bundle that is written, step of the newest whole checkpoint at that moment)."""
    found: list[tuple[int, int]] = []
    write = ending.write_bundle

    def set_phase(folder: Path, *args, **kwargs) -> Path:
        newest = (folder.parent / "checkpoints" / "last").resolve()
        found.append((kwargs["card"]["step"], read_manifest(newest)["step"]))
        return write(folder, *args, **kwargs)

    monkeypatch.setattr(ending, "write_bundle", set_phase)
    return found


@pytest.mark.parametrize("background", ["true", "false"])
def test_a_small_backbones_bundle_comes_with_every_checkpoint_once_that_is_whole(
    capfd, tmp_path, images, refused, bundles, background
):
    refused += [1]  # of step 4
    words = (f"data.source={images}", f"output={tmp_path / 'run'}", "steps=7", f"every.background={background}")
    assert seer(capfd, *WORDS, *words).status == 0
    assert bundles == [(2, 2), (6, 6), (7, 7), (7, 7)]  # and at the end with its figures
    figures = json.loads((tmp_path / "run" / "bundle" / "bundle.json").read_text())["provenance"]["metrics"]
    assert figures["steps"] == 7 and "loss" in figures


def test_what_trains_on_meanwhile_does_not_reach_the_bundle(capfd, tmp_path, images, monkeypatch):
    """It is written late, by another thread: its weights are those of its step, as the checkpoint's are."""
    pairs, write = [], ending.write_bundle

    def late(folder: Path, *args, **kwargs) -> Path:
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.3)  # several steps
            taken = state(str(folder.parent / "checkpoints" / f"step-{kwargs['card']['step']:08d}"))
            pairs.append((kwargs["state_dict"], taken.backbone.state_dict()))
        return write(folder, *args, **kwargs)

    monkeypatch.setattr(ending, "write_bundle", late)
    words = (f"data.source={images}", f"output={tmp_path / 'run'}", "steps=9", "every.checkpoint=4", "every.keep=9")
    assert seer(capfd, *WORDS, *words).status == 0
    assert len(pairs) == 3
    for weights, taken in pairs:
        assert weights.keys() == taken.keys() and all(torch.equal(weights[name], taken[name]) for name in taken)
    assert not torch.equal(pairs[0][0]["stem.conv.weight"], pairs[1][0]["stem.conv.weight"])


def test_a_large_backbone_has_its_bundle_at_the_end_alone_and_a_full_disk_for_one_is_only_told(
    capfd, tmp_path, images, bundles, monkeypatch
):
    words = (f"data.source={images}", "steps=4")
    with monkeypatch.context() as large:
        large.setattr(ending, "SMALL", 100_000)
        assert seer(capfd, *WORDS, *words, f"output={tmp_path / 'large'}").status == 0
    assert [step for step, _ in bundles] == [4]
    wrote = ending.write_bundle

    def full(folder: Path, *args, **kwargs) -> Path:
        if kwargs["card"]["step"] == 2:
            raise OSError(28, "No space left on device")
        return wrote(folder, *args, **kwargs)

    monkeypatch.setattr(ending, "write_bundle", full)
    ended = seer(capfd, *WORDS, *words, f"output={tmp_path / 'run'}")
    assert ended.status == 0 and says(ended.words, "bundle of step 2", "No space left")
    assert len(losses(tmp_path / "run")) == 4


def test_what_a_kill_left_of_a_bundle_is_removed_by_the_next_start(capfd, tmp_path, images):
    words = (*WORDS, f"data.source={images}", f"output={tmp_path / 'run'}", "steps=2")
    assert seer(capfd, *words).status == 0
    (tmp_path / "run" / "result.json").unlink()
    leftover = tmp_path / "run" / "bundle" / "backbone.safetensors.0123.tmp"
    leftover.write_bytes(b"half")
    assert seer(capfd, *words).status == 0 and not leftover.exists()
