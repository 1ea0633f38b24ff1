"""Archives as people make them: links, names of any bytes, padding; against GNU tar, tarfile and the files themselves."""

import io
import json
import logging
import os
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from seer.data.quarantine import read_exclude
from seer.data.shards import links
from seer.data.shards import open as opening
from seer.data.shards.index import INDEX_SUFFIX, build_index, is_linked, write_index
from seer.data.shards.names import WITHOUT_LINKS
from seer.data.shards.open import census_of, open_shards
from seer.data.shards.tar import ChecksumError, TarError
from tests.data.image_files import jpeg, png, write_tar
from tests.messages import naming
from tests.program import SMALL, seer, went_on_from


def rows(source, **how) -> dict[str, dict[str, bytes]]:
    shards = open_shards(source, **how)
    found = {one.key: one.fields for n, s in enumerate(shards) for one in (s.read(n, r) for r in range(len(s)))}
    assert list(found) == [key for shard in shards for key in shard.iter_keys()]
    assert list(found) == [shard.key(row) for shard in shards for row in range(len(shard))]
    return found


def tar(folder: Path, *words: str) -> None:
    subprocess.run(["tar", *words], cwd=folder, check=True, capture_output=True)


def with_index(path: Path) -> Path:
    write_index(build_index(path), Path(f"{path}{INDEX_SUFFIX}"))
    return path


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """An archive by GNU tar in which an image, its label and an image beside a label are hard links."""
    folder = tmp_path / "d"
    folder.mkdir()
    for name, data in {"1.jpg": jpeg(1), "1.cls": b"7", "4.jpg": jpeg(4), "4.cls": b"0", "4.mask.png": png(4)}.items():
        (folder / name).write_bytes(data)
    for name, target in {
        "2.jpg": "1.jpg",
        "2.cls": "1.cls",
        "3.cls": "4.cls",
        "3.jpg": "1.jpg",
        "5.jpg": "4.jpg",
    }.items():
        os.link(folder / target, folder / name)
    names = [
        f"d/{n}"
        for n in ("1.jpg", "1.cls", "2.jpg", "2.cls", "4.cls", "4.jpg", "4.mask.png", "3.cls", "3.jpg", "5.jpg")
    ]
    tar(tmp_path, "cf", "h.tar", *names)
    return tmp_path / "h.tar"


WHAT_LINKS_HOLD = {
    "d/1": {"jpg": jpeg(1), "cls": b"7"},
    "d/2": {"jpg": jpeg(1), "cls": b"7"},
    "d/4": {"cls": b"0", "jpg": jpeg(4), "mask.png": png(4)},
    "d/3": {"cls": b"0", "jpg": jpeg(1)},
    "d/5": {"jpg": jpeg(4)},
}


@pytest.mark.parametrize("indexed", [False, True])
def test_hard_links_are_read_as_tar_unpacks_them(linked, indexed):
    if indexed:
        with_index(linked)
    assert rows(linked) == WHAT_LINKS_HOLD
    (shard,) = open_shards(linked)
    assert list(shard.iter_labels(range(5))) == [
        ("d/1", b"7"),
        ("d/2", b"7"),
        ("d/4", b"0"),
        ("d/3", b"0"),
        ("d/5", None),
    ]
    assert is_linked(build_index(linked))
    other = open_shards(linked, image="jpg", fields={"mask": "mask.png"})[0]
    assert other.read(0, 2).fields["mask.png"] == png(4)


def test_an_index_checks_the_bytes_that_a_hard_link_names(linked):
    with_index(linked)
    data = bytearray(linked.read_bytes())
    with tarfile.open(linked) as archive:
        data[archive.getmember("d/1.jpg").offset_data + 40] ^= 1
    linked.write_bytes(data)
    (shard,) = open_shards(linked)
    for row, key in enumerate(WHAT_LINKS_HOLD):
        if key in ("d/4", "d/5"):
            assert shard.read(0, row).fields == WHAT_LINKS_HOLD[key]
        else:
            with pytest.raises(ChecksumError):
                shard.read(0, row)


def test_archives_without_hard_links_have_the_index_that_they_had(tmp_path):
    index = build_index(write_tar(tmp_path / "a.tar", [("a.jpg", jpeg(0)), ("b.jpg", jpeg(1))]))
    assert index[-1].item() == (10240, 0, 0) and not is_linked(index)


def test_shards_of_hard_links_hold_the_bytes(linked, tmp_path, capfd):
    ended = seer(capfd, "shard", f"source={linked}", f"output={tmp_path / 'o'}", "processes=1", "shuffle=false")
    assert ended.status == 0 and ended.result["pictures"] == 5, ended.words
    assert list(rows(tmp_path / "o").values()) == list(WHAT_LINKS_HOLD.values())


