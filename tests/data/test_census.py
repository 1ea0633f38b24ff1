"""What lies in a folder or an archive is counted by kind, by one rule, and every file is in one count."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from seer.core.errors import RequestError
from seer.data.shards.index import INDEX, INDEX_SUFFIX, VERSION, VERSION_2, build_index, write_index
from seer.data.shards.index_tars import index_archives
from seer.data.shards.open import census_of, open_shards
from seer.data.shards.rewrite import Part
from seer.data.shards.shard import fingerprint, image_of
from seer.data.shards.source import expand
from seer.data.shards.writer import write_shard, write_shards
from tests.data.image_files import jpeg, png, write_tar
from tests.data.mixed_files import EXPECTED, USED, files, in_folder, in_tar
from tests.messages import naming


def counted(source: object) -> dict:
    return census_of(open_shards(source)).plain()  # type: ignore[arg-type]


def rows(source: object, **how: object) -> dict[str, dict[str, bytes]]:
    """Key -> members of each row."""
    shards = open_shards(source, **how)  # type: ignore[arg-type]
    samples = [shard.read(n, row) for n, shard in enumerate(shards) for row in range(len(shard))]
    assert [s.key for s in samples] == [key for shard in shards for key in shard.iter_keys()]
    return {sample.key: sample.fields for sample in samples}


@pytest.mark.parametrize("prefix", ["", "./"])
def test_a_folder_and_a_tar_of_twenty_kinds_of_files_give_the_counts_that_were_made(tmp_path, prefix):
    folder, tar = in_folder(tmp_path / "d"), in_tar(tmp_path / "t.tar", prefix)
    assert counted(folder) == EXPECTED == counted(tar)
    manifest = index_archives([str(tar)], tmp_path / "index", processes=1, progress=lambda n: None)
    assert manifest["data"] == EXPECTED and manifest["samples"] == sum(USED.values())
    loose, packed = rows(folder), {key.removeprefix("./"): fields for key, fields in rows(tar).items()}
    assert loose == packed and loose["ant/000"]["mask.png"] == png(0) and loose["ant/001"]["txt"] == b"an ant"
    assert {image_of(s.read(0, r)) for s in open_shards(tar) for r in range(len(s))} == {
        data for name, data in files().items() if name[:4] in ("ant/", "bee/") and name[4:7].isdigit() and
        name.rpartition(".")[2] in USED and "mask" not in name
    }  # fmt: skip


def test_a_member_of_macos_between_an_image_and_its_class_does_not_part_them(tmp_path):
    """Written as macOS does, each fork before its file; by the older rule `x.cls` was of no image."""
    fork = b"\0\5\x16\7"
    members = [("._x.jpg", fork), ("x.jpg", jpeg(1)), ("._x.cls", fork), ("x.cls", b"7"), ("y.jpg", jpeg(2))]
    path = write_tar(tmp_path / "a.tar", members)
    assert rows(path) == {"x": {"jpg": jpeg(1), "cls": b"7"}, "y": {"jpg": jpeg(2)}}
    (shard,) = open_shards(path)
    assert list(shard.iter_labels(range(2))) == [("x", b"7"), ("y", None)]
    write_index(build_index(path), Path(f"{path}{INDEX_SUFFIX}"))
    assert rows(path) == {"x": {"jpg": jpeg(1), "cls": b"7"}, "y": {"jpg": jpeg(2)}}


def test_rows_of_older_indexes_stay_and_a_gif_beside_a_jpg_is_none_of_them(tmp_path):
    members = [("a.gif", b"GIF89a"), ("a.jpg", jpeg(1)), ("._b.jpg", b"\0"), ("c.bmp", jpeg(2))]
    path = write_tar(tmp_path / "a.tar", members)
    # by hand, what the first versions wrote: a run of each name that holds a jpg, jpeg, png or webp
    first, second, third = 0, 1024 + 512 + -(-len(jpeg(1)) // 512) * 512, 0
    third = second + 1024
    old = np.array([(first, second - first, 0), (second, third - second, 0), (path.stat().st_size, 0, 0)], dtype=INDEX)
    write_index(old, Path(f"{path}{INDEX_SUFFIX}"))
    assert rows(path, check_crc=False) == {
        "a": {"gif": b"GIF89a", "jpg": jpeg(1)},
        "._b": {"jpg": b"\0"},
    }
    (shard,) = open_shards(path, check_crc=False)
    assert image_of(shard.read(0, 0)) == jpeg(1) and census_of([shard]).plain()["by_index"] == 2
    (part,) = [Part(open_shards(path, check_crc=False), 0, 2, shuffle=False)]
    written = write_shard(tmp_path / "new.tar", part.samples(0, 1, [], [], lambda: None))  # one row, as there was
    assert written["count"] == 1 and [set(f) for f in rows(tmp_path / "new.tar").values()] == [{"jpg"}]
    Path(f"{path}{INDEX_SUFFIX}").unlink()
    assert set(rows(path, older=True)) == {"a", "._b"}
    assert {k: set(f) for k, f in rows(path).items()} == {"a.gif": {"gif"}, "a.jpg": {"jpg"}, "c": {"bmp"}}


@pytest.mark.parametrize(
    ("members", "version"),
    [
        (["a.jpg", "a.cls", "b.png"], 0),
        (["a.jpg", ".DS_Store", "b.png", "c.heic", "d.txt"], 0),
        (["a.jpg", "a.mask.png"], VERSION_2),
        (["a.jpg", "b.bmp"], VERSION),
        (["a.jpg", "._b.jpg"], VERSION),
        (["a.jpg", "._a.cls", "a.cls"], VERSION),
    ],
)
def test_an_index_says_that_it_needs_the_newest_rule_only_where_that_gives_other_rows(tmp_path, members, version):
    index = build_index(write_tar(tmp_path / "a.tar", [(name, jpeg(0)) for name in members]))
    assert index[-1]["size"] == version


def test_links_are_followed_once_and_those_that_lead_nowhere_are_counted(tmp_path):
    (tmp_path / "d" / "in").mkdir(parents=True)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "z.jpg").write_bytes(jpeg(0))
    (tmp_path / "d" / "in" / "a.jpg").write_bytes(jpeg(1))
    links = {"b.jpg": "in/a.jpg", "gone.jpg": "no/where.jpg", "self.jpg": "self.jpg", "up": "../d", "out": "../else"}
    for name, target in links.items():
        (tmp_path / "d" / name).symlink_to(target)
    found = counted(tmp_path / "d")
    assert found["passed_over"] == {"broken link": 2, "link to a folder above": 1} and found["used"] == 3
    assert set(rows(tmp_path / "d")) == {"in/a", "b", "out/z"}


def test_a_double_star_is_any_number_of_folders(tmp_path, monkeypatch):
    for name in ("1.jpg", "a/2.jpg", "a/b/c/3.jpg", ".h/4.jpg", "a/5.png", "a/b/x.txt"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(jpeg(0))
    (tmp_path / "d" / "a" / "up").symlink_to("..")
    (tmp_path / "d" / "to").symlink_to("a/b/c")
    root = f"{tmp_path}/d"
    three = [f"{root}/1.jpg", f"{root}/a/2.jpg", f"{root}/a/b/c/3.jpg", f"{root}/to/3.jpg"]
    assert expand(f"{root}/**/*.jpg").paths == three
    assert expand(f"{tmp_path}/**/a/**/*.jpg").paths == three[1:3]
    assert expand(f"{root}/**/b/*/*.jpg").paths == three[2:3]
    everything = expand(f"{root}/**")
    assert everything.paths == sorted([*three, f"{root}/a/5.png"]) and everything.census.passed == {".txt": 1}
    assert expand(f"{root}/**/b").paths == [f"{root}/a/b"]
    monkeypatch.chdir(tmp_path / "d")
    assert expand("**/*.jpg").paths == ["1.jpg", "a/2.jpg", "a/b/c/3.jpg", "to/3.jpg"]
    assert expand("**/*.jpg", older=True).paths == ["a/2.jpg", "to/3.jpg"]  # as `*/*.jpg`
    with pytest.raises(RequestError, match=naming("**/*.tar")):
        expand("**/*.tar")


def test_tars_at_any_depth_are_found_by_a_double_star_and_other_files_that_match_are_counted(tmp_path):
    for name in ("a.tar", "x/b.tar", "x/y/c.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_tar(tmp_path / name, [(f"{name[-5]}.jpg", jpeg(0))])
    (tmp_path / "x" / "table.csv").write_text("1")
    assert [s.key(0) for s in open_shards(f"{tmp_path}/**/*.tar")] == ["a", "b", "c"]
    assert counted(f"{tmp_path}/x/*") == {"found": 3, "used": 2, "passed_over": {".csv": 1}, "companions": {}}
    assert counted(tmp_path) == {"found": 4, "used": 3, "passed_over": {".csv": 1}, "companions": {}}


def test_a_folder_without_images_is_refused_by_what_it_holds(tmp_path):
    for name in ("a.heic", "b.heic", "c.pdf"):
        (tmp_path / name).touch()
    with pytest.raises(RequestError, match=naming("no images", ".heic 2", ".pdf 1")):
        open_shards(tmp_path)


def test_endings_without_end_are_counted_in_bounded_memory(tmp_path):
    for i in range(300):
        (tmp_path / f"{i}.e{i}x").touch()
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    census = census_of(open_shards(tmp_path))
    assert len(census.passed) == 101 and census.passed["other endings"] == 200 and census.found == 301


def test_what_lies_beside_shards_that_were_written_is_not_counted_as_strange(tmp_path):
    write_shards([(f"{i}", {"jpg": jpeg(i)}) for i in range(4)], tmp_path, total=4, per_shard=2)
    (tmp_path / "manifest.txt.zip").touch()
    (tmp_path / "result.json").touch()  # of the verb
    (tmp_path / "plot.gif").touch()  # a folder of tars with one was always read
    assert counted(tmp_path) == {"found": 6, "used": 4, "by_index": 4, "companions": {}, "passed_over": {".gif": 1, ".zip": 1}}  # fmt: skip


def test_folders_opened_as_earlier_versions_did_have_their_fingerprint(tmp_path):
    for name in ("a.jpg", "b.bmp", ".h/c.jpg", "d.JPEG"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(jpeg(0))
    (shard,) = old = open_shards(tmp_path / "d", older=True)
    # as it always was: name, rows, and the hash of the names
    assert shard.identity == "d:3:" + hashlib.sha256(b".h/c.jpg\na.jpg\nd.JPEG").hexdigest()[:16]
    assert [s.name(r) for s in open_shards(tmp_path / "d") for r in range(len(s))] == ["a.jpg", "b.bmp", "d.JPEG"]
    os.unlink(tmp_path / "d" / "b.bmp")
    os.unlink(tmp_path / "d" / ".h" / "c.jpg")
    assert fingerprint(open_shards(tmp_path / "d")) == fingerprint(open_shards(tmp_path / "d", older=True)) != old


@pytest.mark.parametrize("lines", ["a.jpg\r\nb.jpg\r\n", "a.tar\nb.tar\n"])
def test_the_mark_that_windows_puts_before_a_list_is_dropped(tmp_path, lines):
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(jpeg(0))
        write_tar(tmp_path / f"{name}.tar", [(f"{name}.jpg", jpeg(0))])
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    assert set(rows(tmp_path / "list.txt")) == {"a", "b"}
