"""Writes RUN/environment.json: with which command, code, libraries and machine a run was started, and when.

A run that goes on somewhere else keeps what stood there before under `earlier`.
"""

import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import seer
from seer.core.errors import StorageError
from seer.core.secrets import cleaned
from seer.parallel.world import World

NAME = "environment.json"
LIBRARIES = ("torchvision", "numpy", "pillow", "safetensors", "hydra-core", "omegaconf")
MOST_EARLIER = 100  # starts that are kept


def record(folder: Path, world: World, command: Sequence[str] | None = None) -> None:
    """Writes the file. The first rank alone calls this. Raises StorageError."""
    path = folder / NAME
    now = describe(world, sys.argv if command is None else command)
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        earlier = [*before.pop("earlier", []), before]
    except (OSError, ValueError, AttributeError, TypeError):  # none, or one that a kill cut short
        earlier = []
    temporary = folder / f".{NAME}.writing"
    try:
        text = json.dumps({**now, "earlier": earlier[-MOST_EARLIER:]}, indent=2, ensure_ascii=False)
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error


def describe(world: World, command: Sequence[str]) -> dict[str, Any]:
    """Returns what the file holds of this start, without passwords and query strings of URLs."""
    commit, changed = commit_of(Path(__file__).resolve().parents[2])
    found: dict[str, Any] = {
        "command": shlex.join(cleaned(list(command))),
        "folder": os.getcwd(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu",
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "ranks": world.size,
        "seer": seer.__version__,
        "commit": commit,
        "changed": changed,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if world.device.type == "cuda":
        found["cuda"] = torch.version.cuda
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def made_by(world: World, command: Sequence[str] | None = None) -> dict[str, Any]:
    """Returns what a result says of how it was made: command, version and commit of SEER, torch, device, date, and the threads
    that share a sum on a CPU, by whose number a network's output differs in its last bits (torchrun gives each rank one)."""
    found = describe(world, sys.argv if command is None else command)
    names = ("command", "seer", "commit", "changed", "torch", "device", "processor", "date")
    return {**{name: found[name] for name in names}, "arithmetic_threads": torch.get_num_threads()}


@cache
def commit_of(folder: Path) -> tuple[str | None, bool | None]:
    """Returns the git commit of a checkout and whether files that git knows differ from it; nothing where there is no
    checkout, or no git."""
    if not (folder / ".git").exists():
        return None, None
    try:
        head = _git(folder, "rev-parse", "HEAD")
        return head, bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):  # no git, another owner's folder, a slow disk
        return None, None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def processor() -> str:
    """Returns the name of the processor, as Linux tells it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text(encoding="utf-8", errors="replace").splitlines() if told.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
