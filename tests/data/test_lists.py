"""Lists of images and tars as people save them, and what lies beside the images that they name."""

import logging
import os
from pathlib import Path

import pytest

from seer.core.errors import RequestError
from seer.data.shards.lists import numbered_lines
from seer.data.shards.open import open_shards
from tests.data.image_files import jpeg, png, write_tar
from tests.messages import naming

NAMES = ["a.jpg", "d/caf\u00e9.jpg", "d/\u65e5\u672c.png", "with space.jpg"]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "d").mkdir()
    for i, name in enumerate(NAMES):
        (tmp_path / name).write_bytes(jpeg(i))
    return tmp_path


def rows(source, **how) -> dict[str, dict[str, bytes]]:
    shards = open_shards(source, **how)
    return {one.key: one.fields for n, s in enumerate(shards) for one in (s.read(n, r) for r in range(len(s)))}


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_list_in_any_encoding_that_says_so_names_the_same_images(images, encoding, ends):
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    (images / "l.txt").write_bytes((mark + ends.join([*NAMES, ""])).encode(encoding))
    (shard,) = open_shards(images / "l.txt")
    assert [shard.name(row) for row in range(4)] == NAMES
    assert [shard.read(0, row).fields for row in range(4)] == [
        {n.rpartition(".")[2]: jpeg(i)} for i, n in enumerate(NAMES)
    ]
    (images / "plain.txt").write_text("\n".join(NAMES), encoding="utf-8")
    assert shard.identity.split(":")[1:] == (open_shards(images / "plain.txt")[0].identity.split(":")[1:])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_list_of_tars_may_begin_with_a_mark_too(tmp_path, encoding):
    for i, name in enumerate(("a.tar", "b\u00e9.tar")):
        write_tar(tmp_path / name, [(f"{i}.jpg", jpeg(i))])
    (tmp_path / "l.txt").write_text("b\u00e9.tar\r\na.tar\r\n", encoding=encoding)
    assert list(rows(tmp_path / "l.txt")) == ["1", "0"]


def test_a_list_in_latin_1_is_told_with_the_command_that_converts_it(images):
    (images / "l.txt").write_bytes("a.jpg\nd/caf\u00e9.jpg\n".encode("latin-1"))
    with pytest.raises(RequestError, match=naming("line 2", "Latin-1", "iconv", "d/caf\u00e9.jpg is there")):
        open_shards(images / "l.txt")
    (images / "l.txt").write_bytes(b"d/caf\xe8.jpg\n")
    with pytest.raises(RequestError, match=naming("line 1", "iconv")) as caught:
        open_shards(images / "l.txt")
    assert "is there" not in str(caught.value)


def test_names_of_files_that_are_not_utf_8_are_names(images):
    with open(os.path.join(os.fsencode(images), b"caf\xe9.jpg"), "wb") as file:
        file.write(jpeg(9))
    (images / "l.txt").write_bytes(b"caf\xe9.jpg\n")
    assert list(rows(images / "l.txt").values()) == [{"jpg": jpeg(9)}]


@pytest.mark.parametrize("data", ["a.jpg\n".encode("utf-16-le"), b"\xff\xfea.jpg\n\xd8", b"\xff\xfe\0\0a"])
def test_what_is_in_no_encoding_is_refused(images, data):
    (images / "l.txt").write_bytes(data)
    with pytest.raises(RequestError, match=naming("l.txt", "save")):
        list(numbered_lines(images / "l.txt"))


def test_what_lies_beside_listed_images_belongs_to_them(images, caplog):
    beside = {
        "a.cls": b"3",
        "d/caf\u00e9.mask.png": png(1),
        "with space.json": b"{}",
        "other.mask.png": png(2),
        "d/x.txt": b"x",
    }
    for name, data in beside.items():
        (images / name).write_bytes(data)
    (images / "l.txt").write_text("\n".join(NAMES), encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        found = rows(images / "l.txt")
    assert found == {
        "a": {"jpg": jpeg(0), "cls": b"3"},
        "d/caf\u00e9": {"jpg": jpeg(1), "mask.png": png(1)},
        "d/\u65e5\u672c": {"png": jpeg(2)},
        "with space": {"jpg": jpeg(3), "json": b"{}"},
    }
    (shard,) = open_shards(images / "l.txt")
    assert [label for _, label in shard.iter_labels(range(4))] == [b"3", None, None, None] and not caplog.records


def test_a_request_joins_what_lies_beside_listed_images(images):
    (images / "a.png").write_bytes(png(7))
    (images / "l.txt").write_text("a.jpg\n")
    before = open_shards(images / "l.txt")[0].identity
    assert rows(images / "l.txt") == {"a": {"jpg": jpeg(0)}}
    assert rows(images / "l.txt", fields={"mask": "png"}) == {"a": {"jpg": jpeg(0), "mask.png": png(7)}}
    assert rows([images / "a.jpg"], fields={"mask": "png"}) == {"a": {"jpg": jpeg(0), "mask.png": png(7)}}
    assert open_shards(images / "l.txt", fields={"mask": "png"})[0].identity == before  # its rows are the same
