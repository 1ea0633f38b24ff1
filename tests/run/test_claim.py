"""Whoever sees the config of a run also finds its result, however soon a request to stop comes."""

from pathlib import Path

import pytest
import torch

from seer.parallel.world import World
from seer.run import folder as run_folder

SETTINGS = {"steps": 3}
ALONE = World(0, 1, 0, torch.device("cpu"))


def interrupted(run: Path, monkeypatch: pytest.MonkeyPatch, before: bool) -> list[Path]:
    """Returns what a verb knows of its folder when a request comes just before or just after the config has its name."""
    output: list[Path] = []
    replace = Path.replace

    def asked(self: Path, target: Path) -> Path:
        if before:
            raise KeyboardInterrupt("SIGTERM")
        replace(self, target)
        raise KeyboardInterrupt("SIGTERM")

    monkeypatch.setattr(Path, "replace", asked)
    with pytest.raises(KeyboardInterrupt), run_folder.claim(run, SETTINGS, ALONE, output):
        pass
    monkeypatch.undo()
    return output


def test_a_run_is_owned_from_the_moment_its_config_is_seen(tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert interrupted(run, monkeypatch, before=False) == [run]
    assert (run / run_folder.CONFIG).is_file()


def test_a_run_without_a_config_is_not_owned_and_begins_again(tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert interrupted(run, monkeypatch, before=True) == []
    assert not (run / run_folder.CONFIG).exists()
    output: list[Path] = []
    with run_folder.claim(run, SETTINGS, ALONE, output):
        assert output == [run]


def test_a_later_start_owns_the_run_before_its_config_is_written_again(tmp_path, monkeypatch):
    run = tmp_path / "run"
    with run_folder.claim(run, SETTINGS, ALONE, []):
        pass
    assert interrupted(run, monkeypatch, before=True) == [run]