def test_links_to_what_the_archive_lacks_are_passed_over_and_told(linked, tmp_path, caplog):
    os.symlink("1.jpg", tmp_path / "d" / "s.jpg")
    tar(tmp_path, "rf", "h.tar", "d/s.jpg")
    tar(tmp_path, "--delete", "-f", "h.tar", "d/1.jpg")
    with caplog.at_level(logging.WARNING):
        found = rows(linked)
    assert found == {"d/4": WHAT_LINKS_HOLD["d/4"], "d/5": {"jpg": jpeg(4)}}  # d/1, d/2, d/3 have labels alone
    words = " ".join(record.getMessage() for record in caplog.records)
    for word in (
        "1 symbolic",
        "d/s.jpg -> 1.jpg",
        "--dereference",
        "2 hard links",
        "d/2.jpg -> d/1.jpg",
        "--hard-dereference",
    ):
        assert word in words


SYMBOLIC = {
    "t/beside.jpg": "a.jpg",
    "t/beside.cls": "./sub/../a.cls",
    "t/sub/above.jpg": "../a.jpg",
    "t/sub/up/around.jpg": "../../../t/b.jpg",
    "t/chain.jpg": "sub/above.jpg",
    "t/to": "sub",
    "t/through.jpg": "to/up/../../b.jpg",  # of the folder that `to` is, not of the one it lies in
    "t/later.jpg": "z.jpg",
    "t/circle.jpg": "other.jpg",
    "t/other.jpg": "circle.jpg",
    "t/self.jpg": "self.jpg",
    "t/gone.jpg": "no/where.jpg",
    "t/folder.jpg": "sub/up",
    "t/out.jpg": "../../b.jpg",
    "t/root.jpg": "/etc/passwd",
    "t/.hidden.jpg": "a.jpg",
    "t/.gone.jpg": "nothing.jpg",
}
BROKEN = {"broken link": 4, "link to a folder": 2, "link out of the archive": 2, "hidden": 2}


@pytest.fixture(params=["ustar", "gnu", "pax", "./"])
def symbolic(tmp_path: Path, request) -> Path:
    """An archive by GNU tar with symbolic links of every kind, and a hard link to one of them."""
    (tmp_path / "s" / "t" / "sub" / "up").mkdir(parents=True)
    for name, data in {
        "a.jpg": jpeg(1),
        "a.cls": b"7",
        "b.jpg": jpeg(2),
        "z.jpg": jpeg(3),
        "sub/up/d.jpg": jpeg(4),
    }.items():
        (tmp_path / "s" / "t" / name).write_bytes(data)
    for name, target in SYMBOLIC.items():
        os.symlink(target, tmp_path / "s" / name)
    os.link(tmp_path / "s" / "t" / "chain.jpg", tmp_path / "s" / "t" / "hard.jpg", follow_symlinks=False)
    dotted = request.param == "./"
    form = "pax" if dotted else request.param
    tar(tmp_path / "s", f"--format={form}", "--sort=name", "-cf", str(tmp_path / "s.tar"), "./t" if dotted else "t")
    return tmp_path / "s.tar"


def unpacked(path: Path) -> dict[str, dict[str, bytes]]:
    """Returns what tar unpacks, of each name that is not hidden and leads to a file of the archive."""
    top = path.parent / "unpacked"
    top.mkdir()
    with tarfile.open(path) as archive:
        names = archive.getnames()
    tar(top, "-xf", str(path))
    found: dict[str, dict[str, bytes]] = {}
    for name in names:
        real = os.path.realpath(top / name)
        if os.path.isfile(real) and real.startswith(f"{top}/") and "/." not in name.removeprefix("./"):
            key, ending = name.rsplit(".", 1)
            found.setdefault(key, {})[ending] = Path(real).read_bytes()
    return found


@pytest.mark.parametrize("indexed", [False, True])
def test_symbolic_links_to_files_of_the_archive_are_read_as_tar_unpacks_them(symbolic, indexed, caplog):
    truth = unpacked(symbolic)
    assert len(truth) == 11
    if indexed:
        with_index(symbolic)
    with caplog.at_level(logging.WARNING):
        assert rows(symbolic) == truth
    (shard,) = open_shards(symbolic)
    labels = {key: one.get("cls") for key, one in truth.items()}
    assert dict(shard.iter_labels(range(len(shard)))) == labels
    if not indexed:
        assert census_of([shard]).plain()["passed_over"] == BROKEN
        words = " ".join(record.getMessage() for record in caplog.records)
        assert "9 symbolic" in words and "--dereference" in words


