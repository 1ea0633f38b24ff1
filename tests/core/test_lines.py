"""Lines on a disk that is full for a while: none is lost, none comes twice, nothing is raised."""

import os

from seer.core.lines import Lines
from tests.engine.checkpoints import full_disk
from tests.messages import says


def test_what_a_full_disk_does_not_take_waits_and_goes_before_the_next(tmp_path, told):
    lines = Lines(tmp_path / "x.jsonl")
    lines.append("first\n")
    with full_disk(10):
        for i in range(5):
            lines.append(f"line {i}\n")
    assert (tmp_path / "x.jsonl").read_text() == "first\nline"
    assert told.text.count("wait in memory") == 1 and says(told.text, "x.jsonl", "File too large")
    lines.append("last\n")
    assert (tmp_path / "x.jsonl").read_text() == "first\n" + "".join(f"line {i}\n" for i in range(5)) + "last\n"
    with full_disk(10):
        lines.append("more\n")
    assert told.text.count("wait in memory") == 2  # another time
    lines.close()
    assert (tmp_path / "x.jsonl").read_text().endswith("last\nmore\n") and "lost" not in told.text


def test_lines_that_no_disk_takes_in_the_end_are_told_as_lost(tmp_path, told):
    lines = Lines(tmp_path / "gone" / "x.jsonl")
    lines.append("one\ntwo\n")
    lines.append("three\n")
    lines.close()
    assert "3 lines of" in told.text and "are lost" in told.text
    os.mkdir(tmp_path / "gone")
    lines.append("four\n")
    assert (tmp_path / "gone" / "x.jsonl").read_text() == "four\n"
