"""Running the program as its users do: in this process for speed, or as one or several processes."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from seer.cli.main import main
from tests.ranks import forked

ROOT = Path(__file__).resolve().parents[1]
# A real pretraining step at the smallest size: RegNetY-200MF, two resolutions, prototypes, Sinkhorn, LARS.
SMALL = (
    "model=regnety_200mf",
    "augment=small",
    "augment.counts=[2,2]",
    "task.prototypes=16",
    "task.hidden=[32]",
    "task.embedding=16",
    "batch=16",
    "every.log=1",
    "every.evaluate=0",
    "log.tensorboard=false",
    "data.threads=1",
    "parallel.device=cpu",
)


def last_of_each(words: tuple[str, ...]) -> list[str]:
    """Words that say a key twice, as in `(*SMALL, "batch=8")`, with the last of them alone; the program refuses both."""
    return [
        w
        for i, w in enumerate(words)
        if "=" not in w or all(v.partition("=")[0] != w.partition("=")[0] for v in words[i + 1 :])
    ]


@dataclass
class Ended:
    status: int
    result: dict[str, Any]  # the JSON line
    words: str  # what people saw


def seer(capfd: pytest.CaptureFixture[str], *words: str) -> Ended:
    """A verb in this process."""
    capfd.readouterr()
    status = main(last_of_each(words))
    out, err = capfd.readouterr()
    return Ended(status, json.loads(out.strip().splitlines()[-1]) if out.strip() else {}, err)


def environment(fault: str | None = None) -> dict[str, str]:
    """fault: one of those in `tests/faults`."""
    faulty = {"SEER_FAULT": fault, "PYTHONPATH": f"{ROOT / 'tests' / 'faults'}:{ROOT}"} if fault else {}
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **faulty}


def start(*words: str, ranks: int = 1, folder: Path | None = None, fault: str | None = None) -> subprocess.Popen[str]:
    """A verb as a process of its own, or as several under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "seer", *last_of_each(words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment(fault), cwd=folder or ROOT)


def wait(process: subprocess.Popen[str], limit_s: float = 300) -> Ended:
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        process.kill()  # ranks end when they miss their launcher
        said = (error.stderr or b"").decode(errors="replace")
        raise AssertionError(f"process {process.pid} still ran after {limit_s} s; it had said:\n{said}") from None
    lines = out.strip().splitlines()
    return Ended(process.returncode, json.loads(lines[-1]) if lines else {}, err)


def went_on_from(ended: Ended) -> int | None:
    """Returns the step that the run said it goes on from; None where it started anew."""
    found = re.search(r"going on from step (\d+)", ended.words)
    return int(found[1]) if found else None


def alive(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pids: Iterable[int], limit_s: float = 30) -> bool:
    """Whether all these processes end: one that has closed its pipes may still be about to."""
    end = time.monotonic() + limit_s
    while left := [pid for pid in pids if alive(pid)]:
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
        pids = left
    return True


def processor_s(code: str, *words: str, limit_s: float = 60) -> tuple[list[str], float]:
    """Runs Python code in a process of its own; returns the words that it printed last and the seconds of processor time."""
    told = "; import resource; used = resource.getrusage(resource.RUSAGE_SELF); print(used.ru_utime + used.ru_stime)"
    command = [sys.executable, "-c", code + told, *words]
    names = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, env=names)
    assert ended.stdout, ended.stderr
    *said, seconds = ended.stdout.split()
    return said, float(seconds)


YARDSTICK = (
    "import asyncio, email.message, http.server, unittest.mock, xmlrpc.client"  # 0.08 s where the limits were set
)


def slowness() -> float:
    """How many times as long as where limits of processor time were set this machine takes now; at least 1."""
    return max(1.0, min(processor_s(YARDSTICK)[1] for _ in range(3)) / 0.08)


def losses(run: Path) -> list[float]:
    """The loss of every step that a run has logged, exactly as written."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def finished(*words: str, ranks: int = 1) -> Ended:
    """A verb to its end in processes of its own, forks of one that has imported the program, with the variables that torchrun
    sets: imports are most of what a short run costs (two ranks, 20 steps: 24 s of the processors under torchrun, 15 so). For
    tests of what a run computes, not of how it starts and is stopped. The status is the highest of all ranks, the result that of
    the rank that speaks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="seer-program-") as folder:
        forked(_one_of, ranks, ranks, port, folder, last_of_each(words))
        said = [
            [Path(folder, f"{rank}.{what}").read_text() for what in ("status", "out", "err")] for rank in range(ranks)
        ]
    # one rank speaks: of a failure the one that failed first, which need not be the first rank
    lines = "".join(out for _, out, _ in said).strip().splitlines()
    return Ended(
        max(int(s) for s, _, _ in said), json.loads(lines[-1]) if lines else {}, "".join(e for _, _, e in said)
    )


def _one_of(rank: int, ranks: int, port: int, folder: str, words: list[str]) -> None:
    here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in here.items()} if ranks > 1 else {})
    for stream, what in ((sys.stdout, "out"), (sys.stderr, "err")):
        os.dup2(os.open(Path(folder, f"{rank}.{what}"), os.O_WRONLY | os.O_CREAT), stream.fileno())
    sys.argv = ["seer", *words]  # what a run writes down
    status = main(words)
    sys.stdout.flush(), sys.stderr.flush()
    Path(folder, f"{rank}.status").write_text(str(status))
    os._exit(0)  # gloo's threads may abort while the interpreter unwinds
