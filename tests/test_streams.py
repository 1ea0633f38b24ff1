"""What a verb does where nobody reads it: closed and full outputs, variables of a launcher that are none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.messages import says
from tests.program import ROOT, environment

pytestmark = pytest.mark.slow


def shell(command: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    seer = f"{sys.executable} -m seer"
    return subprocess.run(
        ["bash", "-c", command.replace("SEER", seer)],
        capture_output=True, text=True, timeout=120, cwd=folder, env={**environment(), "PYTHONPATH": str(ROOT), **more},
    )  # fmt: skip


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", ">&- 2>&- <&-", "2>/dev/full"])
def test_a_verb_ends_well_without_its_streams_and_writes_what_it_should(closed, images, tmp_path):
    ended = shell(f"SEER shard source={images} output=o per_shard=10 {closed}", tmp_path)
    assert ended.returncode == 0 and "Traceback" not in ended.stderr
    assert json.loads((tmp_path / "o" / "result.json").read_text())["exit"] == 0
    if closed == ">&-":
        assert says(ended.stderr, "standard output is closed")


def test_a_full_disk_under_standard_output_is_a_failure_of_storage_and_a_reader_that_left_is_none(images, tmp_path):
    full = shell(f"SEER shard source={images} output=o >/dev/full", tmp_path)
    assert full.returncode == 74 and says(full.stderr, "cannot be printed") and "Traceback" not in full.stderr
    gone = shell(f"SEER shard source={images} output=p | true; exit ${{PIPESTATUS[0]}}", tmp_path)
    assert gone.returncode == 0 and "Traceback" not in gone.stderr


@pytest.mark.parametrize(
    ("where", "status"), [(">/dev/full", 74), ("2>/dev/full", 0), ("2>&1 | true; exit ${PIPESTATUS[0]}", 0)]
)
def test_help_that_nobody_reads_is_no_traceback(where, status, tmp_path):
    ended = shell(f"SEER shard --help {where}", tmp_path)
    assert ended.returncode == status and "Traceback" not in ended.stderr


@pytest.mark.parametrize("given", [{"RANK": ""}, {"RANK": "abc"}, {"RANK": "1"}, {"WORLD_SIZE": "two"}], ids=str)
def test_an_odd_variable_of_a_launcher_ends_any_verb_with_78_and_its_name(given, images, tmp_path):
    ended = shell(f"SEER shard source={images} output=o", tmp_path, **given)
    told = json.loads(ended.stdout)
    assert ended.returncode == told["exit"] == 78 and "Traceback" not in ended.stderr
    assert says(told["error"], *given) and not (tmp_path / "o").exists()
