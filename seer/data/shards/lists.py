"""Reads lists of paths as programs and people save them: UTF-8 with a byte order mark or without, UTF-16 with one.

What is in no encoding that a mark names are bytes, as names of files are. A line that is not UTF-8 and that no file has for
its name was most likely saved in Latin-1: it is refused with the command that converts the list.
"""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from seer.core.errors import RequestError, StorageError

_MARKS = ((b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_UTF_8_MARK = b"\xef\xbb\xbf"


def numbered_lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Yields the number of each line that is not empty, from 1, and the line without its end. Raises RequestError for a line
    in an encoding that is not told by a mark, StorageError."""
    try:
        with open(file, "rb") as binary:
            head = binary.read(4)
        marked = next((encoding for mark, encoding in _MARKS if head.startswith(mark)), None)
        if marked is not None:
            with open(file, encoding=marked) as text:
                for number, words in enumerate(text, 1):
                    if words.rstrip("\r\n"):
                        yield number, os.fsencode(words.rstrip("\r\n"))
            return
        with open(file, "rb") as lines:
            lines.seek(len(_UTF_8_MARK) if head.startswith(_UTF_8_MARK) else 0)
            for number, line in enumerate(lines, 1):
                name = line.rstrip(b"\r\n")
                if name and not name.isascii():
                    _check(file, number, name)
                if b"\0" in name:
                    raise RequestError(
                        f"{file}, line {number}: {name[:200]!r} has zeros in it, as UTF-16 has without a byte order mark; save "
                        "the list as UTF-8"
                    )
                if name:
                    yield number, name
    except UnicodeError as error:
        raise RequestError(
            f"{file} begins with the mark of {marked} and is not in it: {error}; save it as UTF-8"
        ) from error
    except OSError as error:
        raise StorageError(f"{file}: {error.strerror}") from error


def _check(file: Path, number: int, name: bytes) -> None:
    """Raises RequestError for a line that is not UTF-8 where no file has its bytes for a name."""
    try:
        name.decode("utf-8")
    except UnicodeDecodeError:
        folder = os.fsencode(file.parent)
        if os.path.lexists(os.path.join(folder, name)):
            return
        read = name.decode("latin-1")
        there = "\0" not in read and os.path.lexists(os.path.join(folder, read.encode("utf-8")))
        why = f"{read} is there: the list is in Latin-1" if there else "the list may be in Latin-1 or another encoding"
        new = shlex.quote(str(file.with_name(f"{file.stem}-utf8{file.suffix}")))
        raise RequestError(
            f"{file}, line {number}: {name[:200]!r} is not UTF-8, and no file has these bytes for its name; {why}; run `iconv "
            f"-f LATIN1 -t UTF-8 {shlex.quote(str(file))} > {new}`, or save it as UTF-8"
        ) from None
