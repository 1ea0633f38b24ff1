"""Hostile files and words: nothing runs, nothing is written outside, nothing is waited for, and each gets one clear line.

Every payload tries to make the folder `ran` or the file `ran` in a folder of its own. A payload is a function that builds
its files in a folder and returns the source to read; beside it stands what must come of it: `reads` (the rest is read as
if the payload were not there), or words of the one line.
"""

import gzip
import io
import os
import pickle
import struct
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from seer.core.errors import BadDataError
from seer.data.loading.reader import Reader
from seer.data.multicrop import MultiCrop
from seer.data.order import plan
from seer.data.shards.index import INDEX
from seer.data.shards.open import open_shards
from seer.data.shards.writer import write_shards
from tests.data.image_files import encoded, jpeg, many_scans, pixels, png, write_tar

GOOD = [(f"g{i}.jpg", jpeg(i)) for i in range(12)]


class Evil:
    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / "ran"),)


def beside(name: str, payload: Callable[[Path], bytes]) -> Callable[[Path], Path]:
    """A member of a good sample."""
    return lambda d: write_tar(d / "x.tar", [*GOOD, (f"g11.{name}", payload(d))])


def image(payload: Callable[[Path], bytes] | bytes, name: str = "evil.jpg") -> Callable[[Path], Path]:
    """An image among good ones."""
    return lambda d: write_tar(d / "x.tar", [*GOOD, (name, payload if isinstance(payload, bytes) else payload(d))])


def named(*names: str) -> Callable[[Path], Path]:
    return lambda d: write_tar(d / "x.tar", [(n.format(d=d), jpeg(i)) for i, n in enumerate(names)], tarfile.GNU_FORMAT)


def special(kind: bytes, **fields: object) -> Callable[[Path], Path]:
    def build(d: Path) -> Path:
        with tarfile.open(d / "x.tar", "w", format=tarfile.GNU_FORMAT) as tar:
            info = tarfile.TarInfo("evil.jpg")
            info.type = kind
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info)
        return d / "x.tar"

    return build


def header(size: bytes = b"", records: bytes = b"") -> Callable[[Path], Path]:
    """A tar whose first header is forged: a size field, or an extended header of these records."""

    def build(d: Path) -> Path:
        data = bytearray(write_tar(d / "x.tar", [("a.jpg", records), *GOOD]).read_bytes())
        if size:
            data[124:136] = size
        if records:
            data[156:157] = b"x"
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data[:512])
        (d / "x.tar").write_bytes(data)
        return d / "x.tar"

    return build


def file(name: str, payload: Callable[[Path], bytes] | bytes) -> Callable[[Path], Path]:
    def build(d: Path) -> Path:
        (d / name).write_bytes(payload if isinstance(payload, bytes) else payload(d))
        return d / name

    return build


def index_of(payload: Callable[[Path], np.ndarray]) -> Callable[[Path], Path]:
    def build(d: Path) -> Path:
        path = write_tar(d / "x.tar", GOOD)
        np.save(f"{path}.index.npy", payload(d), allow_pickle=True)
        return path

    return build


def link(target: str) -> Callable[[Path], Path]:
    def build(d: Path) -> Path:
        for name, data in GOOD:
            (d / name).write_bytes(data)
        (d / "evil.jpg").symlink_to(target)
        return d

    return build


