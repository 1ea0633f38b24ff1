"""Batches do not depend on threads, prefetch, ranks or restarts; a broken image costs itself alone and is told."""

from contextlib import closing

import numpy as np
import pytest
import torch

from seer.core.errors import BadDataError, RequestError, StorageError
from seer.data.ledger import Ledger
from seer.data.loading.loader import Loader
from seer.data.loading.reader import MOST_BAD, Reader
from seer.data.loading.reader_worker import CHUNK
from seer.data.multicrop import MultiCrop
from seer.data.order import plan
from seer.data.shards.open import open_shards
from seer.data.shards.writer import write_shards
from tests.data.children import children
from tests.data.image_files import jpeg, pixels, png
from tests.messages import naming

N, LANES = 70, 8
CROP = MultiCrop((16, 8), (2, 1), ((0.3, 1), (0.1, 0.3)))


def loader(folder, *, batch=16, lanes=LANES, seed=0, block=10, **how) -> Loader:
    shards = open_shards(folder)
    return Loader(
        Reader(shards, plan([len(s) for s in shards], seed=seed, lanes=lanes, block=block), seed),
        CROP,
        batch=batch,
        **how,
    )


def take(one: Loader, steps: int, consumed: int = 0) -> list:
    stream = one.batches(consumed)
    batches = [next(stream) for _ in range(steps)]
    stream.close()
    return batches


def tensors(batch) -> list[torch.Tensor]:
    return list(batch.fields.values())


def cut(image, draw) -> dict[str, np.ndarray]:
    """The views of one image, as a batch of its own."""
    out = {f"views/{s}": np.zeros((v, s, s, 3), np.uint8) for v, s in zip(CROP.counts, CROP.sizes, strict=True)}
    CROP.crop(image, draw, out, 0)
    return out


def same(a, b) -> bool:
    return (
        a.images_seen == b.images_seen
        and list(a.fields) == list(b.fields)
        and all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))
    )


def write(folder, broken=(), total=N, per_shard=20):
    """Images of which some are garbage under the name of an image."""
    make = ((f"k{i:03d}", {"png": b"not an image" if i in broken else png(i)}) for i in range(total))
    write_shards(make, folder, total=total, per_shard=per_shard)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def expected(folder):
    return take(loader(folder, threads=1, prefetch=1), 12)  # more than two epochs


@pytest.mark.parametrize(("threads", "prefetch"), [(0, 1), (1, 9), (2, 1), (5, 3)])
def test_batches_are_the_same_whatever_threads_and_prefetch(folder, expected, threads, prefetch):
    found = take(loader(folder, threads=threads, prefetch=prefetch), 12)
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))


def test_batches_are_uint8_channels_last_view_major_and_tell_how_many_images_were_seen(expected):
    batch = expected[0]
    views = [batch.fields["views/16"], batch.fields["views/8"]]
    assert [tuple(c.shape) for c in views] == [(32, 3, 16, 16), (16, 3, 8, 8)]
    assert all(c.dtype == torch.uint8 and c.is_contiguous(memory_format=torch.channels_last) for c in views)
    assert [len(batch.fields[f"color/{size}/sigma"]) for size in (16, 8)] == [32, 16]
    assert [b.images_seen for b in expected] == [16 * (i + 1) for i in range(12)]


def test_images_are_those_of_the_plan_cut_with_the_draws_of_their_own_key(folder, expected):
    one = loader(folder)
    places = one.reader.plan.places(16, 16)
    for i in (0, 7, 15):
        decoded, key, skipped = one.reader.read(places, i, CROP.decode)
        assert not skipped and key is None
        number = int(open_shards(folder)[places.shard[i]].read(0, int(places.row[i])).key[1:])
        image = decoded["image"]
        assert (image == pixels(number)).all()
        draw = CROP.draw(24, 20, int(one.reader.keys(places)[i]))
        out = cut(image, draw)
        large, small = (expected[1].fields[f"views/{size}"].permute(0, 2, 3, 1).numpy() for size in (16, 8))
        assert (large.reshape(2, 16, *large.shape[1:])[:, i] == out["views/16"]).all()
        assert (small[i] == out["views/8"][0]).all()
        assert expected[1].fields["color/16/factors"][16 + i].tolist() == draw.factors[1].tolist()


@pytest.mark.parametrize("step", [1, 4, 9])
def test_going_on_from_a_position_gives_the_same_batches_bit_by_bit(folder, expected, step):
    found = take(loader(folder, threads=3), 3, consumed=expected[step - 1].images_seen)
    assert all(same(a, b) for a, b in zip(found, expected[step:], strict=False))


