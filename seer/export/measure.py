"""Measures programs in processes of their own: time to load, of the first run and of many, resident memory.

Surprising:
- Two programs are timed in turn, run by run: on a machine that others use, one after the other says more of the neighbours than of
  the programs (an int8 program came out slower than its float). Their ratio is the median of the pairs' ratios.
- Time is that of one image in the runtime alone: pixels are made ready before, and a normalization that is not inside is not timed.
- The file lies in the system's cache when it is loaded, since its hash was just computed.
- Memory is told over that of the idle runtime: resident after the runs, and at its highest since loading began.

Legend: N images, C channels, S side.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from seer.core.errors import RequestError
from seer.export import device
from seer.export.gate import arena_mb
from seer.export.optional import NotInstalledError

WARM = 3  # runs between the first one and those that count
INSTALLS = {"onnx": "'seer-pretrain[onnx]'", "executorch": "'seer-pretrain[device]'", "torch_export": "torch"}
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "bf16", "sve")
MOST_AT_ONCE = 16  # images of one call where accuracy is asked for


class Running:
    """Holds a program in a process with its runtime; leave it with `close`. described: of `program_file.read`."""

    def __init__(self, file: Path, described: Mapping[str, Any], threads: int):
        self.file, self.described = file, described
        self.names = [one["name"] for one in described["outputs"]]
        self._errors = tempfile.TemporaryFile()
        variables = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))}
        self._process = subprocess.Popen(
            [sys.executable, "-P", device.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=variables,
        )
        how = described["preprocessing"]
        given = {"values": described["input"]["values"], "mean": how["mean"], "std": how["std"]}
        try:
            self.started = self._ask("start", target=described["target"], threads=threads, how=given)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        for one in (self._process.stdin, self._process.stdout, self._errors):
            one.close()  # type: ignore[union-attr]

    def feed(self, levels: np.ndarray) -> None:
        """Makes images ready to be run: uint8 [N, C, S, S], levels 0 to 255."""
        self._ask("feed", levels)

    def load(self) -> dict[str, Any]:
        """Loads the file: `ms`, and `idle_mb` of the runtime before."""
        return self._ask("load", file=str(self.file.absolute()), names=self.names)

    def time(self) -> dict[str, Any]:
        """Runs once: `ms`, and `busy_ms` of all its threads."""
        return self._ask("time")

    def memory(self) -> dict[str, Any]:
        """Returns `resident_mb` now, and `peak_mb` since loading began."""
        return self._ask("memory")

    def run(self, levels: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the outputs of images [N, C, S, S] by name, so many at a time as the program takes, 16 at the most."""
        most = min(MOST_AT_ONCE, self.described["batch"]["most"])
        found: list[dict[str, np.ndarray]] = []
        for first in range(0, len(levels), most):
            self.feed(levels[first : first + most])
            told = self._ask("run")
            found.append({name: told[name] for name in self.names})
        return {name: np.concatenate([one[name] for one in found]) for name in self.names}

    def _ask(self, do: str, levels: np.ndarray | None = None, **words: Any) -> dict[str, Any]:
        """Returns the answer to a request. Raises NotInstalledError without the runtime, RequestError for a file that it refuses."""
        asked: dict[str, Any] = {"do": do, "words": words}
        data = b"" if levels is None else np.ascontiguousarray(levels, dtype=np.uint8).tobytes()
        if levels is not None:
            asked |= {"shape": list(levels.shape), "bytes": len(data)}
        given, answers = self._process.stdin, self._process.stdout
        assert given is not None and answers is not None
        try:
            given.write(json.dumps(asked).encode() + b"\n" + data)
            given.flush()
            line = answers.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise RuntimeError(
                f"{self.file}: the process with its runtime ended with status {self._process.wait()} when asked to {do}; "
                f"it had said: {self._said()}"
            )
        told = json.loads(line)
        for name, kind, shape in told.pop("arrays"):
            kind = np.dtype(kind)
            raw = answers.read(kind.itemsize * int(np.prod(shape)))
            told[name] = np.frombuffer(raw, dtype=kind).reshape(shape)
        if "error" in told:
            target = self.described["target"]
            if told["missing"]:
                raise NotInstalledError(
                    f"{self.file} is run by its own runtime, which cannot be imported ({told['error']}): pip install {INSTALLS[target]}"
                )
            raise RequestError(f"{self.file}: its runtime, asked to {do}, says {told['error']}")
        return told

    def _said(self) -> str:
        self._errors.seek(0)
        return self._errors.read()[-2000:].decode(errors="replace").strip() or "nothing"


def timed(programs: Sequence[Running], runs: int) -> list[dict[str, Any]]:
    """Loads and runs programs in turn, and returns a row of figures each; `ratios` to the first, of pairs of runs."""
    rows = []
    for program in programs:
        _, channels, side, _ = program.described["input"]["shape"]
        levels = np.random.default_rng(0).integers(0, 256, (1, channels, side, side), dtype=np.uint8)
        program.feed(levels)
        loaded = program.load()
        rows.append({**_static(program), **program.started, "load": loaded, "first": program.time()})
    each: list[list[dict[str, Any]]] = [[] for _ in programs]
    for _ in range(WARM + runs):
        for found, program in zip(each, programs, strict=True):
            found.append(program.time())
    counted = [found[WARM:] for found in each]
    first = [one["ms"] for one in counted[0]]
    return [
        _row(row, found, program.memory(), first) for row, found, program in zip(rows, counted, programs, strict=True)
    ]


def _row(
    row: dict[str, Any], found: list[dict[str, Any]], memory: Mapping[str, Any], first: Sequence[float]
) -> dict[str, Any]:
    loaded, begun = row.pop("load"), row.pop("first")
    each = [one["ms"] for one in found]
    idle = loaded["idle_mb"]
    return {
        **row,
        "load_ms": round(loaded["ms"], 2),
        "first_ms": round(begun["ms"], 3),
        "median_ms": round(median(each), 3),
        "p90_ms": round(sorted(each)[-(-9 * len(each) // 10) - 1], 3),
        "cores_used": round(sum(one["busy_ms"] for one in found) / sum(each), 2),
        "idle_mb": round(idle, 1),
        "rss_mb": round(memory["resident_mb"] - idle, 1),
        "rss_peak_mb": round(memory["peak_mb"] - idle, 1) if loaded["peak_known"] else None,
        "times_the_first": round(median(own / other for own, other in zip(each, first, strict=True)), 3),
    }


def _static(program: Running) -> dict[str, Any]:
    """Returns what the file's description tells."""
    described = program.described
    return {
        "file": str(program.file),
        "target": described["target"],
        "precision": described.get("precision", "fp32"),
        "file_mb": described["bytes"] / 1e6,
        "sha256": described["sha256"],
        "cost": described["cost"],
        "arena_mb": arena_mb(described),
    }


def measure(
    files: Sequence[tuple[Path, Mapping[str, Any]]], threads: int, runs: int, stack: ExitStack
) -> tuple[list[Running], list[dict[str, Any]]]:
    """Starts each file with its description in a process of its own, and returns these, which end with `stack`, and `timed` of them."""
    programs = [stack.enter_context(Running(file, described, threads)) for file, described in files]
    return programs, timed(programs, runs)


def machine() -> dict[str, Any]:
    """Returns the processor's instructions that matter to networks, the cores of this process, and the load of the last minute."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8", errors="replace").splitlines() if told.exists() else []
    words = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return {
        "instructions": [flag for flag in FLAGS if flag in words],
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
    }
