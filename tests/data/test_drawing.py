"""Shards of built-in images: the same bytes from any number of processes, and after a kill."""

import pytest

from seer.core.errors import RequestError
from seer.data import drawing
from seer.data import synthetic as sample
from seer.data.drawing import draw_shards
from seer.data.shards.open import open_shards
from seer.data.shards.writer import JOURNAL, write_shards

COUNTS = {"train": 50, "test": 20}


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(drawing, "PER_SHARD", 12)


@pytest.fixture
def alone(tmp_path):
    """What one process writes, image by image."""
    first = 0
    for part, count in COUNTS.items():
        card = {"classes": list(sample.SHAPE_CLASSES)}
        write_shards(sample.samples(count, 3, first), tmp_path / "alone" / part, total=count, per_shard=12, card=card)
        first += count
    return files(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 3])
def test_the_bytes_are_those_of_one_process(tmp_path, alone, processes):
    draw_shards(tmp_path / "many", COUNTS, 3, processes)
    assert files(tmp_path / "many") == alone
    assert sum(map(len, open_shards(tmp_path / "many" / "train"))) == 50


@pytest.mark.slow
def test_what_a_kill_left_is_gone_on_with(tmp_path, alone, monkeypatch):
    drawn = []

    def dies(path, samples):
        if path.name.startswith("shard-000003"):
            raise KeyboardInterrupt
        return whole(path, samples)

    whole = drawing.write_shard
    monkeypatch.setattr(drawing, "write_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        draw_shards(tmp_path / "many", COUNTS, 3, 1)
    left = files(tmp_path / "many")
    assert JOURNAL in left and 0 < len(left) < len(alone)
    monkeypatch.setattr(drawing, "write_shard", lambda path, samples: drawn.append(path) or whole(path, samples))
    with pytest.raises(RequestError):
        draw_shards(tmp_path / "many", COUNTS, 4, 1)  # another seed's images would lie among them
    draw_shards(tmp_path / "many", COUNTS, 3, 1)
    assert files(tmp_path / "many") == alone


@pytest.mark.slow
def test_a_part_that_is_whole_stays(tmp_path, alone):
    draw_shards(tmp_path / "many", {"train": 50, "test": 0}, 3, 2)
    before = (tmp_path / "many" / "train" / "manifest.json").stat().st_mtime_ns
    draw_shards(tmp_path / "many", COUNTS, 3, 2)
    assert files(tmp_path / "many") == alone
    assert (tmp_path / "many" / "train" / "manifest.json").stat().st_mtime_ns == before
