"""Excluded images are never read, whatever form names them, and all other images stay where they were."""

import json
from dataclasses import asdict

import pytest
import torch

from seer.core.errors import BadDataError, RequestError
from seer.data.decode import decode
from seer.data.loading.loader import Loader
from seer.data.loading.reader import Reader
from seer.data.multicrop import MultiCrop
from seer.data.order import plan
from seer.data.quarantine import Excluded, read_exclude
from seer.data.shards.open import open_shards
from seer.data.shards.shard import image_of
from seer.data.shards.writer import write_shards
from tests.data.image_files import jpeg, png, write_tar
from tests.messages import naming, says

CROP = MultiCrop((16, 8), (2, 1), ((0.3, 1), (0.1, 0.3)))
N = 60


def write(folder, broken=()):
    make = ((f"k{i:03d}", {"png": b"not an image" if i in broken else png(i)}) for i in range(N))
    write_shards(make, folder, total=N, per_shard=20)
    return folder


class Watched:
    """A shard that remembers which rows were read."""

    def __init__(self, shard):
        self.shard, self.path, self.seen = shard, shard.path, set()

    def __len__(self):
        return len(self.shard)

    def read(self, number, row):
        self.seen.add(row)
        return self.shard.read(number, row)


def epoch(folder, exclude=None, block=20, steps=4):
    """Batches of a little more than one epoch, and which (shard, row) were read."""
    shards = [Watched(s) for s in open_shards(folder)]
    reader = Reader(shards, plan([20] * 3, seed=0, lanes=5, block=block), 0, exclude)
    stream = Loader(reader, CROP, batch=20, threads=0).batches(0)  # here, where reads can be counted
    batches = [next(stream) for _ in range(steps)]
    stream.close()
    return batches, {(n, r) for n, s in enumerate(shards) for r in s.seen}


def views(batch):
    return [batch.fields["views/16"], batch.fields["views/8"]]


def same(a, b):
    return all(torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(views(p), views(q), strict=True))


def test_a_run_with_its_own_skipped_list_sees_the_same_images_and_skips_nothing(tmp_path):
    folder = write(tmp_path / "d", broken={3, 7, 21, 22, 59})
    batches, read = epoch(folder)
    skipped = [s for b in batches for s in b.skipped]
    assert {(0, 3), (0, 7), (1, 1), (1, 2), (2, 19)} <= read and len(skipped) >= 5
    (tmp_path / "skipped.jsonl").write_text("".join(json.dumps({"step": 0, **asdict(s)}) + "\n" for s in skipped))
    exclude = read_exclude(tmp_path / "skipped.jsonl", open_shards(folder))
    again, read_now = epoch(folder, exclude)
    assert same(batches, again) and not any(b.skipped for b in again)
    assert read_now == read - {(0, 3), (0, 7), (1, 1), (1, 2), (2, 19)}


def test_an_excluded_good_image_is_replaced_alone(tmp_path):
    folder = write(tmp_path)
    before, _ = epoch(folder, steps=3)
    after, read = epoch(folder, Excluded([(1, 4)]), steps=3)
    changed = [
        (x != y).flatten(1).any(1).unflatten(0, (2, 20)).any(0).sum().item()
        for x, y in ((views(a)[0], views(b)[0]) for a, b in zip(before, after, strict=True))
    ]
    assert sum(changed) == 1 and (1, 4) not in read and len(read) == N - 1


@pytest.mark.parametrize(
    "form", ["path", "name", "with extension", "jsonl without row of ours", "two files", "comments"]
)
def test_a_list_may_name_images_in_these_ways(tmp_path, form):
    folder = write(tmp_path / "d")
    path = folder / "shard-000001.tar"
    lines = {
        "path": f"{path}\tk024\n",
        "name": f"{path.name}\tk024",
        "with extension": f"elsewhere/{path.name}\tk024.png\r\n",
        "jsonl without row of ours": json.dumps({"shard": path.name, "member": "k024", "row": 9}),
        "two files": "",
        "comments": f"# withdrawn\n\n{path}\tk024\n",
    }
    (tmp_path / "list").write_text(lines[form], newline="")
    (tmp_path / "other").write_text(lines["path"])
    files = [tmp_path / "list", tmp_path / "other"] if form == "two files" else str(tmp_path / "list")
    found = read_exclude(files, open_shards(folder))
    assert len(found) == 1 and (1, 4) in found and (1, 5) not in found and (0, 4) not in found


