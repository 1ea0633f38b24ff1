"""What people see while a run goes: a bar on a real terminal, lines in a pipe, and the same train.log from both."""

import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from seer.core import log
from seer.engine.progress import ProgressBar
from tests.program import ROOT, environment

RUN = """
import sys
from pathlib import Path
from seer.core import log
from seer.engine.progress import ProgressBar
log.setup()
log.keep_copy(Path(sys.argv[1]))
bar = ProgressBar(total_steps=20, first_step=0, chance_loss=4.85, quiet_s=0)
bar.write(0, {"knn_top1": 0.1, "images": 0.0})
for step in range(20):
    bar.moved(step + 1)
    if step % 10 == 9:
        bar.write(step, {"loss": 4.0 - step / 10, "images_per_s": 0.25, "data_wait": 0.1, "epoch": 1.5})
        bar._bar and bar._bar.refresh()
    if step == 14:
        bar.at("evaluating")
        bar.write(step, {"knn_top1": 0.5, "images": 320.0, "epoch": 1.7})
        bar.at("")
bar.close()
log.log.info("the end")
"""


def on_a_terminal(code: str, *words: str, columns: int = 150, rows: int = 40) -> str:
    """Returns all that a Python program wrote to a terminal of so many columns and rows."""
    ours, theirs = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdin=theirs, stderr=theirs, cwd=ROOT, env=environment()
    )
    os.close(theirs)
    said = bytearray()

    def read() -> None:
        try:
            while piece := os.read(ours, 65536):
                said.extend(piece)
        except OSError:  # the last writer is gone
            return

    thread = threading.Thread(target=read)
    thread.start()
    assert process.wait(timeout=60) == 0
    thread.join(timeout=10)
    os.close(ours)
    return said.decode()


def screen(text: str) -> list[str]:
    """Returns the lines as they stand in the end: a carriage return begins a line anew."""
    lines = []
    for raw in text.split("\n"):
        shown: list[str] = []
        for piece in raw.split("\r"):
            shown[: len(piece)] = piece
        lines.append("".join(shown).rstrip())
    return lines


def bars(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"step (\d+)/20 \[", text)]


@pytest.mark.slow
def test_the_bar_stays_below_every_line_and_moves_by_step(tmp_path):
    said = on_a_terminal(RUN, str(tmp_path / "log"))
    knn = said.index("step 15/20  knn_top1 0.5000")
    assert bars(said[knn : said.index("the end")])[0] == 15  # there again at once, not at the next logged step
    assert bars(said) == sorted(bars(said)) and bars(said)[-1] == 20
    assert len(set(bars(said))) > 3  # losses are logged twice
    lines = screen(said)
    assert [line for line in lines if line.startswith("step")] == [
        "step 0/20  knn_top1 0.1000", "step 15/20  knn_top1 0.5000",
    ]  # fmt: skip
    assert any("loss 2.100 (chance 4.85)" in line and "4.0 s/image" in line and "20/20" in line for line in lines)
    assert "evaluating" in said and "epoch 1.5" in said and lines.index("the end") > 2


@pytest.mark.slow
@pytest.mark.parametrize(("columns", "rows"), [(0, 0), (150, 0), (0, 40)])
def test_a_terminal_that_does_not_tell_its_size_has_a_bar_too(tmp_path, columns, rows):
    said = bars(on_a_terminal(RUN, str(tmp_path / "log"), columns=columns, rows=rows))
    assert said and said[-1] == 20


@pytest.mark.slow
def test_train_log_holds_the_same_lines_whoever_watched(tmp_path):
    on_a_terminal(RUN, str(tmp_path / "terminal"))
    piped = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "pipe")], capture_output=True, text=True, cwd=ROOT, env=environment()
    )

    def words(path: Path) -> list[str]:
        return [re.sub(r"\S+ s left", "", line.split(" ", 3)[3]) for line in path.read_text().splitlines()]

    assert words(tmp_path / "terminal") == words(tmp_path / "pipe")
    assert sum("loss" in line for line in words(tmp_path / "pipe")) == 2
    assert [line.split("  ")[0] for line in piped.stderr.splitlines()] == [
        "step 0/20", "step 10/20", "step 15/20", "step 20/20", "the end",
    ]  # fmt: skip


GONE = """
import os, pty, sys
from seer.core import log
ours, theirs = pty.openpty()
os.dup2(theirs, 2); os.close(theirs)
from seer.engine.progress import ProgressBar
log.setup()
bar = ProgressBar(total_steps=20, first_step=0)
os.close(ours)
for step in range(20):
    bar.moved(step + 1)
    bar.write(step, {"loss": 4.0, "images_per_s": 1.0, "data_wait": 0.1})
    bar.write(step, {"knn_top1": 0.4, "images": 1.0})
bar.close()
print("done")
"""


@pytest.mark.slow
def test_a_terminal_that_is_gone_does_not_end_the_run():
    ended = subprocess.run(
        [sys.executable, "-c", GONE], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment(), timeout=60
    )
    assert ended.stdout == "done\n"


def test_a_log_file_gets_few_lines_and_always_the_last_step(capfd):
    log.setup()
    bar = ProgressBar(total_steps=1000, first_step=0, chance_loss=4.85)
    for step in range(1000):
        bar.write(step, {"loss": 4.0, "images_per_s": 100.0, "data_wait": 0.1})
    bar.close()
    said = capfd.readouterr()
    lines = said.err.strip().splitlines()
    assert said.out == "" and len(lines) == 2
    assert lines[0].startswith("step 1/1000") and lines[1].startswith("step 1000/1000") and "chance 4.85" in lines[1]
