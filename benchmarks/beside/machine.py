"""Says what a figure was measured on: processor and its kind, memory, versions of all packages, commit, date."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BF16 = ("amx_bf16", "avx512_bf16")


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """Returns the model and the kind of the first processor: bf16, AVX-512 or neither; by its flags, as lscpu shows them."""
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.is_file() else []
    facts: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    flags = set(facts.get("flags", "").split())
    has = [flag for flag in BF16 if flag in flags]
    kind = (
        f"bf16 ({', '.join(has)})"
        if has
        else "AVX-512 without bf16"
        if "avx512f" in flags
        else "neither bf16 nor AVX-512"
    )
    return {"processor": facts.get("model name", platform.machine()), "kind": kind}


def commit() -> str:
    """Returns the short name of the commit, with + where files differ from it; "none" outside a checkout."""
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=10", "--exclude=*"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "none"


def versions(python: str) -> dict[str, str]:
    """Returns name -> version of what that interpreter finds installed, the first found of each."""
    script = "import sys; sys.path.insert(0, sys.argv[1]); import machine; print(machine.installed())"
    done = subprocess.run(
        [python, "-c", script, str(Path(__file__).parent)], capture_output=True, text=True, check=True
    )
    found: dict[str, str] = json.loads(done.stdout)
    return found


def installed() -> str:
    """Returns, as JSON, name -> version of what this interpreter finds; of two of a name the one that is imported."""
    found: dict[str, str] = {}
    for one in distributions():
        found.setdefault(one.metadata["Name"], one.version)
    return json.dumps(dict(sorted(found.items(), key=lambda row: row[0].lower())))


def described() -> dict[str, Any]:
    """Returns the facts of the head of a page."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "commit": commit(),
    }
