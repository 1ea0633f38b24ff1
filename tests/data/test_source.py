"""What a source stands for: names are found without keeping those of other files, and too many are refused at once."""

import time
import tracemalloc
from functools import partial
from pathlib import Path

import pytest

from seer.core.errors import RequestError
from seer.data.shards.open import open_shards
from seer.data.shards.shard import class_names, image_of
from seer.data.shards.source import expand
from tests.data.image_files import write_tar
from tests.messages import naming


@pytest.mark.slow
def test_a_folder_of_many_loose_images_is_looked_through_without_keeping_their_names(tmp_path):
    for n in range(5):
        (tmp_path / str(n)).mkdir()
        for i in range(10_000):
            (tmp_path / str(n) / f"{i:06d}.jpg").touch()
    tracemalloc.start()
    try:
        assert expand(str(tmp_path)).paths == [str(tmp_path)]
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


def test_tars_of_nested_folders_come_in_the_order_that_sorted_paths_have(tmp_path, monkeypatch):
    for name in ("b.tar", "a/z.tar", "a-b/y.tar", "a/b/x.tar", "a.tar", "a/.hidden.tar", "a/note.txt", "é/ü.tar"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "again").symlink_to(tmp_path / "a")
    expected = sorted(p for p in tmp_path.rglob("*.tar") if p.is_file() and p.name[0] != "." and "again" not in p.parts)
    assert len(expected) == 6 and [Path(p) for p in expand(str(tmp_path)).paths] == expected
    monkeypatch.chdir(tmp_path)
    assert expand(".").paths == [str(p.relative_to(tmp_path)) for p in expected]


@pytest.mark.parametrize(
    "name", ["x" * 256 + ".tar", "x" * 300 + "/a.tar", "x" * 300 + "/*.tar", "a\0b.tar", "x" * 5000]
)
def test_a_name_that_no_file_can_have_is_a_wrong_request(tmp_path, name):
    with pytest.raises(RequestError, match=r"cannot be read: File name too long|does not exist|null byte"):
        expand(f"{tmp_path}/{name}")


@pytest.mark.parametrize("tail", ["", "*.tar", "{0..99}"])
@pytest.mark.parametrize("span", ["{0..9999999999}", "{0..99999}{0..99999}", "{0..%s}" % ("9" * 5000)])
def test_braces_that_stand_for_too_many_names_are_refused_at_once(tmp_path, monkeypatch, span, tail):
    monkeypatch.setattr("seer.data.shards.source.MOST_NAMES", 1000, raising=False)
    monkeypatch.setattr(
        "seer.data.shards.source.os.path.exists", lambda path: "{" not in path
    )  # all that braces stand for
    start = time.process_time()
    with pytest.raises(RequestError, match=naming("source", 1000)):
        expand(f"{tmp_path}/{span}{tail}")
    assert time.process_time() - start < 1


@pytest.fixture
def images(tmp_path):
    for i, name in enumerate(["b/2.jpg", "a/1.PNG", "a/x/3.webp", "#top é.jpeg"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes([i]))
    return tmp_path


def contents(shards) -> list[tuple[str, int]]:
    return [
        (s.key, image_of(s)[0])
        for n, shard in enumerate(shards)
        for s in map(partial(shard.read, n), range(len(shard)))
    ]


def test_a_list_in_a_file_names_images_in_its_own_order_from_its_own_folder(images, monkeypatch):
    monkeypatch.chdir(images / "a")
    (images / "list.txt").write_text(f"b/2.jpg\r\n\n#top é.jpeg\n{images}/a/x/3.webp")
    for source in (images / "list.txt", "../list.txt", f"file:{images}/list.txt", [images / "list.txt"]):
        (shard,) = open_shards(source)
        assert contents([shard]) == [("b/2", 0), ("#top é", 3), (f"{images}/a/x/3", 2)]
    assert class_names([shard]) == ["", "b", "x"]


def test_images_named_one_by_one_are_one_shard_in_their_order(images, monkeypatch):
    whole = [f"{images}/b/2.jpg", f"{images}/a/x/3.webp", f"{images}/a/1.PNG"]
    (shard,) = open_shards(whole)
    assert contents([shard]) == [("b/2", 0), ("a/x/3", 2), ("a/1", 1)]
    monkeypatch.chdir(images)
    assert contents(open_shards(["b/2.jpg", "./a/x/3.webp", "a/1.PNG"])) == contents([shard])
    assert contents(open_shards("b/2.jpg")) == [("2", 0)]
    assert contents(open_shards(f"{images}/a/*.PNG")) == [("1", 1)]
    tar = write_tar(images / "t.tar", [("t.jpg", b"\7")])
    assert contents(open_shards(["a/1.PNG", tar, "b/2.jpg"])) == [("1", 1), ("t", 7), ("2", 0)]


def test_a_list_of_tars_names_shards(tmp_path):
    for n in range(3):
        write_tar(tmp_path / f"{n}.tar", [(f"{n}.jpg", bytes([n]))])
    (tmp_path / "list.txt").write_text(f"2.tar\n{tmp_path}/0.tar\n")
    assert contents(open_shards(tmp_path / "list.txt")) == [("2", 2), ("0", 0)]


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ("a/1.PNG\nb/2.jpg\na/1.PNG\n", ("a/1.PNG",)),
        ("a/1.PNG\nnotes.md\n", ("line 2", "b'notes.md'")),
        ("x.tar\n", ("x.tar", "exist")),
        ("t.tar\na/1.PNG\n", ("1.PNG", "is no .tar")),
        ("\n\n", ("no images", "list.txt")),
    ],
)
def test_a_list_that_is_wrong_is_refused_by_its_line(images, lines, complaint):
    write_tar(images / "t.tar", [("t.jpg", b"7")])
    (images / "list.txt").write_text(lines)
    with pytest.raises(RequestError, match=naming(*complaint)):
        open_shards(images / "list.txt")


@pytest.mark.slow
def test_a_long_list_costs_its_own_length_and_little_more(tmp_path):
    with open(tmp_path / "list.txt", "w") as file:
        file.writelines(f"some/folder/{i:09d}.jpg\n" for i in range(200_000))
    tracemalloc.start()
    try:
        (shard,) = open_shards(tmp_path / "list.txt")
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(shard) == 200_000 and shard.name(123_456) == "some/folder/000123456.jpg"
    assert kept < 40 * len(shard) and peak < 100 * len(shard)