def test_an_image_gets_other_views_in_its_next_epoch_and_with_another_seed(folder, expected):
    other = take(loader(folder, seed=1), 1)[0]
    assert not torch.equal(other.fields["views/16"], expected[0].fields["views/16"])
    seen = {bytes(c.numpy().tobytes()) for b in expected for c in b.fields["views/16"]}
    assert len(seen) == 12 * 32


@pytest.mark.parametrize("ranks", [2, 4])
def test_batches_of_all_ranks_joined_are_the_batch_of_one(folder, expected, ranks):
    parts = [take(loader(folder, rank=r, ranks=ranks), 6) for r in range(ranks)]
    for step in range(6):
        of_ranks, whole = [p[step] for p in parts], expected[step]
        assert {p.images_seen for p in of_ranks} == {whole.images_seen}
        assert len(whole.fields) == 2 * (1 + 5)
        for name, tensor in whole.fields.items():
            views = {"16": 2, "8": 1}[name.split("/")[1]]
            joined = torch.cat([p.fields[name].unflatten(0, (views, -1)) for p in of_ranks], 1).flatten(0, 1)
            assert torch.equal(joined, tensor)


def test_a_broken_image_is_replaced_and_named_and_all_others_stay_as_they_were(tmp_path, expected):
    found = take(loader(write(tmp_path, broken={33}), threads=3), 12)
    skipped = [s for b in found for s in b.skipped]
    assert {s.member for s in skipped} == {"k033"} and len(skipped) >= 2  # once in each epoch begun
    assert all("not a JPEG, PNG, WebP" in s.reason and s.shard.endswith(".tar") and s.row >= 0 for s in skipped)
    changed = 0
    for batch, whole in zip(found, expected, strict=True):
        differ = (
            (batch.fields["views/16"] != whole.fields["views/16"]).flatten(1).any(1).unflatten(0, (2, 16)).any(0)
        )  # [B]
        changed += int(differ.sum())
        assert int(differ.sum()) <= len(batch.skipped)
    assert 2 <= changed <= len(skipped)


def test_a_stand_in_is_cut_with_draws_of_its_own_key(tmp_path):
    one = loader(write(tmp_path, broken={33}), threads=0)
    batch = next(batch for batch in take(one, 5) if batch.skipped)
    places = one.reader.plan.places(batch.images_seen - 16, 16)
    (i,) = [i for i in range(16) if one.reader.read(places, i, CROP.decode)[1] is not None]
    decoded, key, _ = one.reader.read(places, i, CROP.decode)
    out = cut(decoded["image"], CROP.draw(*decoded["image"].shape[:2], key))
    small = batch.fields["views/8"].permute(0, 2, 3, 1).numpy()
    assert (small[i] == out["views/8"][0]).all() and key not in one.reader.keys(places).tolist()


def test_stand_ins_are_the_same_for_two_ranks_and_after_a_restart(tmp_path):
    write(tmp_path, broken=range(0, 70, 5))
    whole = take(loader(tmp_path), 4)
    again = take(loader(tmp_path, threads=4), 2, consumed=whole[1].images_seen)
    assert all(same(a, b) and a.skipped == b.skipped for a, b in zip(again, whole[2:], strict=True))
    parts = [take(loader(tmp_path, rank=r, ranks=2), 4) for r in range(2)]
    for step in range(4):
        joined = torch.cat([p[step].fields["views/16"].unflatten(0, (2, -1)) for p in parts], 1).flatten(0, 1)
        assert torch.equal(joined, whole[step].fields["views/16"])
        assert parts[0][step].skipped + parts[1][step].skipped == whole[step].skipped


def test_twelve_bad_images_of_500_are_all_counted_once_an_epoch(tmp_path):
    bad = {3, 50, 51, 52, 99, 100, 250, 251, 300, 444, 498, 499}
    write(tmp_path, broken=bad, total=500, per_shard=120)
    one = loader(tmp_path, batch=50, lanes=50, block=100)
    batches = take(one, 10)  # one epoch
    names = [s.member for b in batches for s in b.skipped]
    assert set(names) == {f"k{i:03d}" for i in bad}
    assert 12 <= len(names) <= 20  # a stand-in may be bad as well, and is told too
    assert sum(len(b.fields["views/16"]) for b in batches) == 2 * 500


