"""A heap of files of twenty kinds, as people have them, and what of it is read: told by hand, not by the rules of `seer`."""

from pathlib import Path

from tests.data.image_files import jpeg, png, write_tar

# kind -> how many; of images every ending, of the same bytes: what is read is told by names, and decoded by bytes
USED = {
    "jpg": 6,
    "jpeg": 1,
    "jfif": 2,
    "jpe": 1,
    "png": 2,
    "webp": 1,
    "bmp": 2,
    "gif": 2,
    "tif": 1,
    "tiff": 1,
    "avif": 1,
}
PASSED = {
    ".heic": 3,
    ".pdf": 2,
    ".txt": 1,
    ".cls": 1,
    ".mask.png": 1,
    ".zip": 1,
    ".tar.gz": 1,
    "no ending": 4,
    "._": 5,
    ".DS_Store": 2,
    "Thumbs.db": 1,
    "__MACOSX": 2,
    "hidden": 4,
}
COMPANIONS = {".cls": 4, ".json": 1, ".txt": 1, ".mask.png": 1}
EXPECTED = {"found": 55, "used": 20, "passed_over": PASSED, "companions": COMPANIONS, "classes": {"ant": 12, "bee": 8}}
assert sum(USED.values()) == EXPECTED["used"] == 55 - sum(PASSED.values()) - sum(COMPANIONS.values())


def files() -> dict[str, bytes]:
    """Name -> bytes, of two classes."""
    names: list[str] = []
    for number, ending in enumerate(ending for ending, count in USED.items() for _ in range(count)):
        names.append(f"{'ant' if number < 12 else 'bee'}/{number:03d}.{ending}")
    found = {name: png(n) if name.endswith("png") else jpeg(n) for n, name in enumerate(names)}
    for n in range(4):
        found[f"ant/{n:03d}.cls"] = b"0"
    found |= {"ant/000.json": b"{}", "ant/001.txt": b"an ant", "ant/000.mask.png": png(0)}
    for n in range(3):
        found[f"bee/live{n}.heic"] = b"\0\0\0\x18ftypheic" + bytes(32)
    found |= {"bee/a.pdf": b"%PDF-1.4", "notes.pdf": b"%PDF-1.4", "README.txt": b"what this is", "bee/alone.cls": b"1"}
    found |= {"bee/alone.mask.png": png(1), "more.zip": b"PK\3\4", "more.tar.gz": b"\x1f\x8b", "Thumbs.db": b"\xd0\xcf"}
    found |= {f"bee/{n}": jpeg(n) for n in range(90, 93)} | {"bee/scan.20240101": jpeg(93)}
    # of macOS: forks that end as images do, one of them between an image and its class when names are sorted
    found |= {f"ant/._{n:03d}.jpg": b"\0\5\x16\7" + bytes(60) for n in range(4)} | {"bee/._012.cls": b"\0\5\x16\7"}
    found |= {"ant/.DS_Store": b"Bud1", ".DS_Store": b"Bud1", "__MACOSX/ant/._x.jpg": b"\0", "__MACOSX/y.jpg": jpeg(1)}
    found |= {".hidden.jpg": jpeg(2), ".thumbs/a.jpg": jpeg(3), ".thumbs/b.cls": b"0", "ant/.b.png": png(4)}
    return found


def in_folder(path: Path) -> Path:
    for name, data in files().items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def in_tar(path: Path, prefix: str = "") -> Path:
    return write_tar(path, sorted((prefix + name, data) for name, data in files().items()))
