"""What people write for a source -> the paths it names, in a fixed order.

A folder of tars or of pictures, a tar, a glob, `{000..009}`, `{a,b}`, or `file:` before any of them. Odd names that are
on disk are names before they are patterns. No other URL is read here, and nothing ever reaches a shell.

Paths are strings and of a folder's entries those of tars alone are kept: it may hold millions of loose pictures.
"""

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from seer.core.errors import RequestError, StorageError

MOST_NAMES = 10_000_000  # that braces may stand for


def expand(source: str) -> list[str]:
    """Raises RequestError for what does not exist and for URLs, StorageError for a folder that cannot be listed."""
    if re.match(r"^[a-z][a-z0-9+.-]*:", source, re.IGNORECASE) and not os.path.exists(source):
        scheme = source.split(":", 1)[0]
        if scheme.lower() == "file":
            source = source[len("file:") :].removeprefix("//")
        else:
            raise RequestError(f"source {source!r}: scheme {scheme!r} is not read; give a local or mounted path")
    if os.path.isdir(source):
        path = str(Path(source))
        return _tars(path) or [path]
    if os.path.exists(source):
        return [str(Path(source))]
    found: list[str] = []
    for one in _braces(source):
        for path in sorted(glob.glob(one)) if glob.has_magic(one) else [one]:
            if not os.path.exists(path):
                raise RequestError(f"source {source!r}: {path} {_why(path)}; check the path")
            found.append(str(Path(path)))
    if not found:
        raise RequestError(f"source {source!r}: nothing does not exist; check the path")
    return found


def _tars(folder: str) -> list[str]:
    """Tars in a folder and those below, by their path's parts; hidden files and links to folders are passed over."""
    found: list[str] = []
    todo = ["" if folder == "." else folder.rstrip("/") + "/"]
    while todo:
        prefix = todo.pop()
        try:
            with os.scandir(prefix or ".") as entries:
                for entry in entries:
                    name = entry.name
                    if entry.is_dir(follow_symlinks=False):
                        if name != "lost+found":  # of the file system, and nobody may list it
                            todo.append(f"{prefix}{name}/")
                    elif name.endswith(".tar") and not name.startswith(".") and not entry.is_dir():
                        found.append(prefix + name)
        except OSError as error:
            raise StorageError(f"{prefix or '.'} cannot be listed: {error.strerror}") from error
    return sorted(found, key=lambda path: path.replace("/", "\0"))


def _why(path: str) -> str:
    try:
        os.stat(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {reason}"
    return "does not exist"


def _braces(source: str) -> Iterator[str]:
    for number, name in enumerate(_alternatives(source)):
        if number == MOST_NAMES:
            raise RequestError(f"source {source!r} stands for more than {MOST_NAMES} names; give a folder or a glob")
        yield name


def _alternatives(source: str) -> Iterator[str]:
    found = re.search(r"\{([^{}]*)\}", source)
    if not found:
        yield source
        return
    span = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if span and max(map(len, span.groups())) > 18:
        raise RequestError(f"source {source!r}: {{{span[0]}}} stands for more than {MOST_NAMES} names; give a folder")
    width = len(span[1]) if span else 0
    parts = (f"{i:0{width}d}" for i in range(int(span[1]), int(span[2]) + 1)) if span else found[1].split(",")
    for part in parts:
        yield from _alternatives(source[: found.start()] + part + source[found.end() :])
