"""Finds the paths that a source names, as people write it, in a fixed order.

A folder of tars or of images, a tar, an image, a .txt with a path a line, a glob (in which `**` is any number of folders),
`{000..009}`, `{a,b}`, or `file:` before any of them. Odd names that are
on disk are names before they are patterns. No other URL is read here, and nothing ever reaches a shell.

A folder is whole or refused: shards that `seer shard` has not finished, and tars with loose images beside them, of
which one kind would be left out in silence, are refused; archives of other kinds beside them are told. Paths are strings,
and of a folder's entries those of tars and archives alone are kept: it may hold millions of loose images.
"""

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from seer.core.errors import RequestError, StorageError
from seer.data.shards import archives
from seer.data.shards.census import Census, concealed, kind_of
from seer.data.shards.folder import ENDINGS
from seer.data.shards.index import INDEX_SUFFIX
from seer.data.shards.lists import numbered_lines
from seer.data.shards.names import OLDER_IMAGE_ENDINGS, split
from seer.data.shards.writer import JOURNAL, SHARDS_MANIFEST

_OLDER_ENDINGS = tuple(f".{ending}" for ending in sorted(OLDER_IMAGE_ENDINGS))
# what `seer shard` writes beside tars
_OWN = (INDEX_SUFFIX, ".names.jsonl", SHARDS_MANIFEST, JOURNAL, "skipped.jsonl", "result.json")
MOST_NAMES = 10_000_000  # that braces may stand for


class Found(NamedTuple):
    paths: list[str]  # of tars, of images, of a folder of images or a list of them
    manifests: list[str]  # folders (with a slash behind) of a folder that was searched, in which a manifest lies
    loose: str | None = None  # an image of such a folder that is in no tar
    census: Census | None = None  # of what lies beside tars, or matches a pattern and is none of the paths


def expand(source: str, older: bool = False) -> Found:
    """Returns what a source names. Raises RequestError for what does not exist and for URLs, StorageError for a
    folder that cannot be listed. older: as earlier versions did, for a run that began with one: `**` is `*`, what lies in
    hidden folders is taken, and all that a pattern matches is read."""
    if re.match(r"^[a-z][a-z0-9+.-]*:", source, re.IGNORECASE) and not os.path.exists(source):
        scheme = source.split(":", 1)[0]
        if scheme.lower() == "file":
            source = source[len("file:") :].removeprefix("//")
        else:
            raise RequestError(f"source {source!r}: scheme {scheme!r} is not read; give a local or mounted path")
    if os.path.isdir(source):
        path = str(Path(source))
        found = _search(path, older)
        return found if found.paths else Found([path], found.manifests, found.loose)
    if os.path.exists(source):
        path = str(Path(source))
        return Found(_tars_listed(path) or [path], [])
    named: list[str] = []
    manifests: list[str] = []
    census = Census()
    for one in _braces(source):
        for path in _matches(one, older, census) if glob.has_magic(one) else [one]:
            if not os.path.exists(path):
                raise RequestError(f"source {source!r}: {path} {_why(path)}; check the path")
            inside = _search(str(Path(path)), older) if os.path.isdir(path) and not older else None
            if inside is not None and inside.paths:
                named += inside.paths
                manifests += inside.manifests
                census.add(inside.census or Census())
            else:
                named.append(str(Path(path)))
    if not named:
        raise RequestError(f"source {source!r}: what matches it does not exist; check the path")
    return Found(named, manifests, census=census)


def _search(folder: str, older: bool) -> Found:
    """Finds the tars in a folder and those below, by their path's parts; what is hidden and links to folders are
    passed over."""
    tars: list[str] = []
    manifests: list[str] = []
    unread: list[str] = []
    loose: str | None = None
    census = Census()
    todo = ["" if folder == "." else folder.rstrip("/") + "/"]
    while todo:
        prefix = todo.pop()
        try:
            with os.scandir(prefix or ".") as entries:
                for entry in entries:
                    name = entry.name
                    if entry.is_dir(follow_symlinks=False):
                        # lost+found is of the file system, and nobody may list it
                        if name != "lost+found" and (older or not concealed(f"{name}/x")):
                            todo.append(f"{prefix}{name}/")
                    elif name == JOURNAL:
                        refuse_unfinished(prefix)
                    elif name == SHARDS_MANIFEST:
                        manifests.append(prefix)
                    elif name.endswith(".tar") and name[0] != ".":
                        if not entry.is_dir():
                            tars.append(prefix + name)
                    elif not name.endswith(_OWN):
                        census.pass_over(concealed(name) or kind_of(name, split(name)[1]))
                        if name[0] == ".":
                            continue
                        if name.lower().endswith(archives.ENDINGS):
                            unread.append(prefix + name)
                        elif loose is None and name.lower().endswith(_OLDER_ENDINGS):
                            loose = prefix + name
        except OSError as error:
            raise StorageError(f"{prefix or '.'} cannot be listed: {error.strerror}") from error
    if tars and loose is not None:
        raise RequestError(
            f"source {folder} holds {len(tars)} tars, like {min(tars)}, and loose images, like {loose}; give one "
            f"kind of them: {folder}/*.tar, or a folder of each kind"
        )
    archives.tell(folder, unread)
    return Found(sorted(tars, key=lambda path: path.replace("/", "\0")), sorted(manifests), loose, census)


