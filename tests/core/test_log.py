"""Colors of the log: on a terminal alone, where nobody said NO_COLOR, and never in the copy that a run keeps."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.program import ROOT

CODE = """
import sys
from pathlib import Path
from seer.core import log
log.setup()
log.keep_copy(Path(sys.argv[1]))
log.log.info("plain: 1")
log.log.warning("careful: 2")
log.log.error("wrong: 3")
log.titled("done: 4 steps: all")
"""
PLAIN = ["plain: 1", "careful: 2", "wrong: 3", "done: 4 steps: all"]


def said(copy: Path, *, terminal: bool, **variables: str) -> list[str]:
    """Returns the lines on standard error, a terminal or a pipe."""
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    ours, theirs = pty.openpty() if terminal else os.pipe()
    environment = {**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm", **variables}
    subprocess.run([sys.executable, "-c", CODE, str(copy)], stderr=theirs, env=environment, check=True, timeout=60)
    os.close(theirs)
    text = b""
    try:
        while part := os.read(ours, 65536):
            text += part
    except OSError:  # how a terminal says that its other side is closed
        pass
    os.close(ours)
    return text.decode().replace("\r\n", "\n").splitlines()


def test_a_terminal_shows_colors_and_the_copy_of_a_run_has_none(tmp_path):
    assert said(tmp_path / "log", terminal=True) == [
        "plain: 1",
        "\x1b[33mcareful: 2\x1b[0m",
        "\x1b[31mwrong: 3\x1b[0m",
        "\x1b[1mdone:\x1b[0m 4 steps: all",
    ]
    copy = (tmp_path / "log").read_text()
    assert "\x1b" not in copy and all(line in copy for line in PLAIN)


@pytest.mark.parametrize(
    ("terminal", "variables"), [(False, {}), (True, {"NO_COLOR": "1"}), (True, {"TERM": "dumb"})], ids=str
)
def test_pipes_and_those_who_ask_for_none_get_plain_lines(tmp_path, terminal, variables):
    assert said(tmp_path / "log", terminal=terminal, **variables) == PLAIN


def test_an_empty_no_color_asks_for_nothing(tmp_path):
    assert said(tmp_path / "log", terminal=True, NO_COLOR="")[1].startswith("\x1b[33m")