def test_an_index_checks_the_bytes_that_a_symbolic_link_names(symbolic):
    truth = unpacked(symbolic)
    index = with_index(symbolic)
    data = bytearray(index.read_bytes())
    with tarfile.open(symbolic) as archive:
        (member,) = (one for one in archive if one.name.endswith("t/b.jpg"))
    data[member.offset_data + 40] ^= 1
    index.write_bytes(data)
    (shard,) = open_shards(symbolic)
    for row, key in enumerate(truth):
        if truth[key]["jpg"] == jpeg(2):
            with pytest.raises(ChecksumError):
                shard.read(0, row)
        else:
            assert shard.read(0, row).fields == truth[key]


def test_an_index_of_an_earlier_version_keeps_its_rows(symbolic):
    names = {"a", "b", "z", "d"}
    write_index(build_index(symbolic, endings=WITHOUT_LINKS), Path(f"{symbolic}{INDEX_SUFFIX}"))
    found = rows(symbolic)
    assert {key.rpartition("/")[2] for key in found} == names and found[next(iter(found))]["cls"] == b"7"
    assert {key.rpartition("/")[2] for key in rows(symbolic, image="jpg")} > names  # which has to be walked


def test_shards_of_symbolic_links_hold_the_bytes_and_their_index_tells_the_same(symbolic, tmp_path, capfd):
    truth = unpacked(symbolic)
    for words in (("shuffle=false",), ("index_only=true",)):
        output = tmp_path / words[0]
        ended = seer(capfd, "shard", f"source={symbolic}", f"output={output}", "processes=1", *words)
        assert ended.status == 0 and ended.result["pictures"] == len(truth), ended.words
        assert list(rows(output).values()) == list(truth.values())
        assert ended.result["data"]["passed_over"] == BROKEN


def test_an_archive_whose_links_all_lead_elsewhere_has_the_index_that_it_had(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("a.jpg", jpeg(0))])
    os.symlink("nothing.jpg", tmp_path / "b.jpg")
    tar(tmp_path, "-rf", "a.tar", "b.jpg")
    index = build_index(path)
    assert index.tobytes() == build_index(path, endings=WITHOUT_LINKS).tobytes() and not is_linked(index)