def test_a_row_whose_name_could_not_be_read_is_named_by_its_number(tmp_path):
    folder = write(tmp_path / "d")
    path = folder / "shard-000001.tar"
    data = bytearray(path.read_bytes())
    data[int(open_shards(path)[0].index[4]["offset"]) + 3] ^= 1  # in its header
    path.write_bytes(data)
    batches, _ = epoch(folder)
    skipped = [s for b in batches for s in b.skipped]
    assert {s.member for s in skipped} == {"row 4"} and {s.kind for s in skipped} == {"checksum"}
    (tmp_path / "list").write_text(json.dumps(asdict(skipped[0])))
    assert (1, 4) in read_exclude(tmp_path / "list", open_shards(folder))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("shard-000001.tar\tnobody", ("line 1", "shard-000001.tar", "'nobody'")),
        ("just words", ("line 1", "'just words'")),
        ('{"shard": "x"}', ("line 1", "skipped.jsonl")),
        ("{broken", ("line 1", "skipped.jsonl")),
    ],
)
def test_a_line_that_names_nothing_is_refused_with_its_number(tmp_path, line, reason):
    folder = write(tmp_path / "d")
    (tmp_path / "list").write_text(line)
    with pytest.raises(RequestError, match=naming(*reason)):
        read_exclude(tmp_path / "list", open_shards(folder))


def test_a_list_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RequestError, match=naming("exclude=", tmp_path / "nowhere")):
        read_exclude(tmp_path / "nowhere", [])


def test_two_shards_of_one_name_are_not_guessed_between(tmp_path):
    for part in "ab":
        (tmp_path / part).mkdir()
        write_tar(tmp_path / part / "x.tar", [("k.jpg", jpeg(0))])
    shards = open_shards([tmp_path / "a" / "x.tar", tmp_path / "b" / "x.tar"])
    (tmp_path / "list").write_text("x.tar\tk")
    with pytest.raises(RequestError, match=naming(2, "shards", "x.tar")):
        read_exclude(tmp_path / "list", shards)
    (tmp_path / "list").write_text(f"{tmp_path}/b/x.tar\tk")
    assert (1, 0) in read_exclude(tmp_path / "list", shards)


def test_shards_that_are_gone_are_told_and_passed_over(tmp_path, caplog):
    folder = write(tmp_path / "d")
    (tmp_path / "list").write_text("gone.tar\ta\ngone.tar\tb\nshard-000000.tar\tk001\n")
    with caplog.at_level("WARNING", logger="seer"):
        assert len(read_exclude(tmp_path / "list", open_shards(folder))) == 1
    assert says(caplog.text, "2 lines", "1 shards", "gone.tar")


def test_a_shard_excluded_as_a_whole_is_replaced_from_the_rest_of_its_epoch(tmp_path):
    folder = write(tmp_path)
    batches, read = epoch(folder, Excluded([(1, r) for r in range(20)]), block=2)
    assert len(batches) == 4 and not any(s == 1 for s, _ in read)


def test_everything_excluded_is_told_as_that(tmp_path):
    folder = write(tmp_path)
    with pytest.raises(BadDataError, match=naming("exclude", 60)):
        epoch(folder, Excluded([(s, r) for s in range(3) for r in range(20)]))


@pytest.mark.parametrize("member", ["b.png", "b", "row 1"])
def test_a_loose_image_is_excluded_by_its_file_name_as_it_is_told_and_by_its_key(tmp_path, member):
    (tmp_path / "d").mkdir()
    for name in ("a.jpg", "b.png"):
        (tmp_path / "d" / name).write_bytes(jpeg(0))
    shards = open_shards(tmp_path / "d")
    (tmp_path / "list").write_text(json.dumps({"shard": "d", "member": member, "row": 1, "step": 0}))
    assert (0, 1) in read_exclude(tmp_path / "list", shards) and len(read_exclude(tmp_path / "list", shards)) == 1


def test_a_loose_image_that_cannot_be_used_is_told_with_its_ending(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.jpg").write_bytes(jpeg(0))
    (tmp_path / "d" / "b.bmp").write_bytes(b"none")
    shards = open_shards(tmp_path / "d")
    reader, skipped = Reader(shards, plan([2], seed=0, lanes=1), 0), []
    assert reader._try(0, 0, 1, 0, skipped, lambda sample: decode(image_of(sample))) is None
    assert [one.member for one in skipped] == ["b.bmp"]
