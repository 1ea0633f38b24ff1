"""Shards: what is written, read by strangers (webdataset, tarfile); what sources name; what is refused."""

import gc
import io
import os
import resource
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from seer.core.errors import RequestError, StorageError
from seer.data.shards.index import INDEX, build_index, checksum, read_index, write_index
from seer.data.shards.open import open_shards
from seer.data.shards.shard import class_names, fingerprint, image_of
from seer.data.shards.tar import TarError
from seer.data.shards.tar_shard import Opened, TarShard
from seer.data.shards.writer import write_manifest, write_shards
from tests.data.image_files import jpeg, png, write_tar
from tests.messages import naming, says

SAMPLES = [(f"k{i:03d}", {"jpg": jpeg(i), "cls": str(i % 7).encode()}) for i in range(23)]


@pytest.fixture
def written(tmp_path):
    manifest = write_shards(SAMPLES, tmp_path, total=23, per_shard=6, card={"classes": list("abcdefg")})
    return tmp_path, manifest


def read_all(source) -> list[tuple[str, dict[str, bytes]]]:
    opened = open_shards(source)
    found = [shard.read(number, row) for number, shard in enumerate(opened) for row in range(len(shard))]
    return [(s.key, s.fields) for s in found]


def test_webdataset_tarfile_and_we_read_back_what_was_written(written):
    webdataset = pytest.importorskip("webdataset")
    folder, manifest = written
    paths = [str(folder / s["name"]) for s in manifest["shards"]]
    as_stranger = [
        (s["__key__"], {"jpg": s["jpg"], "cls": s["cls"]})
        for s in webdataset.WebDataset(paths, shardshuffle=False, empty_check=False)
    ]
    members = {}
    for path in paths:
        with tarfile.open(path) as tar:
            members |= {m.name: tar.extractfile(m).read() for m in tar}
    assert as_stranger == SAMPLES
    assert members == {f"{key}.{e}": data for key, fields in SAMPLES for e, data in fields.items()}
    assert read_all(folder) == SAMPLES


def test_shards_differ_by_one_sample_at_most_and_the_manifest_tells_it(written):
    folder, manifest = written
    counts = [s["count"] for s in manifest["shards"]]
    assert sorted(counts) == [5, 6, 6, 6] and manifest["samples"] == 23 and manifest["classes"] == list("abcdefg")
    assert [len(s) for s in open_shards(folder)] == counts
    assert [(folder / s["name"]).stat().st_size for s in manifest["shards"]] == [s["bytes"] for s in manifest["shards"]]
    assert sorted(p.name for p in folder.iterdir() if "writing" in p.name) == []


@pytest.mark.parametrize(("total", "per_shard"), [(1, 1), (1, 100), (7, 7), (8, 7), (20, 3)])
def test_any_total_is_cut_evenly_and_no_shard_is_larger_than_asked(tmp_path, total, per_shard):
    manifest = write_shards(SAMPLES[:total], tmp_path, total=total, per_shard=per_shard)
    counts = [s["count"] for s in manifest["shards"]]
    assert sum(counts) == total and max(counts) <= per_shard and max(counts) - min(counts) <= 1


def test_writing_the_same_twice_gives_the_same_bytes(tmp_path):
    a, b = (write_shards(SAMPLES, tmp_path / name, total=23, per_shard=6) for name in "ab")
    assert a == b
    assert fingerprint(open_shards(tmp_path / "a")) == fingerprint(open_shards(tmp_path / "b"))


def test_a_source_that_ends_too_early_leaves_no_manifest(tmp_path):
    with pytest.raises((StorageError, RuntimeError), match=naming("source ended")):
        write_shards(SAMPLES[:10], tmp_path, total=23, per_shard=6)
    assert not (tmp_path / "manifest.json").exists()


def test_a_tar_without_an_index_reads_the_same_and_nothing_is_written_beside_it(tmp_path):
    path = write_tar(tmp_path / "x.tar", [(f"{k}.{e}", d) for k, fields in SAMPLES for e, d in fields.items()])
    assert read_all(path) == SAMPLES
    assert os.listdir(tmp_path) == ["x.tar"]