def _matches(pattern: str, older: bool, census: Census) -> list[str]:
    """Returns what a pattern stands for, sorted. Where it matches images, tars or folders, other files that it matches are
    counted and not read. census: receives these."""
    if older:
        return sorted(glob.glob(pattern))
    found = sorted(dict.fromkeys(_globbed(pattern)))
    if "**" in pattern.split("/"):
        found = _outermost(found)
    read = [path for path in found if path.endswith(".tar") or is_image(path) or os.path.isdir(path)]
    if not read:
        return found
    kept = set(read)
    for path in found:
        if path not in kept and not path.endswith(_OWN):
            name = os.path.basename(path)
            census.pass_over(concealed(name) or kind_of(name, split(name)[1]))
    return read


def _globbed(pattern: str) -> Iterator[str]:
    """Yields what matches a pattern in which `**` is any number of folders, none among them. Links are followed, but not
    into a folder that lies above: Python's own does that forty times."""
    parts = pattern.split("/")
    if "**" not in parts:
        yield from glob.glob(pattern)
        return
    at = parts.index("**")
    head, tail = "/".join(parts[:at]) + ("/" if at == 1 and not parts[0] else ""), "/".join(parts[at + 1 :])
    for base in (glob.glob(head) if glob.has_magic(head) else [head]) if head else [""]:
        for folder in _folders(base, _above(base)):
            inside = glob.escape(os.path.join(folder, "")) if folder else ""
            if tail.strip("/"):
                yield from _globbed(inside + tail)
            else:
                yield from (path for path in glob.glob(inside + "*") if not os.path.isdir(path))


def _above(path: str) -> tuple[tuple[int, int], ...]:
    """Returns (device, inode) of the folders that a path leads through."""
    found = (os.stat(parent) for parent in Path(path).parents if os.path.isdir(parent) and str(parent) != path)
    return tuple((status.st_dev, status.st_ino) for status in found) if path else ()


def _folders(path: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Yields a folder and all below it that are not hidden. above: (device, inode) of the way here."""
    try:
        status = os.stat(path or ".")
        if (status.st_dev, status.st_ino) in above:
            return
        with os.scandir(path or ".") as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not concealed(f"{entry.name}/x"))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise StorageError(f"{path or '.'} cannot be listed: {error.strerror}") from error
    yield path
    for name in names:
        yield from _folders(os.path.join(path, name), (*above, (status.st_dev, status.st_ino)))


def _outermost(paths: list[str]) -> list[str]:
    """Returns sorted paths without those that lie in a folder among them, which would be read twice."""
    folders = {path for path in paths if os.path.isdir(path)}
    if not folders:
        return paths
    return [path for path in paths if folders.isdisjoint(map(str, Path(path).parents))]


def is_list(path: str) -> bool:
    return path.lower().endswith(".txt")


def is_image(path: str) -> bool:
    return path.lower().endswith(ENDINGS)


def _tars_listed(path: str) -> list[str]:
    """Returns the tars of a list whose first line is one; it may as well name a million images, and then it is
    left as it is."""
    if not is_list(path) or not os.path.isfile(path):
        return []
    _, first = next(numbered_lines(Path(path)), (0, b""))
    if not first.endswith(b".tar"):
        return []
    names = [os.fsdecode(name) for _, name in numbered_lines(Path(path))]
    found = [str(Path(path).parent / name) for name in names]
    for name in found:
        if not name.endswith(".tar") or not os.path.exists(name):
            raise RequestError(
                f"{path}: {name} {_why(name) if name.endswith('.tar') else 'is no .tar as the first is'}"
            )
    return found


def refuse_unfinished(folder: str) -> None:
    raise RequestError(
        f"{folder or '.'} holds shards that are not all written ({JOURNAL}); run the same `seer shard` again, which "
        "goes on where it stopped"
    )


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
