"""Says what a file is that was given for weights and holds none, from its first bytes; never from its name.

Surprising: nothing is opened or unpacked to find out, and what is not recognized is not guessed at: the answer is None.
"""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

LFS = b"version https://git-lfs.github.com/spec/"
_LONGEST = 4096  # bytes read of a file
_UNPACK = "unpack it, and give the file of weights in it"
_MAGIC: tuple[tuple[bytes, str, str], ...] = (  # first bytes, what that is, what to do
    (b"\x1f\x8b", "a gzip file", _UNPACK),
    (b"BZh", "a bzip2 file", _UNPACK),
    (b"\xfd7zXZ\x00", "an xz file", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd file", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a rar archive", _UNPACK),
    (b"\xff\xd8\xff", "a JPEG image", "give a file of weights"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image", "give a file of weights"),
    (b"GIF8", "a GIF image", "give a file of weights"),
    (b"%PDF-", "a PDF", "give a file of weights"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes", "convert it to safetensors where it was made"),
    (b"\x93NUMPY", "a numpy array", "save a state dict: names -> tensors"),
    (b"GGUF", "a GGUF file", "give weights in safetensors or of torch.save"),
    (b"PAR1", "a parquet file", "give a file of weights"),
)
_TEXTS = ((b"<!doctype html", "an HTML page"), (b"<html", "an HTML page"), (b"<?xml", "an XML text"))


def is_safetensors(path: Path) -> bool:
    """Returns whether a file begins as safetensors do: the length of a header within the file, and the header."""
    with open(path, "rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and struct.unpack("<Q", head[:8])[0] <= path.stat().st_size - 8


def is_torch_zip(path: Path) -> bool:
    """Returns whether a file begins as torch.save's do since torch 1.6, as a zip."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def kind_of(path: Path) -> str | None:
    """Returns what a file is and what to do about it, "a gzip file: unpack it, …"; None where that cannot be told."""
    size = path.stat().st_size
    if not size:
        return "an empty file, of 0 bytes: fetch or save it again"
    with open(path, "rb") as file:
        head = file.read(_LONGEST)
    if head.startswith(LFS):
        return f"a pointer of git-lfs, {size} bytes that name the true file: fetch that, as by `git lfs pull`"
    for magic, kind, remedy in _MAGIC:
        if head.startswith(magic):
            return f"{kind}: {remedy}"
    if head[257:262] == b"ustar":
        return f"a tar archive: {_UNPACK}"
    if head[:4] == b"PK\x03\x04":
        return _zip(path)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "a WebP image: give a file of weights"
    return _text(head, size)


def _zip(path: Path) -> str | None:
    try:
        if not zipfile.is_zipfile(path):
            return "a zip, as torch.save writes, that is cut off (its end is missing): fetch or save it again"
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, struct.error) as error:
        return f"a zip whose list of contents is damaged ({error}): fetch or save it again"
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last:
        return (
            "a TorchScript program: save its state dict, torch.save(torch.jit.load(…).state_dict(), …), and give that"
        )
    if "data.pkl" in last:
        return None
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of numpy arrays: save a state dict of tensors instead"
    return f"a zip archive, with {', '.join(map(repr, names[:3])) or 'nothing'} in it: {_UNPACK}"


def _text(head: bytes, size: int) -> str | None:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    for begin, kind in _TEXTS:
        if start[: len(begin)].lower() == begin:
            return f"{kind} of {size} bytes, perhaps an answer of a server in place of the file: fetch the file again"
    if b"\0" in head:
        return None
    try:
        words = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3 or size <= len(head):  # else a character was cut by the reading
            return None
        words = head[: error.start].decode("utf-8")
    if any(not letter.isprintable() and letter not in "\t\r\n" for letter in words):
        return None
    if start[:1] in b"{[" and start:
        try:
            json.loads(words)
        except ValueError:
            if size <= len(head):
                return f"a text of {size} bytes: give a file of weights"
        return f"a JSON text of {size} bytes: give the file of weights beside it"
    return f"a text of {size} bytes that begins with {words.split(chr(10), 1)[0][:40]!r}: give a file of weights"