def test_a_tar_without_an_index_is_opened_by_its_headers_and_its_data_is_read_row_by_row(tmp_path, monkeypatch):
    members = [(f"{i}.{e}", bytes([i]) * 100_000) for i in range(8) for e in ("jpg", "txt")]
    path, read, crc32 = write_tar(tmp_path / "x.tar", members), [], zlib.crc32
    monkeypatch.setattr(zlib, "crc32", lambda data, *before: read.append(len(data)) or crc32(data, *before))
    shard = TarShard(path)
    assert len(shard) == 8 and sum(read) < 20_000
    assert [shard.read(0, row).fields["jpg"][0] for row in range(8)] == list(range(8))


def test_a_tar_without_an_index_is_known_by_names_and_sizes_and_its_damaged_data_passes(tmp_path):
    paths = [tmp_path / str(n) / "x.tar" for n in range(4)]
    for path, name, data in zip(paths, ["a", "b", "a", "a"], [b"1", b"1", b"1" * 600, b"2"]):
        path.parent.mkdir()
        write_tar(path, [(f"{name}.jpg", data), ("z.jpg", b"z" * (2000 - len(data)))])
    one, *others = [TarShard(path).identity for path in paths]
    assert one not in others[:2] and one == others[2]
    write_index(build_index(paths[3]), Path(f"{paths[3]}.index.npy"))
    assert TarShard(paths[3]).identity != one


def test_another_archive_of_another_size_makes_the_index_stale_and_the_error_tells_the_remedy(written):
    folder, manifest = written
    path = folder / manifest["shards"][0]["name"]
    write_tar(path, [(f"{i}.jpg", jpeg(i) * 9) for i in range(6)])
    with pytest.raises(StorageError, match=naming(path.stat().st_size, "archive", "delete shard-000000.tar.index.npy")):
        open_shards(path)
    (folder / f"{path.name}.index.npy").unlink()
    assert len(open_shards(path)[0]) == 6


def test_another_archive_of_the_same_size_is_noticed_when_a_row_is_read(tmp_path):
    path = tmp_path / "x.tar"
    write_tar(path, [(f"{i}.png", bytes([i]) * 600) for i in range(4)])
    np.save(f"{path}.index.npy", build_index(path))
    write_tar(path, [(f"{i}.png", bytes([i + 9]) * 600) for i in range(4)])
    with pytest.raises(TarError, match=naming("checksum", "byte")):
        open_shards(path)[0].read(0, 2)


def test_a_flipped_data_byte_is_noticed_by_the_index_and_costs_that_row_alone(written):
    folder, manifest = written
    path = folder / manifest["shards"][1]["name"]
    data, index = bytearray(path.read_bytes()), build_index(path)
    data[int(index[2]["offset"]) + 700] ^= 1
    path.write_bytes(data)
    shard = open_shards(path)[0]
    with pytest.raises(TarError, match=naming("checksum", "byte")):
        shard.read(0, 2)
    assert [shard.read(0, r).key for r in (0, 1, 3, 4)] == [SAMPLES[r][0] for r in (5, 6, 8, 9)]


def test_an_archive_that_shrinks_while_open_gives_a_short_read(written):
    folder, manifest = written
    path = folder / manifest["shards"][0]["name"]
    shard, late = open_shards(path)[0], open_shards(path)[0]
    shard.read(0, 0)
    os.truncate(path, 2000)
    with pytest.raises(TarError, match=naming("short", "byte")):
        shard.read(0, 4)
    with pytest.raises(StorageError, match=naming(2000, f"delete {path.name}.index.npy")):
        late.read(0, 0)


def test_an_index_that_is_not_the_one_of_the_manifest_stops_at_its_first_row(written):
    folder, manifest = written
    path = folder / manifest["shards"][0]["name"]
    index = np.load(f"{path}.index.npy")
    index["crc"][2] ^= 1
    np.save(f"{path}.index.npy", index)
    shards = open_shards(folder)
    with pytest.raises(StorageError, match=naming(f"{path.name}.index.npy", "manifest", "checksum")):
        shards[0].read(0, 0)


