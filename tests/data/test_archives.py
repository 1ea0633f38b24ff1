"""Archives of other kinds, as their own programs write them: refused by name with the command that unpacks them, or told."""

import bz2
import gzip
import io
import lzma
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from seer.core.errors import RequestError
from seer.data.shards.index import build_index
from seer.data.shards.index_tars import index_archives
from seer.data.shards.open import open_shards
from seer.data.shards.tar import TarError
from tests.data.image_files import png, write_tar
from tests.messages import naming


@pytest.fixture
def tar(tmp_path) -> bytes:
    return write_tar(tmp_path / "whole.tar", [(f"{i}.png", png(i)) for i in range(3)]).read_bytes()


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.png", data)
    return buffer.getvalue()


COMPRESSED = {
    "gzip": (gzip.compress, "gunzip"),
    "bzip2": (bz2.compress, "bunzip2"),
    "xz": (lzma.compress, "unxz"),
    "zip": (zipped, "unzip"),
    "parquet": (lambda data: b"PAR1" + data + b"PAR1", "images out as files"),
    "HDF5": (lambda data: b"\x89HDF\r\n\x1a\n" + data, "images out as files"),
    "Git LFS": (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    "web page": (lambda data: b"\n<!DOCTYPE html><html>404</html>" * 40, "fetch the archive again"),
    "7z": (lambda data: b"7z\xbc\xaf\x27\x1c\x00\x04" + data, "7z x"),
    "zstd": (lambda data: b"\x28\xb5\x2f\xfd\x04\x00" + data, "zstd -d"),
}


@pytest.mark.parametrize("name", ["x.tar.of", "a b.tar"])
@pytest.mark.parametrize("kind", COMPRESSED)
def test_what_is_no_tar_is_named_by_its_first_bytes_with_the_remedy(tmp_path, tar, kind, name):
    make, remedy = COMPRESSED[kind]
    (tmp_path / "d").mkdir()
    path = tmp_path / "d" / name
    path.write_bytes(make(tar))
    for what in (lambda: open_shards(path), lambda: build_index(path)):
        with pytest.raises(RequestError, match=rf"{kind}.*{remedy}") as error:
            what()
        assert error.value.exit_status == 78


@pytest.mark.parametrize("name", ["it's.tar.gz", "a b.tgz", "x.tar", "x.1.tar.gz", "x.gz"])
def test_the_command_that_is_told_makes_what_can_be_read_and_replaces_nothing(tmp_path, tar, name):
    (tmp_path / "d").mkdir()
    path = tmp_path / "d" / name
    path.write_bytes(gzip.compress(tar))
    with pytest.raises(RequestError) as error:
        open_shards(path)
    subprocess.run(str(error.value).split("`")[1], shell=True, check=True)
    before = {one: one.read_bytes() for one in (tmp_path / "d").iterdir()}
    with pytest.raises(RequestError) as error:
        open_shards(path)
    subprocess.run(str(error.value).split("`")[1], shell=True, check=True)
    made = [one for one in (tmp_path / "d").iterdir() if one != path]
    assert [len(open_shards(one)[0]) for one in made] == [3, 3] and all(
        one.read_bytes() == before[one] for one in before
    )


@pytest.mark.skipif(shutil.which("zstd") is None, reason="no zstd program")
def test_zstd_is_known_by_what_its_program_writes(tmp_path, tar):
    subprocess.run(["zstd", "-q", tmp_path / "whole.tar", "-o", tmp_path / "x.zst"], check=True)
    with pytest.raises(RequestError, match=naming("x.zst", "zstd -dc")):
        open_shards(tmp_path / "x.zst")


@pytest.mark.parametrize("name", ["l.csv", "l.lst", "l"])
@pytest.mark.parametrize("text", ["d/1.jpg,0\n", "\ufeffd/é.jpg\r\n", "é" * 1000, "x" + "é" * 1000])
def test_a_table_given_for_a_list_is_text_and_told_what_a_list_is(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(RequestError, match=r"is text.*\.txt with one path a line"):
        open_shards(tmp_path / name)


@pytest.mark.parametrize("data", [b"", b"\x00" * 100, b"\xff" * 2000, b"abc\x00" * 500])
def test_what_is_none_of_these_is_a_damaged_tar(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(TarError):
        open_shards(tmp_path / "x")


@pytest.mark.parametrize("name", ["PAR1/0.png", "BZhang/0.png", "PK\x03\x04.png", "Rar!\x1a\x07.png"])
def test_a_tar_whose_first_name_begins_like_another_archive_is_a_tar(tmp_path, name):
    path = write_tar(tmp_path / "x.tar", [(name, png(0))])
    assert len(open_shards(path)[0]) == 1
    path.write_bytes(path.read_bytes()[: sum(build_index(path)[0].item()[:2])])
    with pytest.raises(TarError, match=naming("x.tar", 1536)):
        open_shards(path)


def test_archives_beside_what_is_read_are_told_once_with_the_first_and_their_count(tmp_path, tar, told):
    for name in ("b.tar.gz", "deep/a.ZIP", "deep/c.tgz", "stats.parquet", "notes.json", "table.csv.gz", ".hidden.zip"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert len(open_shards(tmp_path)) == 1
    (record,) = told.records
    assert "3 archives" in record.message and f"{tmp_path}/b.tar.gz" in record.message
    told.clear()
    (tmp_path / "whole.tar").unlink()
    (tmp_path / "0.png").write_bytes(png(0))
    assert len(open_shards(tmp_path)[0]) == 1 and len(told.records) == 1
    told.clear()
    for name in ("b.tar.gz", "deep/a.ZIP", "deep/c.tgz"):
        (tmp_path / name).unlink()
    open_shards(tmp_path)
    assert not told.records


def test_tars_inside_of_tars_are_told_once(tmp_path, tar, told):
    for n in range(2):
        rows = [("a.png", png(0)), ("inner.tar", tar), ("note.txt", b""), ("b.png", png(1)), ("z/more.TGZ", b"")]
        write_tar(tmp_path / f"{n}.tar", [*rows, ("table.csv.gz", b"")])
    (tmp_path / "whole.tar").unlink()
    assert [len(shard) for shard in open_shards(tmp_path)] == [2, 2]
    (record,) = told.records
    assert "4 archives" in record.message and f"{tmp_path}/0.tar/inner.tar" in record.message
    told.clear()
    paths = [str(tmp_path / f"{n}.tar") for n in range(2)]
    manifest = index_archives(paths, tmp_path, processes=1, progress=lambda n: None)
    (record,) = told.records
    assert "4 archives" in record.message and not any("inside" in one for one in manifest["shards"])
    told.clear()
    assert [len(shard) for shard in open_shards(tmp_path)] == [2, 2] and Path(paths[0] + ".index.npy").exists()
