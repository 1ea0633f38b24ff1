"""What a run does when storage refuses a checkpoint: it goes on, tells, tries anew, and ends when that is hopeless."""

from pathlib import Path

import pytest

from seer.data import sample
from seer.engine import checkpoint
from tests.program import SMALL, losses, seer

pytestmark = pytest.mark.slow
WORDS = ("pretrain", *SMALL, "model=regnety_tiny", "every.checkpoint=2")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
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
def test_saves_that_fail_are_told_and_the_run_goes_on_to_its_end(capfd, tmp_path, pictures, refused, background):
    refused += [0, 2, 3]
    words = (f"data.source={pictures}", f"output={tmp_path / 'run'}", "steps=10", f"every.background={background}")
    ended = seer(capfd, *WORDS, *words)
    assert ended.status == 0 and len(losses(tmp_path / "run")) == 10
    assert ended.words.count("the next save tries anew") == 3 and "step 2 could not be written" in ended.words
    assert {p.name for p in (tmp_path / "run" / "checkpoints").glob("step-*")} == {"step-00000004", "step-00000010"}


@pytest.mark.parametrize("background", ["true", "false"])
def test_three_failures_on_end_end_the_run_with_74_long_before_its_end(capfd, tmp_path, pictures, refused, background):
    refused += [1, 2, 3]
    words = (f"data.source={pictures}", f"output={tmp_path / 'run'}", "steps=40", f"every.background={background}")
    ended = seer(capfd, *WORDS, *words)
    assert ended.status == 74 and "the last 3 saves failed" in ended.result["error"]
    assert len(losses(tmp_path / "run")) < 12 and (tmp_path / "run" / "checkpoints" / "step-00000002").is_dir()


def test_the_last_save_must_succeed(capfd, tmp_path, pictures, refused):
    refused += [1]
    ended = seer(capfd, *WORDS, f"data.source={pictures}", f"output={tmp_path / 'run'}", "steps=4")
    assert ended.status == 74 and "step 4 could not be written" in ended.result["error"]