@pytest.mark.parametrize("field", ["offset", "size"])
def test_an_index_that_points_outside_its_archive_is_refused(written, field):
    folder, manifest = written
    path = folder / manifest["shards"][0]["name"]
    index = np.load(f"{path}.index.npy")
    index[field][2] = 0xF0000000
    np.save(f"{path}.index.npy", index)
    (folder / "manifest.json").unlink()
    with pytest.raises(StorageError, match=naming(path.stat().st_size, f"delete {path.name}.index.npy")):
        open_shards(path)


def test_opening_by_the_manifest_reads_no_index_and_names_the_same_data(written, monkeypatch):
    folder, _ = written
    slow = fingerprint(TarShard(s.path) for s in open_shards(folder))
    monkeypatch.setattr("seer.data.shards.tar_shard.read_index", None)
    monkeypatch.setattr("seer.data.shards.tar_shard.build_index", None)
    shards = open_shards(folder)
    assert fingerprint(shards) == slow and [len(s) for s in shards] == [5, 6, 6, 6]


def test_more_shards_than_may_be_open_are_read_in_any_order_and_close_again(tmp_path, monkeypatch):
    monkeypatch.setattr("seer.data.shards.tar_shard.MOST_OPEN", 3)
    write_shards(SAMPLES, tmp_path, total=23, per_shard=1)
    before = len(os.listdir("/proc/self/fd"))
    shards = open_shards(tmp_path)
    order = np.random.default_rng(0).integers(0, 23, 200)
    assert [shards[i].read(int(i), 0).key for i in order] == [SAMPLES[i][0] for i in order]
    assert len(os.listdir("/proc/self/fd")) <= before + 3
    del shards
    assert len(os.listdir("/proc/self/fd")) <= before


def test_an_archive_that_is_opened_again_finds_its_index_still_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("seer.data.shards.tar_shard.MOST_OPEN", 3)
    write_shards(SAMPLES, tmp_path, total=23, per_shard=1)
    read = []
    monkeypatch.setattr(
        "seer.data.shards.tar_shard.read_index", lambda *paths: read.append(paths) or read_index(*paths)
    )
    shards = open_shards(tmp_path)
    for _ in range(3):
        assert [shard.read(0, 0).key for shard in shards] == [key for key, _ in SAMPLES]
    assert len(read) == 23


def test_indexes_in_memory_are_bounded_by_their_bytes_and_the_oldest_goes(tmp_path, monkeypatch):
    monkeypatch.setattr("seer.data.shards.tar_shard.MOST_INDEXED", 3 * 2 * INDEX.itemsize, raising=False)
    write_shards(SAMPLES, tmp_path, total=23, per_shard=1)
    read = []
    monkeypatch.setattr(
        "seer.data.shards.tar_shard.read_index", lambda *paths: read.append(paths) or read_index(*paths)
    )
    shards = open_shards(tmp_path)
    for number in (0, 1, 2, 0, 1, 2, 3, 1, 2, 3, 0):
        shards[number].read(0, 0)
    assert [Path(path).name[:12] for path, _ in read] == [f"shard-00000{i}" for i in (0, 1, 2, 3, 0)]


