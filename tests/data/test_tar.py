"""The strict reader against Python's tarfile on whole archives; on damaged ones it complains where tarfile is silent."""

import io
import tarfile

import numpy as np
import pytest

from seer.data.shards.tar import HEAD, TAR_BLOCK, Oddities, TarError, _sum, plain_member, walk
from tests.messages import naming

FORMS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
PLAIN = [(f"{i:04d}.jpg", bytes([i]) * (700 + 37 * i)) for i in range(20)]
ODD = [
    ("a/plain.jpg", b"1"),
    ("empty.jpg", b""),
    ("whole-block.jpg", b"x" * TAR_BLOCK),
    ("d" * 60 + "/" + "e" * 70 + "/long.jpg", b"long" * 400),  # needs USTAR's prefix, GNU's L or PAX's path
    ("after-the-long-one.jpg", b"short"),
    ("ä/ß/日本.jpg", "é".encode()),
    ("dots.in.name.1.jpg", b"dots"),
    ("../../escape.jpg", b"relative"),
    ("/abs.jpg", b"absolute"),
]


def archive(members, form=tarfile.USTAR_FORMAT, folder=None, **how) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, **how) as tar:
        if folder:
            info = tarfile.TarInfo(folder)
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def special(kind: bytes, **fields) -> bytes:
    """An archive of a plain file, a member of another kind, and a plain file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name in ("a.jpg", None, "z.jpg"):
            info = tarfile.TarInfo(name or "special")
            if name is None:
                info.type = kind
                for field, value in fields.items():
                    setattr(info, field, value)
            tar.addfile(info)
    return buffer.getvalue()


def read(data: bytes, **how) -> list[tuple[str, bytes]]:
    return [(m.name, data[m.data : m.data + m.size]) for m in walk(memoryview(data), **how)]


def as_tarfile(data: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        return [(m.name, tar.extractfile(m).read()) for m in tar if m.isfile()]


def checksummed(header: bytearray) -> bytes:
    """A header with its checksum made right again."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_with_long_and_odd_names_is_read_as_tarfile_reads_it(form):
    data = archive(ODD, FORMS[form])
    assert read(data) == as_tarfile(data) == ODD


@pytest.mark.parametrize("form", FORMS)
def test_folders_are_passed_over_and_names_of_more_than_a_block_are_read(form):
    members = [*PLAIN[:2], ("n" * 1000 + ".jpg" if form != "ustar" else "n.jpg", b"far")]
    data = archive(members, FORMS[form], folder="some/folder")
    assert read(data) == as_tarfile(data) == members
    assert next(walk(memoryview(data))).start == TAR_BLOCK  # a folder is part of no member


def test_global_and_extended_headers_of_pax_are_not_members():
    data = archive(ODD, tarfile.PAX_FORMAT, pax_headers={"comment": "made by a test"})
    assert read(data) == as_tarfile(data) == ODD


@pytest.mark.parametrize("form", FORMS)
def test_members_lie_end_to_end_and_each_can_be_cut_out_and_read_alone(form):
    data = archive(ODD, FORMS[form])
    members = list(walk(memoryview(data)))
    assert [m.start for m in members] == [0, *(m.end for m in members[:-1])]
    for member, expected in zip(members, ODD, strict=True):
        assert read(data[member.start : member.end], whole=False) == [expected]


def test_an_archive_without_members_is_whole():
    assert read(archive([])) == []


WHOLE = archive(PLAIN)
MEMBERS = list(walk(memoryview(WHOLE)))
TENTH = MEMBERS[10]


def flipped(at: int, bit: int = 0) -> bytes:
    data = bytearray(WHOLE)
    data[at] ^= 1 << bit
    return bytes(data)


DAMAGED = {
    "cut at a member boundary": (WHOLE[: TENTH.start], "no end mark"),
    "cut inside a header": (WHOLE[: TENTH.start + 100], "cut inside a header"),
    "cut inside data": (WHOLE[: TENTH.data + 100], "ends at byte"),
    "flipped byte in a name": (flipped(TENTH.start + 2), "checksum"),
    "flipped byte in a size": (flipped(TENTH.start + 130), "checksum|ends at|not a tar header"),
    "zeroed header block": (WHOLE[: TENTH.start] + bytes(TAR_BLOCK) + WHOLE[TENTH.data :], "behind the end mark"),
    "data behind the end mark": (WHOLE + archive(PLAIN[:1]), "behind the end mark"),
    "a tail of zeros longer than any writer's": (WHOLE[: TENTH.start] + bytes(12_000), "12000 zeros from byte"),
    "one byte behind the end mark": (WHOLE + b"\1", "behind the end mark"),
    "a page of HTML": (b"<!DOCTYPE html><html><body>404 not found</body></html>" * 40, "tar header|checksum"),
    "empty": (b"", "no end mark"),
    "gzip of zeros": (b"\x1f\x8b\x08\x00" + bytes(2000), "checksum"),
    "a header moved by one byte": (WHOLE[1:], "checksum|not a tar header"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_archive_is_refused_with_the_place(damage):
    data, reason = DAMAGED[damage]
    with pytest.raises(TarError, match=reason) as caught:
        read(data)
    assert "byte" in str(caught.value)


@pytest.mark.parametrize("damage", ["cut at a member boundary", "flipped byte in a name", "zeroed header block"])
def test_tarfile_loses_the_same_members_in_silence(damage):  # the reason for a reader of our own
    assert as_tarfile(DAMAGED[damage][0]) == PLAIN[:10]


def test_wherever_an_archive_is_cut_nothing_is_lost_in_silence():
    for length in range(0, len(WHOLE), 128):
        try:
            assert read(WHOLE[:length]) == PLAIN, length  # cut in the padding behind the end mark
        except TarError:
            assert length < MEMBERS[-1].end + TAR_BLOCK, length


def test_whichever_header_bit_flips_nothing_is_lost_or_renamed_in_silence():
    noticed = 0
    for at in range(TENTH.start, TENTH.data):
        for bit in range(8):
            try:
                assert read(flipped(at, bit)) == PLAIN, (at - TENTH.start, bit)
            except TarError:
                noticed += 1
    assert noticed >= 8 * (TAR_BLOCK - 2)  # the two bytes that end the checksum field carry nothing


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (tarfile.CHRTYPE, {"devmajor": 1, "devminor": 5}),
        (tarfile.BLKTYPE, {"devmajor": 8}),
        (tarfile.FIFOTYPE, {}),
        (tarfile.GNUTYPE_SPARSE, {}),
        (b"M", {}),
        (b"?", {}),
    ],
)
def test_devices_and_files_in_parts_are_refused_with_the_remedy(kind, fields):
    with pytest.raises(TarError, match=r"only plain files.*pack"):
        read(special(kind, **fields))


