"""What a source stands for: names are found without keeping those of other files, and too many are refused at once."""

import time
import tracemalloc
from pathlib import Path

import pytest

from seer.core.errors import RequestError
from seer.data.source import expand


def test_a_folder_of_many_loose_pictures_is_looked_through_without_keeping_their_names(tmp_path):
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
    monkeypatch.setattr("seer.data.source.MOST_NAMES", 1000, raising=False)
    start = time.process_time()
    with pytest.raises(RequestError, match=r"does not exist|more than 1000 names"):
        expand(f"{tmp_path}/{span}{tail}")
    assert time.process_time() - start < 1
