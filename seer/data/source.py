"""What people write for a source -> the paths it names, in a fixed order.

A folder of tars or of pictures, a tar, a glob, `{000..009}`, `{a,b}`, or `file:` before any of them. Odd names that are
on disk are names before they are patterns. No other URL is read here, and nothing ever reaches a shell.
"""

import glob
import os
import re
from pathlib import Path

from seer.core.errors import RequestError


def expand(source: str) -> list[Path]:
    """Raises RequestError for what does not exist and for URLs."""
    if re.match(r"^[a-z][a-z0-9+.-]*:", source, re.IGNORECASE) and not os.path.exists(source):
        scheme = source.split(":", 1)[0]
        if scheme.lower() == "file":
            source = source[len("file:") :].removeprefix("//")
        else:
            raise RequestError(f"source {source!r}: scheme {scheme!r} is not read; give a local or mounted path")
    path = Path(source)
    if path.is_dir():
        tars = sorted(p for p in path.rglob("*.tar") if not p.name.startswith("."))
        return tars or [path]
    if path.exists():
        return [path]
    found = [Path(p) for one in _braces(source) for p in (sorted(glob.glob(one)) if glob.has_magic(one) else [one])]
    missing = [p for p in found if not p.exists()]
    if missing or not found:
        raise RequestError(f"source {source!r}: {missing[0] if missing else 'nothing'} does not exist; check the path")
    return found


def _braces(source: str) -> list[str]:
    found = re.search(r"\{([^{}]*)\}", source)
    if not found:
        return [source]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if span:
        width = len(span[1])
        parts = [f"{i:0{width}d}" for i in range(int(span[1]), int(span[2]) + 1)]
    else:
        parts = found[1].split(",")
    return [full for part in parts for full in _braces(source[: found.start()] + part + source[found.end() :])]