def symlinks(path: Path, targets: dict[str, str]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        image = tarfile.TarInfo("a.jpg")
        image.size = len(jpeg(0))
        archive.addfile(image, io.BytesIO(jpeg(0)))
        for name, target in targets.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return path


def test_links_of_a_hostile_archive_cost_little_and_end_somewhere(tmp_path, monkeypatch):
    start = time.process_time()
    long = "b/" * 400_000
    found = rows(symlinks(tmp_path / "long.tar", {"x.jpg": f"{long}a.jpg", f"{long}y.jpg": "a.jpg"}))
    assert found == {"a": {"jpg": jpeg(0)}}
    chain = {f"l{i}": f"{'c/../' * 500}l{i + 1}" for i in range(45)}  # links to links, by long ways
    assert rows(symlinks(tmp_path / "chain.tar", {**chain, "x.jpg": "l0"})) == {"a": {"jpg": jpeg(0)}}
    assert time.process_time() - start < 20
    monkeypatch.setattr(links, "MOST_PARTS", 500_000)
    many = {**chain, **{f"x{i}.jpg": "l6" for i in range(30)}}
    with pytest.raises(TarError, match=naming("links", links.MOST_PARTS, "tar -h")):
        open_shards(symlinks(tmp_path / "many.tar", many))


@pytest.mark.slow
@pytest.mark.parametrize("symbolic", ["pax"], indirect=True)
def test_a_run_that_began_before_symbolic_links_were_read_goes_on(symbolic, tmp_path, capfd, monkeypatch):
    words = ("pretrain", *SMALL, "batch=4", f"data.source={symbolic}", f"output={tmp_path / 'run'}")
    with monkeypatch.context() as earlier:
        earlier.setattr(opening, "WITH_COMPANIONS", WITHOUT_LINKS)
        ended = seer(capfd, *words, "steps=1")
    assert ended.status == 0 and ended.result["data"]["used"] == 4, ended.words
    ended = seer(capfd, *words, "steps=2")
    assert ended.status == 0 and went_on_from(ended) == 1 and ended.result["data"]["used"] == 4, ended.words
    ended = seer(capfd, *words, "steps=1", f"output={tmp_path / 'new'}")
    assert ended.result["data"]["used"] == 11


NAMES = [
    b"caf\xe9.jpg",
    b"caf\xe8.jpg",
    "caf\u00e9.jpg".encode(),
    b"\x93\xfa\x96{.jpg",
]  # Latin-1 twice, UTF-8, Shift-JIS


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("long", [False, True])
def test_names_of_any_bytes_stay_apart_and_come_back(tmp_path, form, long):
    names = [os.fsdecode((b"n" * 120 + b"/" if long else b"") + name) for name in NAMES]
    path = write_tar(tmp_path / "a.tar", [(name, jpeg(i)) for i, name in enumerate(names)], form)
    for how in ("without an index", "with one"):
        found = rows(path if how == "without an index" else with_index(path))
        assert found == {name.removesuffix(".jpg"): {"jpg": jpeg(i)} for i, name in enumerate(names)}, how


def test_lists_of_an_earlier_version_find_names_that_are_not_utf_8(tmp_path):
    path = write_tar(tmp_path / "a.tar", [(os.fsdecode(name), jpeg(i)) for i, name in enumerate(NAMES)])
    line = {"shard": str(path), "member": "caf\ufffd", "row": 1, "reason": "x", "kind": "damaged"}
    (tmp_path / "old.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "new.tsv").write_bytes(b"\xef\xbb\xbf" + os.fsencode(path) + b"\tcaf\xe8.jpg\r\n")
    for name in ("old.jsonl", "new.tsv"):
        out = read_exclude(tmp_path / name, open_shards(path))
        assert [(0, row) in out for row in range(4)] == [False, True, False, False]


def test_names_that_some_disks_take_for_one_are_read_and_told(tmp_path, caplog):
    names = ["a.jpg", "A.jpg", "caf\u00e9.jpg", "cafe\u0301.jpg", "b.jpg", "B.png", "Stra\u00dfe.jpg", "d/a.jpg"]
    path = write_tar(tmp_path / "a.tar", [(name, jpeg(i)) for i, name in enumerate(names)])
    with caplog.at_level(logging.WARNING):
        assert len(rows(path)) == len(names)
    told = next(record.getMessage() for record in caplog.records)
    assert all(word in told for word in ("2 images", "'a.jpg'", "'A.jpg'"))
    caplog.clear()
    (tmp_path / "f" / "d").mkdir(parents=True)
    for i, name in enumerate(names):
        (tmp_path / "f" / name).write_bytes(jpeg(i))
    with caplog.at_level(logging.WARNING):
        assert len(rows(tmp_path / "f")) == len(names)
    (told,) = [record.getMessage() for record in caplog.records]
    assert all(word in told for word in ("2 images", "'A.jpg'", "'a.jpg'"))
    caplog.clear()
    (tmp_path / "f" / "A.jpg").unlink()
    os.unlink(tmp_path / "f" / "cafe\u0301.jpg")
    assert len(rows(tmp_path / "f")) == len(names) - 2 and not caplog.records


def test_a_name_that_comes_twice_is_refused_with_the_remedy_that_tar_has(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("a.jpg", jpeg(0)), ("a.jpg", jpeg(1))])
    with pytest.raises(TarError, match=r"'a' occurs again.*unpack"):
        open_shards(path)


@pytest.mark.parametrize("blocks", [1, 2, 20, 32, 128, 2048])
def test_padding_of_any_record_is_sound_and_told_beyond_what_tar_writes_unasked(tmp_path, blocks, caplog):
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    tar(tmp_path, "-b", str(blocks), "-cf", "a.tar", "a.jpg")
    with caplog.at_level(logging.WARNING):
        assert rows(tmp_path / "a.tar") == {"a": {"jpg": jpeg(0)}}
    assert [str(tmp_path / "a.tar") in r.getMessage() for r in caplog.records] == [True] * (blocks > 24)


def test_more_zeros_than_a_record_has_are_refused_with_both_remedies(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("a.jpg", jpeg(0))])
    path.write_bytes(path.read_bytes() + bytes(3 << 20))
    with pytest.raises(TarError, match=r"may be missing: fetch it again.*pack it again"):
        open_shards(path)


def test_archives_joined_by_tar_are_one_and_those_joined_by_cat_are_refused_by_what_they_are(tmp_path):
    for name in "ab":
        write_tar(tmp_path / f"{name}.tar", [(f"{name}.jpg", jpeg(ord(name)))])
    joined = (tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes()
    (tmp_path / "cat.tar").write_bytes(joined)
    with pytest.raises(TarError, match=r"a header follows at byte 10240.*tar -xif"):
        open_shards(tmp_path / "cat.tar")
    tar(tmp_path, "-A", "-f", "a.tar", "b.tar")
    assert rows(tmp_path / "a.tar") == {name: {"jpg": jpeg(ord(name))} for name in "ab"}
    (tmp_path / "cat.tar").write_bytes(joined[:10240] + b"\1" * 512)
    with pytest.raises(TarError) as caught:
        open_shards(tmp_path / "cat.tar")
    assert "header" not in str(caught.value)