def pipe(d: Path) -> Path:
    for name, data in GOOD:
        (d / name).write_bytes(data)
    os.mkfifo(d / "evil.jpg")
    return d


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width: int, height: int, *chunks: bytes) -> bytes:
    claims = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    data = zlib.compress(bytes(min(width * height // 8 + height, 1 << 20)), 9)
    mark = b"\x89PNG\r\n\x1a\n"
    return mark + chunk(b"IHDR", claims) + b"".join(chunks) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text("bomb", "x" * (8 << 20), zip=True)
    return encoded(pixels(0), "PNG", pnginfo=text)


def huge_jpeg() -> bytes:
    data = bytearray(jpeg(0))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", 65_500, 65_500)
    return bytes(data)


def huge_webp() -> bytes:
    data = bytearray(encoded(pixels(0), "WEBP", lossless=True))
    data[21:25] = struct.pack("<I", (16_383 << 14) | 16_383 | (struct.unpack("<I", data[21:25])[0] & ~0xFFFFFFF))
    return bytes(data)


def shell(text: str) -> Callable[[Path], str]:
    def build(d: Path) -> str:
        write_tar(d / "x.tar", GOOD)
        return text.format(d=d)

    return build


def evil(d: Path) -> bytes:
    return pickle.dumps(Evil(d))


PAYLOADS: dict[str, tuple[Callable[[Path], Path | str], str]] = {
    # code in members
    "a pickle member": (beside("pkl", evil), "reads"),
    "a pickle under its long name": (beside("pickle", evil), "reads"),
    "a pickle as Python data": (beside("pyd", evil), "reads"),
    "a pickle as torch weights": (beside("pth", evil), "reads"),
    "a packed pickle": (beside("pkl.gz", lambda d: gzip.compress(evil(d))), "reads"),
    "an array of objects": (beside("npy", lambda d: evil(d)), "reads"),
    "a Python module": (beside("py", lambda d: f"import os; os.mkdir('{d}/ran')".encode()), "reads"),
    "a label that is a pickle": (beside("cls", evil), "reads"),
    "an image that is a pickle": (image(evil), "not a JPEG, PNG, WebP"),
    "an index that is a pickle": (index_of(lambda d: np.array([Evil(d)], dtype=object)), "unreadable index"),
    # words for a shell
    "a pipe URL": (shell("pipe:touch {d}/ran"), "scheme 'pipe' is not read"),
    "a pipe URL that also reads": (shell("pipe:touch {d}/ran; cat {d}/x.tar"), "scheme 'pipe' is not read"),
    "a pipe URL in capitals": (shell("PIPE:touch {d}/ran"), "scheme 'PIPE' is not read"),
    "a command behind a path": (shell("{d}/x.tar; touch {d}/ran"), "does not exist"),
    "a command in the middle of a path": (shell("{d}/$(touch {d}/ran)/x.tar"), "does not exist"),
    "a command in backquotes": (shell("{d}/`touch {d}/ran`.tar"), "does not exist"),
    "a pipe character first": (shell("| touch {d}/ran"), "does not exist"),
    "an http URL with a command": (shell("http://localhost:9/x.tar;touch {d}/ran"), "scheme 'http' is not read"),
    "an s3 URL": (shell("s3://bucket/$(touch {d}/ran)"), "scheme 's3' is not read"),
    "a gs URL": (shell("gs://bucket/x.tar"), "scheme 'gs' is not read"),
    # names
    "names that climb": (named("../../ran/a.jpg", "../ran.jpg", "b/../../ran.jpg"), "reads"),
    "absolute names": (named("{d}/ran/a.jpg", "{d}/ran.jpg"), "reads"),
    "names that steer a terminal": (image(b"no image", "\x1b[2J\r\n\x07evil.jpg"), "not a JPEG, PNG, WebP"),
    "a name of a mebibyte": (lambda d: write_tar(d / "x.tar", [("n" * (1 << 21) + ".jpg", jpeg(0))], 1), "extended header of"),
    "one key twice in a row": (named("a.jpg", "a.jpg"), "occurs again"),
    "one key twice with others between": (named("a.jpg", "b.jpg", "a.jpg"), "occurs again"),
    # members that are no plain files
    "a link out of the archive": (special(tarfile.SYMTYPE, linkname="/etc/passwd"), "no images"),
    "a hard link": (special(tarfile.LNKTYPE, linkname="/etc/passwd"), "no images"),
    "a device": (special(tarfile.CHRTYPE, devmajor=1, devminor=5), "only plain files"),
    "a named pipe in an archive": (special(tarfile.FIFOTYPE), "only plain files"),
    "a sparse member": (special(tarfile.GNUTYPE_SPARSE), "only plain files"),
    "a sparse member by extended header": (header(records=b"30 GNU.sparse.realsize=999999\n"), "refused"),
    "a member resized by extended header": (header(records=b"20 size=99999999999\n"), "refused"),
    "an extended header of digits": (header(records=b"9" * 5000), "broken extended header"),
    "an extended header that is no text": (header(records=b"18 GNU.sparse.\xff\xfe=\n"), "refused"),
    "an extended header of a million records": (header(records=b"4 =\n" * 200_000), "reads"),
    # sizes
    "a member of eight tebibytes": (header(size=b"\x80" + (8 << 40).to_bytes(11, "big")), "the archive at byte"),
    "a negative size": (header(size=b"-0000002000\0"), "not a tar header"),
    "an index that points behind the end": (
        index_of(lambda d: np.array([(1 << 40, 512, 0), ((d / "x.tar").stat().st_size, 0, 0)], dtype=INDEX)),
        "points outside",
    ),
    "an index of other columns": (
        index_of(lambda d: np.array([(1 << 40, 512, 0), (20480, 0, 0)], dtype="<u8,<u4,<u4")),
        "unreadable index",
    ),
    "an index of four gibibytes a row": (
        index_of(lambda d: np.array([(0, 0xFFFFFFFF, 0), ((d / "x.tar").stat().st_size, 0, 0)], dtype=INDEX)),
        "points outside",
    ),
    "zeros packed by gzip": (file("x.tar", lambda d: gzip.compress(bytes(8 << 20))), "compressed with gzip"),
    "an image that claims 65,000 x 65,000": (image(png_of(65_000, 65_000), "evil.png"), "65000|exceeds limit"),
    "an image that claims a little too much": (image(png_of(8_000, 7_000), "evil.png"), "56000000|more than 50000000"),
    "a JPEG of 65,500 x 65,500": (image(huge_jpeg()), "65500|exceeds limit"),
    "a WebP of 16,384 x 16,384": (image(huge_webp(), "evil.webp"), "16384|exceeds limit|Error"),
    "an image with a text that unpacks to 8 MiB": (image(text_bomb(), "evil.png"), "Decompressed data too large|too large"),
    "a JPEG that scans its pixels 20,000 times": (image(many_scans(2_000, 20_000)), "20000 scans of 2000 x 2000"),
    "a gray one of 49 megapixels, 90 times": (image(many_scans(7_000, 90, "L")), "90 scans of 7000 x 7000"),
    # other kinds of files
    "PostScript with a command": (
        image(lambda d: f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch {d}/ran) (w) file\n".encode()),
        "not a JPEG, PNG, WebP",
    ),
    "a drawing with a script": (image(b"<svg xmlns='http://www.w3.org/2000/svg'><script>1</script></svg>"), "not a JPEG"),
    "a page of HTML": (image(b"<!DOCTYPE html><script>1</script>"), "not a JPEG, PNG, WebP"),
    "an icon of another format": (image(encoded(Image.fromarray(pixels(0)), "ICO")), "not a JPEG, PNG, WebP"),
    "an image that never ends": (link("/dev/zero"), "not a plain file"),
    "an image that nobody writes": (pipe, "not a plain file"),
}  # fmt: skip


def read_all(source: Path | str) -> list:
    """One epoch through the reader; the ledger."""
    shards = open_shards(source)
    reader = Reader(shards, plan([len(s) for s in shards], seed=0, lanes=1), 0)
    total = sum(len(s) for s in shards)
    decode = MultiCrop().decode
    skipped = [reader.read(reader.plan.places(at, 1), 0, decode)[2] for at in range(total)]
    return [one for some in skipped for one in some if one.attempt == 0]


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


def test_there_are_more_than_forty_payloads():
    assert len(PAYLOADS) >= 40


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_nothing_runs_nothing_is_written_and_one_line_says_why(payload, tmp_path, monkeypatch):
    inside = tmp_path / "deep" / "inside"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    build, expected = PAYLOADS[payload]
    source = build(inside)
    before, start = files(tmp_path), time.process_time()
    try:
        skipped = read_all(source)
        lines = [one.reason for one in skipped]
        assert all(str(one.shard).startswith(str(tmp_path)) for one in skipped)
    except (ValueError, RuntimeError) as error:
        assert getattr(error, "exit_status", 70) in (65, 74, 78) and not isinstance(error, BadDataError), repr(error)
        lines = [str(error)]
    assert time.process_time() - start < 2
    assert files(tmp_path) == before and not (inside / "ran").exists() and not (tmp_path / "ran").exists()
    if expected == "reads":
        assert lines == []
    else:
        import re

        assert len(lines) == 1 and re.search(expected, lines[0]) and lines[0].isprintable(), lines


@pytest.mark.parametrize("payload", ["names that climb", "absolute names", "a pickle member"])
def test_writing_what_was_read_writes_inside_its_folder_alone(payload, tmp_path):
    inside = tmp_path / "deep" / "inside"
    inside.mkdir(parents=True)
    (shard,) = open_shards(PAYLOADS[payload][0](inside))
    before = files(tmp_path)
    samples = (((s := shard.read(0, r)).key, s.fields) for r in range(len(shard)))
    write_shards(samples, inside / "out", total=len(shard), per_shard=2)
    assert all(name.startswith("deep/inside/out") for name in files(tmp_path) - before)
    assert not any(name.endswith("ran") for name in files(tmp_path))


def test_the_payloads_would_run_where_they_are_trusted(tmp_path):
    pickle.loads(evil(tmp_path))
    assert (tmp_path / "ran").is_dir()
    with tarfile.open(fileobj=io.BytesIO(named("../../x.jpg", "y.jpg")(tmp_path).read_bytes())) as tar:
        assert tar.getnames()[0] == "../../x.jpg"
    assert png(0)[:8] == png_of(8, 8)[:8]
