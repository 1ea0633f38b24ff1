"""Lets workers take turns: A B A B …, one at a time, each in a process of its own with one thread."""

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

WORKER = Path(__file__).parent / "worker.py"
ONE_THREAD = {
    name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
}


def environment() -> dict[str, str]:
    """Returns the environment of every process that is measured. No PYTHONPATH: each side is what its own interpreter finds."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONSTARTUP")}
    return {**kept, **ONE_THREAD, "CUDA_VISIBLE_DEVICES": "", "NO_ALBUMENTATIONS_UPDATE": "1"}


class Failed(RuntimeError):
    """A worker that ended before its answer; str: the last lines it wrote."""


class Worker:
    """A process of one side that makes the parties of an area, and does a turn of one when asked.

    python  interpreter of its side
    side    ours or peers
    """

    def __init__(self, python: str, side: str):
        self.words = tempfile.TemporaryFile("w+")  # closed with the worker
        self.side, self.area = side, ""
        self.process = subprocess.Popen(
            [python, str(WORKER), side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.words,
            text=True,
            env=environment(),
        )
        self.parties: list[str] = []

    def make(self, area: str, given: dict[str, Any]) -> None:
        """Asks for the parties of an area, without waiting for them."""
        self.area = area
        self._ask({"area": area, "given": given})

    def ready(self) -> "Worker":
        """Waits until it has made its parties."""
        self.parties = self._answer()["parties"]
        return self

    def turn(self, party: str, trim: bool = False) -> dict[str, Any]:
        """Lets it do one turn. Returns what worker.py says of it. trim: what was freed does not hide what the turn takes."""
        self._ask({"turn": party, "trim": trim})
        return self._answer()

    def _ask(self, words: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its answer, then missing, says why
            self.process.stdin.write(json.dumps(words) + "\n")
            self.process.stdin.flush()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            self.words.seek(0)
            last = "\n".join(self.words.read().strip().splitlines()[-12:])
            raise Failed(f"{self.side}/{self.area} ended with {status} before its answer:\n{last}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        self.words.close()


@contextlib.contextmanager
def pool(pythons: Mapping[str, str], sides: Sequence[str]) -> Iterator[list[Worker]]:
    """Starts a worker for each side named that has an interpreter, and ends them."""
    started: list[Worker] = []
    try:
        for side in sides:
            if side in pythons:
                started.append(Worker(pythons[side], side))
        yield started
    finally:
        for worker in started:
            worker.close()


def take_turns(
    workers: Sequence[Worker], turns: int, warm_up: int
) -> Iterator[tuple[int, Worker, str, dict[str, Any]]]:
    """Yields (turn, worker, party, answer); in every turn each party of every worker has its go. Those of the warm-up lie below 0;
    the last of them begins without freed memory."""
    for turn in range(-warm_up, turns):
        for worker in workers:
            for party in worker.parties:
                yield turn, worker, party, worker.turn(party, trim=turn == -1)