def test_a_flipped_byte_in_a_shard_is_skipped_with_the_reason(tmp_path):
    write(tmp_path)
    path = tmp_path / "shard-000001.tar"
    shard = open_shards(path)[0]
    data = bytearray(path.read_bytes())
    data[int(shard.index[4]["offset"]) + 600] ^= 1
    path.write_bytes(data)
    skipped = [s for b in take(loader(tmp_path), 5) for s in b.skipped]
    assert skipped and all(s.row == 4 and "checksum differs" in s.reason and s.shard == str(path) for s in skipped)


def test_32_bad_images_in_a_row_stop_the_run_and_all_are_named(tmp_path):
    assert MOST_BAD == 32
    write(tmp_path, broken=range(70))
    with pytest.raises(BadDataError, match=r"32 images in a row.*k0\d\d in .*shard-.*not a JPEG") as error:
        take(loader(tmp_path), 1)
    assert [s.attempt for s in error.value.skipped] == list(range(32))


@pytest.mark.parametrize(("total", "batch", "lanes"), [(3, 2, 1), (3, 6, 3), (5, 4, 4)])
def test_one_good_image_among_bad_ones_stands_in_for_all_and_each_bad_one_is_told_once_a_place(
    tmp_path, total, batch, lanes
):
    write(tmp_path, broken=range(1, total), total=total)
    one = loader(tmp_path, batch=batch, lanes=lanes)
    due = {f"k{i:03d}" for i in range(1, total)}
    for step in range(6):
        places = one.reader.plan.places(step * batch, batch)
        for i in range(batch):
            decoded, _, skipped = one.reader.read(places, i, CROP.decode)
            assert decoded["image"].shape and len({s.member for s in skipped}) == len(skipped) <= len(due)
            assert {s.member for s in skipped} <= due and [s.attempt for s in skipped] == list(range(len(skipped)))


def test_a_few_images_that_are_all_bad_are_each_told_once_and_end_with_65(tmp_path):
    write(tmp_path, broken=range(3), total=3)
    with pytest.raises(BadDataError, match=naming("data.source", 3, "k002", "shard-000000.tar")) as error:
        take(loader(tmp_path, batch=2, lanes=1), 1)
    assert error.value.exit_status == 65
    assert sorted(s.member for s in error.value.skipped) == ["k000", "k001", "k002"]


@pytest.mark.slow
def test_half_of_all_images_bad_is_no_reason_to_stop_before_the_limits_say_so(tmp_path):
    write(tmp_path, broken=[i for i in range(700) if i // 20 % 2], total=700)  # every other shard: whole blocks
    batches = take(loader(tmp_path), 200)
    assert max(s.attempt for b in batches for s in b.skipped) > 8


def test_a_shard_that_is_bad_as_a_whole_meets_the_limit_for_shards_and_each_image_is_told(tmp_path):
    write(tmp_path, broken=range(40, 60), total=2020)  # a block holds little more than this shard
    one = loader(tmp_path, block=8)
    ledger, told = Ledger(one.reader.shards, "5%"), []
    with (
        closing(one.batches(0)) as stream,
        pytest.raises(BadDataError, match=r"1\d of the 20 .*shard-000002\.tar are bad"),
    ):
        for batch in stream:
            told += batch.skipped
            ledger.add(16, batch.skipped)
            ledger.check()
    assert sum(s.attempt == 0 for s in told) > 10 and {s.shard[-8:] for s in told} == {"0002.tar"}


def test_storage_that_fails_is_no_bad_image_and_stops_the_run(tmp_path):
    for i in range(20):
        (tmp_path / f"{i:02d}.jpg").write_bytes(jpeg(i))
    one = loader(tmp_path, batch=8, lanes=4)
    (tmp_path / "07.jpg").unlink()
    with pytest.raises(StorageError, match=r"07\.jpg"):
        take(one, 3)


def test_the_reader_process_ends_with_the_stream(folder):
    take(loader(folder, threads=4), 2)
    assert not children()


def test_a_batch_may_be_larger_than_a_chunk_and_than_the_data(folder):
    assert CHUNK < 160
    (batch,) = take(loader(folder, batch=160, threads=3), 1)
    views = batch.fields["views/16"]
    assert len(views) == 320 and len({bytes(c.numpy().tobytes()) for c in views}) == 320


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"threads": -1}, "threads"),
        ({"prefetch": 0}, "prefetch"),
        ({"ranks": 3}, "multiple"),
        ({"batch": 1, "ranks": 2}, "multiple"),
        ({"batch": 12}, "lanes"),
        ({"ranks": 16}, "lanes"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_at_once(folder, how, reason):
    with pytest.raises(RequestError, match=reason):
        loader(folder, **how)