@pytest.mark.slow
@pytest.mark.parametrize(("hard", "most"), [(64, 32), (4096, 2048)])
def test_as_many_archives_may_be_open_as_half_of_what_the_system_allows_at_most(hard, most):
    code = f"""if True:
        import resource
        allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if {hard} > allowed > 0:
            print("skip")
        else:
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))
            from seer.data.shards import tar_shard as shards
            print(shards.Opened()._most, resource.getrlimit(resource.RLIMIT_NOFILE)[0])"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    if said == ["skip"]:
        pytest.skip("the hard limit is lower here")
    assert said == [str(most), str(hard)]


@pytest.mark.parametrize("hard", [200_000, 10**9, resource.RLIM_INFINITY])
def test_however_many_files_the_system_allows_no_more_are_asked_for_than_are_of_use(monkeypatch, hard):
    limits = [(1024, hard)]
    monkeypatch.setattr("seer.data.shards.tar_shard.resource.getrlimit", lambda _: limits[-1])
    monkeypatch.setattr("seer.data.shards.tar_shard.resource.setrlimit", lambda _, pair: limits.append(pair))
    assert Opened()._most == 65_536 and limits[1:] == [(131_072, hard)]


def many(folder: Path, count: int) -> None:
    """Empty archives of the right length with an index beside each, and a manifest."""
    index = np.array([(0, 2048, 0), (2048, 2048, 0), (10240, 0, 0)], INDEX)
    write_index(index, folder / "index")
    for i in range(count):
        with open(folder / f"shard-{i:06d}.tar", "wb") as file:
            file.truncate(10240)
        os.link(folder / "index", folder / f"shard-{i:06d}.tar.index.npy")
    entries = [{"name": f"shard-{i:06d}.tar", "count": 2, "bytes": 10240} for i in range(count)]
    write_manifest(folder, [{**one, "sha256": "0" * 64, "index": checksum(index)} for one in entries])


@pytest.mark.parametrize("count", [5_000, pytest.param(50_000, marks=pytest.mark.long)])
def test_many_shards_with_a_manifest_open_in_the_time_of_ten_looks_and_five_hundred_bytes_each(tmp_path, count):
    """A look is os.stat of archive and index. Where indexes are read it takes twenty."""
    many(tmp_path, count)
    tars = [f"{tmp_path}/shard-{i:06d}.tar" for i in range(count)]
    times, looks = [], []
    for _ in range(5):
        start = time.process_time()
        shards = open_shards(tmp_path)
        between = time.process_time()
        for tar in tars:
            os.stat(tar), os.stat(tar + ".index.npy")
        times.append(between - start)
        looks.append(time.process_time() - between)
    assert len(shards) == count and min(times) < 10 * min(looks), (min(times), min(looks))
    del shards
    tracemalloc.start()
    try:
        shards = open_shards(tmp_path)
        assert len(shards) == count and tracemalloc.get_traced_memory()[0] < 500 * count
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_device_under_the_name_of_an_image_costs_its_row_and_is_not_waited_for(tmp_path, kind):
    (tmp_path / "b.jpg").write_bytes(jpeg(1))
    if kind == "pipe":
        os.mkfifo(tmp_path / "a.jpg")
    else:
        (tmp_path / "a.jpg").symlink_to("/dev/zero")
    (shard,) = open_shards(tmp_path)
    with pytest.raises(TarError, match=naming("a.jpg", "plain file")):
        shard.read(0, 0)
    assert shard.read(0, 1).key == "b"


def test_a_pipe_under_the_name_of_a_tar_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(StorageError, match=naming("a.tar", "plain file")):
        open_shards(tmp_path / "a.tar")


def test_a_link_to_a_folder_above_is_not_walked_for_ever(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").write_bytes(b"x")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (shard,) = open_shards(tmp_path)
    assert shard.keys() == ["a/x", "b/x"]


def test_names_of_a_folder_come_in_the_order_of_their_whole_paths(tmp_path):
    random = np.random.default_rng(0)
    names = {"".join(random.choice(list("ab./-é_"), 7)).strip("/.") for _ in range(300)}
    for name in names:
        path = tmp_path / (name + ".jpg")
        if not any(part in ("", ".", "..") or part.startswith(".") for part in (name + ".jpg").split("/")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")
    expected = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.jpg") if p.is_file())
    (shard,) = open_shards(tmp_path)
    assert len(expected) > 100 and [shard.name(r) for r in range(len(shard))] == expected


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x93NUMPY\x01\x00"])
def test_an_unreadable_index_is_told_with_the_remedy(written, content):
    folder, manifest = written
    path = folder / manifest["shards"][0]["name"]
    (folder / f"{path.name}.index.npy").write_bytes(content)
    with pytest.raises(StorageError, match=naming("unreadable", f"delete {path.name}.index.npy")):
        open_shards(path)


@pytest.mark.parametrize("rows", [1, 10, 123_456])
def test_an_index_is_read_as_numpy_reads_it(tmp_path, rows):
    index = np.zeros(rows, INDEX)
    index["offset"], index["size"] = np.arange(rows), 1
    index[-1] = (rows, 0, 0)
    (tmp_path / "x").write_bytes(bytes(rows))
    write_index(index, tmp_path / "i")
    np.testing.assert_array_equal(read_index(tmp_path / "i", tmp_path / "x"), np.load(tmp_path / "i"))


@pytest.mark.parametrize("other", [np.zeros(4, [("a", "<u8"), ("b", "<u8")]), np.zeros((2, 2), INDEX)])
def test_an_array_of_another_type_or_shape_is_no_index(tmp_path, other):
    np.save(tmp_path / "i.npy", other)
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(StorageError, match=naming("i.npy", "delete")):
        read_index(tmp_path / "i.npy", tmp_path / "x")


@pytest.mark.parametrize("gone", [[1], [0, 1, 2, 3]])
def test_tars_that_the_manifest_names_and_the_folder_lacks_are_told(tmp_path, gone):
    folder = tmp_path / "part"
    manifest = write_shards(SAMPLES, folder, total=23, per_shard=6)
    for number in gone:
        (folder / manifest["shards"][number]["name"]).unlink()
    with pytest.raises(StorageError, match=naming(len(gone), 4, "manifest.json", f"shard-00000{gone[0]}.tar")):
        open_shards(folder)
    with pytest.raises(StorageError, match=naming("manifest.json", f"shard-00000{gone[0]}.tar")):
        open_shards(tmp_path)
    (folder / "manifest.json").unlink()
    if gone == [1]:
        assert len(open_shards(folder)) == 3


def test_tars_beside_a_manifest_that_does_not_name_them_are_read_and_told(written, caplog):
    folder, _ = written
    write_tar(folder / "z.tar", [("a.jpg", jpeg(0))])
    with caplog.at_level("WARNING", "seer"):
        assert len(open_shards(folder)) == 5
    assert says(caplog.text, 1, "tars", "manifest.json")


@pytest.mark.parametrize("source", ["{d}", "{d}/part/*.tar", "{d}/part/shard-000000.tar", "{d}/part"])
def test_shards_that_are_not_all_written_are_refused_with_the_remedy(tmp_path, source):
    write_shards(SAMPLES, tmp_path / "part", total=23, per_shard=6)
    (tmp_path / "part" / "manifest.json").unlink()
    (tmp_path / "part" / ".unfinished.jsonl").write_text('{"request": "0"}\n')
    with pytest.raises(RequestError, match=naming(".unfinished.jsonl", "seer shard")):
        open_shards(source.format(d=tmp_path))


def test_tars_and_loose_images_in_one_folder_are_refused_as_one_kind_would_be_left_out(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "b.JPG").write_bytes(jpeg(0))
    write_tar(tmp_path / "x.tar", [("a.jpg", jpeg(0))])
    with pytest.raises(RequestError, match=naming(1, "x.tar", "photos/b.JPG")):
        open_shards(tmp_path)
    assert len(open_shards([f"{tmp_path}/*.tar", tmp_path / "photos"])) == 2


def test_many_threads_read_indexes_at_once(written):
    # np.load fails at this on CPython 3.11: its header goes through `ast`, which is not safe there when threads change inside
    # it, as they may whenever the collector runs something in Python
    folder, _ = written
    path = next(folder.glob("*.tar"))
    sidecar = Path(f"{path}.index.npy")
    interval, threshold = sys.getswitchinterval(), gc.get_threshold()

    def dawdle(phase, info):
        sum(range(50))

    gc.callbacks.append(dawdle)
    sys.setswitchinterval(1e-6)
    gc.set_threshold(5)
    try:
        with ThreadPoolExecutor(8) as pool:
            lengths = {len(i) for i in pool.map(lambda _: read_index(sidecar, path), range(300))}
    finally:
        gc.set_threshold(*threshold)
        sys.setswitchinterval(interval)
        gc.callbacks.remove(dawdle)
    assert len(lengths) == 1


def test_an_index_that_is_a_pickle_runs_nothing(written, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    folder, manifest = written
    path = folder / manifest["shards"][0]["name"]
    np.save(f"{path}.index.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(StorageError):
        open_shards(path)
    assert not (tmp_path / "ran").exists()


def test_a_folder_of_images_is_one_shard_in_the_order_of_names_nested_or_not(tmp_path):
    for i, name in enumerate(["b/2.jpg", "a/1.PNG", "a/x/3.webp", "top.jpeg", "a/notes.txt", ".hidden.jpg"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes([i]))
    (shard,) = open_shards(tmp_path)
    assert shard.keys() == ["a/1", "a/x/3", "b/2", "top"]
    assert [image_of(shard.read(0, r)) for r in range(4)] == [b"\1", b"\2", b"\0", b"\3"]
    assert class_names([shard]) == ["", "a", "b", "x"]


def test_an_image_that_vanishes_from_a_folder_is_a_failure_of_storage(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    (shard,) = open_shards(tmp_path)
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(StorageError, match=r"a\.jpg"):
        shard.read(0, 0)


@pytest.fixture
def tars(tmp_path):
    for i in range(4):
        write_tar(tmp_path / f"s-{i:03d}.tar", [(f"{i}-{j}.jpg", jpeg(j)) for j in range(2)])
    return tmp_path


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{d}", [0, 1, 2, 3]),
        ("{d}/s-002.tar", [2]),
        ("file://{d}/s-002.tar", [2]),
        ("file:{d}/s-002.tar", [2]),
        ("{d}/s-{{000..002}}.tar", [0, 1, 2]),
        ("{d}/s-00{{1..2}}.tar", [1, 2]),
        ("{d}/s-{{003,001}}.tar", [3, 1]),
        ("{d}/s-*.tar", [0, 1, 2, 3]),
        ("{d}/s-00[13].tar", [1, 3]),
        ("{d}/s-00?.tar", [0, 1, 2, 3]),
    ],
)
def test_a_source_names_these_shards_in_this_order(tars, source, expected):
    source = source.format(d=tars)
    assert [s.path.name for s in open_shards(source)] == [f"s-{i:03d}.tar" for i in expected]
    assert [s.path.name for s in open_shards([source])] == [f"s-{i:03d}.tar" for i in expected]


def test_a_list_of_sources_keeps_its_order(tars):
    found = open_shards([f"{tars}/s-003.tar", tars / "s-000.tar"])
    assert [s.path.name for s in found] == ["s-003.tar", "s-000.tar"]


def test_odd_names_on_disk_are_names_before_they_are_patterns(tmp_path):
    for name in ("{1..2}.tar", "a[1].tar", "with space (1).tar", "pipe:touch x.tar"):
        write_tar(tmp_path / name, [("a.jpg", jpeg(0))])
        assert [s.path.name for s in open_shards(tmp_path / name)] == [name]


@pytest.mark.parametrize(
    "sources", [["s-000.tar", "s-000.tar"], ["s-001.tar", "s-*.tar"], ["s-{001..002}.tar", "./s-002.tar"]]
)
def test_a_shard_listed_twice_is_refused_by_name(tars, sources):
    with pytest.raises(RequestError, match=r"s-00\d\.tar.*(twice|once)"):
        open_shards([f"{tars}/{s}" for s in sources])


@pytest.mark.parametrize("missing", ["s-009.tar", "s-{002..005}.tar", "x-*.tar", "nowhere/"])
def test_what_does_not_exist_is_refused_by_name(tars, missing):
    with pytest.raises(RequestError, match=naming(missing.rstrip("/"), "exist")):
        open_shards(f"{tars}/{missing}")


@pytest.mark.parametrize(
    ("source", "scheme"),
    [
        ("pipe:touch {d}/ran", "pipe"),
        ("pipe:touch {d}/ran; cat {d}/s-000.tar", "pipe"),
        ("http://localhost:9/{{000..002}}.tar", "http"),
        ("https://localhost/x.tar?sig=a=b&e=1", "https"),
        ("s3://bucket/x.tar", "s3"),
        ("data:text/plain,touch", "data"),
    ],
)
def test_urls_are_refused_by_their_scheme_and_nothing_runs(tars, source, scheme):
    with pytest.raises(RequestError, match=naming("scheme", repr(scheme))):
        open_shards(source.format(d=tars))
    assert not (tars / "ran").exists()


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        (["a.jpg", "b.jpg", "a.jpg"], "'a'"),
        (["a.jpg", "a.jpg"], "'a'"),
        (["a.jpg", "a.cls", "a.jpg"], "'a'"),
    ],
)
def test_samples_that_cannot_be_told_apart_are_refused_by_name(tmp_path, members, complaint):
    path = write_tar(tmp_path / "x.tar", [(name, jpeg(0)) for name in members])
    with pytest.raises(TarError, match=naming(complaint, "byte")) as caught:
        open_shards(path)
    assert str(path) in str(caught.value)


def test_dots_in_names_do_not_merge_samples(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("photo.1.2.jpg", b"a"), ("photo.1.3.jpg", b"b"), ("photo.1.3.cls", b"7")])
    assert read_all(path) == [("photo.1.2", {"jpg": b"a"}), ("photo.1.3", {"jpg": b"b", "cls": b"7"})]


def test_members_of_unknown_kinds_pass_through_and_samples_without_an_image_do_not_count(tmp_path):
    members = [("README", b"hi"), ("a.JPG", b"A"), ("a.json", b"{}"), ("b.txt", b"no image"), ("c.png", b"C")]
    assert read_all(write_tar(tmp_path / "x.tar", members)) == [
        ("a", {"jpg": b"A", "json": b"{}"}),
        ("c", {"png": b"C"}),
    ]


@pytest.mark.parametrize("kind", ["folder", "tar", "one of two"])
def test_no_images_is_a_wrong_request_that_names_the_place(tmp_path, kind):
    if kind == "folder":
        (tmp_path / "notes.txt").write_text("x")
    if kind != "folder":
        write_tar(tmp_path / "empty.tar", [("notes.txt", b"x")])
    if kind == "one of two":
        write_tar(tmp_path / "a.tar", [("a.jpg", b"x")])
    with pytest.raises(RequestError, match=naming("no images", tmp_path if kind == "folder" else "empty.tar")):
        open_shards(tmp_path)


def test_a_damaged_archive_is_refused_with_its_path(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a.jpg", jpeg(0)), ("b.jpg", jpeg(1))])
    os.truncate(path, path.stat().st_size - 10240 + 1024)
    with pytest.raises(TarError, match=r"x\.tar: "):
        open_shards(path)


def test_names_that_climb_out_of_the_archive_stay_names(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    names = ["../../evil.jpg", f"{tmp_path}/absolute.jpg", "a/../../b.jpg"]
    path = write_tar(inside / "x.tar", [(name, png(i)) for i, name in enumerate(names)])
    samples = read_all(path)
    write_shards(
        ((f"{i:03d}", fields) for i, (_, fields) in enumerate(samples)), tmp_path / "out", total=3, per_shard=3
    )
    everything = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert [key for key, _ in samples] == [n.removesuffix(".jpg") for n in names]
    assert everything == [
        "inside/x.tar", "out/manifest.json", "out/shard-000000.tar", "out/shard-000000.tar.index.npy",
    ]  # fmt: skip


def test_threads_and_two_processes_may_read_one_open_shard(written):
    folder, _ = written
    (shard, *_) = open_shards(folder)
    expected = SAMPLES[3][1]["jpg"]
    child = os.fork()
    if child == 0:  # the child reads first and last rows through the descriptor of its parent
        good = all(shard.read(0, r).fields["jpg"] == SAMPLES[r][1]["jpg"] for r in (4, 0) for _ in range(50))
        os._exit(0 if good else 1)
    assert all(shard.read(0, 3).fields["jpg"] == expected for _ in range(100))
    assert os.waitpid(child, 0)[1] == 0


def test_a_tar_of_webp_and_gnu_names_reads_as_tarfile_reads_it(tmp_path):
    members = [("n" * 120 + f"/{i}.webp", bytes([i]) * 99) for i in range(5)]
    data = io.BytesIO((write_tar(tmp_path / "x.tar", members, tarfile.GNU_FORMAT)).read_bytes())
    with tarfile.open(fileobj=data) as tar:
        expected = [(m.name.removesuffix(".webp"), {"webp": tar.extractfile(m).read()}) for m in tar]
    assert read_all(tmp_path / "x.tar") == expected
    assert open_shards(tmp_path / "x.tar")[0].keys() == [key for key, _ in expected]


def test_a_repeated_shard_is_found_among_twenty_thousand():
    with pytest.raises(RequestError, match=naming("/dev/null", "twice")):
        open_shards(["/dev/null"] * 20_000)