@pytest.mark.parametrize("target", ["/etc/passwd", "l" * 150])
@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_symbolic_links_are_passed_over_and_told(target, form):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=FORMS[form]) as tar:
        for name in ("a.jpg", None, "z.jpg"):
            info = tarfile.TarInfo(name or "n" * 120)
            if name is None:
                info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    oddities = Oddities()
    assert [m.name for m in walk(memoryview(buffer.getvalue()), oddities=oddities)] == ["a.jpg", "z.jpg"]
    assert (oddities.links, oddities.first_link) == (1, f"{'n' * 120} -> {target}")


def test_a_hard_link_with_bytes_of_its_own_is_refused_with_the_remedy():
    data = bytearray(special(tarfile.LNKTYPE, linkname="a.jpg"))
    data[TAR_BLOCK + 124 : TAR_BLOCK + 136] = b"00000000010\0"
    with pytest.raises(TarError, match=naming(512, "--hard-dereference")):
        read(data[:TAR_BLOCK] + checksummed(data[TAR_BLOCK : 2 * TAR_BLOCK]) + bytes(data[2 * TAR_BLOCK :]))


@pytest.mark.parametrize("record", ["GNU.sparse.major=1", "GNU.sparse.realsize=200000000", "size=3"])
def test_extended_headers_that_resize_a_member_are_refused(record):
    keyword, value = record.split("=")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.jpg")
        info.pax_headers = {keyword: value}
        tar.addfile(info)
    with pytest.raises(TarError, match=naming(keyword, "--format=gnu")):
        read(buffer.getvalue())


@pytest.mark.parametrize(
    "records", [b"path=x\n", b"0 path=x\n", b"999 path=x\n", b"-8 path=x\n", b" path=x\n", b"\0" * 8]
)
def test_broken_extended_headers_are_refused(records):
    data = bytearray(archive([("x.jpg", records.ljust(20, b"\0"))]))
    data[156:157] = b"x"
    with pytest.raises(TarError, match=naming("extended header", 0)):
        read(checksummed(data[:TAR_BLOCK]) + bytes(data[TAR_BLOCK:]))


@pytest.mark.parametrize(
    "size", [b"77777777777\0", b"\x80" + b"\0" * 3 + b"\x7f" * 8, b"-0000002000\0", b"\xff" * 12, b"000000000x0\0"]
)
def test_a_size_that_is_no_size_here_is_refused_without_walking_there(size):
    data = bytearray(WHOLE)
    data[TENTH.start + 124 : TENTH.start + 136] = size
    data[TENTH.start : TENTH.data] = checksummed(data[TENTH.start : TENTH.data])
    with pytest.raises(TarError):
        for n, _ in enumerate(walk(memoryview(data))):
            assert n < len(PLAIN), "walks backwards for ever"


def test_an_end_mark_inside_a_sample_is_refused():
    with pytest.raises(TarError, match=naming("end mark", 2048)):
        read(WHOLE[TENTH.start : TENTH.end] + bytes(TAR_BLOCK), whole=False)


def test_the_sum_of_a_header_is_that_of_its_bytes_up_to_the_largest_there_is():
    random = np.random.default_rng(0)
    for header in (bytes(512), b"\xff" * 512, b"\xff" * 256 + bytes(256), *(random.bytes(512) for _ in range(200))):
        assert _sum(header) == sum(header)


@pytest.mark.parametrize("records", [{}, {"mtime": "1.5"}, {"path": "a/ñ.jpg", "mtime": "0.0"}, {"comment": "x" * 600}])
def test_whichever_bit_flips_the_quick_way_to_a_lone_member_finds_what_a_walk_finds_or_nothing(records):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("k0.jpg")
        info.size, info.pax_headers = 700, dict(records)
        tar.addfile(info, io.BytesIO(bytes(range(175)) * 4))
    whole = packed.getvalue()
    (end,) = [member.end for member in walk(memoryview(whole))]
    found = 0
    for bit in (None, *range(8 * min(HEAD, end))):
        run = bytearray(whole[:end])
        if bit is not None:
            run[bit // 8] ^= 1 << bit % 8
        try:
            (truth,) = walk(memoryview(run), whole=False)
        except (TarError, ValueError):
            truth = None
        quick = plain_member(bytes(run[:HEAD]), end)
        assert quick is None or quick == truth, bit
        found += quick is not None
    assert (found > 1000) == ("comment" not in records)  # more records than a block holds are for the walk
