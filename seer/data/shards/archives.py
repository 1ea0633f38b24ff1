"""Names archives that are not read: a file that was given for a tar, and archives that lie beside or inside
what is read.

A compressed tar has no rows that one seek finds, and the others are no tars at all; each is named with the command that
unpacks it. A file is judged by its first bytes, never by its name alone, and only where it does not begin as a tar does:
a tar's first bytes are a name, which may be anything.
"""

import shlex
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from seer.core.log import log

_COMPRESSED = (
    (b"\x1f\x8b", "gzip", "gunzip -c"),
    (b"BZh", "bzip2", "bunzip2 -c"),
    (b"\xfd7zXZ\0", "xz", "unxz -c"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -dc"),
    (b"\x04\x22\x4d\x18", "lz4", "lz4 -dc"),
)
_OTHERS = (
    (b"PK\x03\x04", "zip", "unzip {} -d FOLDER"),
    (b"7z\xbc\xaf\x27\x1c", "7z", "7z x {} -oFOLDER"),
    (b"Rar!\x1a\x07", "rar", "unrar x {} FOLDER/"),
)
_TABLES = (
    (b"PAR1", "a parquet table"),
    (b"ARROW1", "an Arrow file"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"\x93NUMPY", "an array of numpy"),
)
_PAGES = (b"<!doctype html", b"<html", b"<?xml")  # what a failed download leaves under the name of an archive
_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")
ENDINGS = (*_TARS, ".zip", ".7z", ".rar")  # .gz or .parquet alone are often tables that belong to tars


def what_it_is(path: Path, head: bytes) -> str | None:
    """Returns what a file that does not begin as a tar is and what to do with it; None where that is not known.

    head: its first bytes, some hundred.
    """
    quoted = shlex.quote(str(path))
    for magic, kind, command in _COMPRESSED:
        if head.startswith(magic):
            remedy = f"{command} {quoted} > {shlex.quote(str(_unpacked(path)))}"
            return f"{path} is compressed with {kind}, and only plain tars are read; run `{remedy}` and give what it writes"
    for magic, kind, command in _OTHERS:
        if head.startswith(magic):
            remedy = command.format(quoted)
            return f"{path} is a {kind} archive, no tar; run `{remedy}` and give that folder"
    for magic, kind in _TABLES:
        if head.startswith(magic):
            return f"{path} is {kind}, no tar; write its images out as files, and give their folder"
    if head.startswith(b"version https://git-lfs"):
        return f"{path} is a pointer of Git LFS, no tar; run `git lfs pull` where it lies"
    if head.lstrip().lower().startswith(_PAGES):
        return f"{path} is a web page, no tar, as a download that failed leaves; fetch the archive again"
    if path.suffix.lower() != ".tar" and _is_text(head):
        return f"{path} is text, no tar; a list of images or tars is a .txt with one path a line"
    return None


def _unpacked(path: Path) -> Path:
    """Returns a name for what a compressed tar holds, of no file that is there: the command would replace it."""
    ending = next((one for one in _TARS if path.name.lower().endswith(one)), path.suffix)
    stem = path.name[: len(path.name) - len(ending)]
    names = (path.with_name(f"{stem}{f'-{n}' if n > 1 else ''}.tar") for n in count(1))
    return next(one for one in names if not one.exists())


def tell(where: str, names: Sequence[str]) -> None:
    """Warns of archives that lie beside or inside what is read, where there are some."""
    if names:
        log.warning(
            f"{where}: {len(names)} archive{'s are' if names[1:] else ' is'} not read, the first {min(names)}; "
            "unpack what should be"
        )


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3 or not error.start:  # the last letter may be cut
            return False
        text = head[: error.start].decode("utf-8-sig")
    return bool(text) and all(c.isprintable() or c in "\t\r\n" for c in text)
