"""The order as a pure function: exactly once an epoch, the same set for every number of ranks, cheap at any scale."""

import itertools
import time
import tracemalloc

import numpy as np
import pytest

from seer.core import rng
from seer.core.errors import RequestError
from seer.data.order import STAND_IN_TRIES, choose_lanes, permute, plan
from tests.messages import naming

# counts of the shards, batch, lanes, block
CASES = {
    "uneven shards": ([1, 50, 7, 0, 33, 9], 20, 10, 8),
    "no lane of equal length": ([37], 12, 12, 5),
    "one lane": ([10, 11], 4, 1, 8192),
    "as many lanes as images": ([6], 6, 6, 4),
    "one image more than a batch": ([17], 16, 16, 8192),
    "one image less than twice a batch": ([16, 15], 16, 8, 3),
    "one image": ([1], 8, 1, 1),
    "a batch of many epochs": ([3, 2], 40, 4, 2),
    "blocks of one": ([9, 8], 4, 4, 1),
}


def taken(p, batch, steps, first=0) -> list[tuple[int, int, int]]:
    """(epoch, shard, row) of so many steps."""
    found = [p.places(s * batch, batch) for s in range(first, first + steps)]
    return [row for f in found for row in zip(f.epoch.tolist(), f.shard.tolist(), f.row.tolist(), strict=True)]


@pytest.mark.parametrize("case", CASES)
def test_each_row_comes_exactly_once_in_every_epoch(case):
    counts, batch, lanes, block = CASES[case]
    p = plan(counts, seed=3, lanes=lanes, block=block)
    longest = -(-sum(counts) // lanes)
    found = taken(p, batch, -(-3 * longest * lanes // batch))
    wanted = sorted((s, r) for s, n in enumerate(counts) for r in range(n))
    for epoch in range(3):
        assert sorted((s, r) for e, s, r in found if e == epoch) == wanted


def test_an_epoch_is_over_when_all_its_images_are_consumed_where_lanes_divide_them():
    p = plan([40, 24], seed=0, lanes=16, block=4)
    assert {e for e, _, _ in taken(p, 16, 4)} == {0} and {e for e, _, _ in taken(p, 16, 4, first=4)} == {1}


@pytest.mark.parametrize(
    ("counts", "lanes", "block"), [([100, 60, 81, 3], 24, 8), ([1, 1, 1, 45], 48, 2), ([2000], 12, 50)]
)
def test_batches_of_all_ranks_joined_are_the_batch_of_one_rank(counts, lanes, block):
    p, batch = plan(counts, seed=1, lanes=lanes, block=block), 48
    for ranks in [r for r in range(1, lanes + 1) if lanes % r == 0]:
        for consumed in (0, 48, 960, 48 * 1001):
            whole = p.places(consumed, batch)
            parts = [p.places(consumed, batch, rank, ranks) for rank in range(ranks)]
            assert all(len(part.row) == batch // ranks for part in parts)
            for name in ("lane", "position", "epoch", "shard", "row"):
                joined = np.concatenate([getattr(part, name) for part in parts])
                np.testing.assert_array_equal(joined, getattr(whole, name))


def test_fewer_shards_than_ranks_still_give_every_rank_its_own_rows():
    p = plan([64], seed=0, lanes=8)
    rows = [p.places(0, 16, rank, 8).row.tolist() for rank in range(8)]
    assert len({r for own in rows for r in own}) == 16


def test_one_step_of_a_batch_twice_as_large_takes_the_rows_of_two_steps():
    p = plan([50, 31], seed=2, lanes=8, block=16)
    assert sorted(taken(p, 32, 1)) == sorted(taken(p, 16, 2))


def test_places_do_not_depend_on_what_was_asked_before():
    fresh = plan([30, 40], seed=5, lanes=10, block=6).places(70 * 20 + 10, 10)
    used = plan([30, 40], seed=5, lanes=10, block=6)
    for consumed in (0, 70 * 50, 70 * 3, 10):
        used.places(consumed, 10)
    again = used.places(70 * 20 + 10, 10)
    assert fresh.shard.tolist() == again.shard.tolist() and fresh.row.tolist() == again.row.tolist()


@pytest.mark.parametrize("size", [*range(1, 201), 1000, 12345])
def test_permute_is_a_bijection_of_every_size(size):
    index = np.arange(size)
    for key in (0, 1, 2**64 - 1):
        out = permute(index, np.full(size, size), np.full(size, key, dtype=np.uint64))
        np.testing.assert_array_equal(np.sort(out), index)


def test_permute_takes_sizes_and_keys_element_by_element():
    sizes, keys = np.array([5, 1000, 17, 5]), np.array([1, 2, 3, 4], dtype=np.uint64)
    together = permute(np.array([3, 999, 16, 3]), sizes, keys)
    alone = [int(permute(np.array([i]), sizes[j : j + 1], keys[j : j + 1])[0]) for j, i in enumerate([3, 999, 16, 3])]
    assert together.tolist() == alone


def test_permutations_are_roughly_even_where_each_goes_and_what_follows_what():
    # A Feistel network is not quite even on so few values (6 in a domain of 16: up to 8 % and 20 % off, measured)
    n, times = 6, 20_000
    keys = rng.sub_keys(rng.key(0, "permutations"), np.arange(times))
    found = permute(np.tile(np.arange(n), times), np.full(n * times, n), np.repeat(keys, n)).reshape(times, n)
    places = np.stack([np.bincount(found[:, i], minlength=n) for i in range(n)]) / times * n
    pairs = np.bincount(found[:, 0] * n + found[:, 1], minlength=n * n).reshape(n, n) / times * n * (n - 1)
    assert np.abs(places - 1).max() < 0.15
    assert np.abs(pairs[~np.eye(n, dtype=bool)] - 1).max() < 0.35


def test_seeds_and_epochs_give_other_orders_of_shards_and_of_rows():
    counts = [20] * 10
    firsts = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            found = taken(plan(counts, seed=seed, lanes=10, block=20), 10, 20, first=20 * epoch)
            firsts[seed, epoch] = [(s, r) for _, s, r in found]
    assert len({str(order) for order in firsts.values()}) == 4
    shards = {str([s for s, _ in order]) for order in firsts.values()}
    rows = {str([r for _, r in order]) for order in firsts.values()}
    assert len(shards) == 4 and len(rows) == 4
    for a in firsts:
        for b in firsts:
            same = np.mean([x == y for x, y in zip(firsts[a], firsts[b], strict=True)])
            assert a == b or same < 0.05  # by chance 1 of 200


def test_neighbouring_batches_mix_shards_when_there_are_many_lanes():
    p = plan([100] * 20, seed=0, lanes=64)
    assert len(set(p.places(0, 64).shard.tolist())) == 20


def due_at(p, lane: int, position: int) -> tuple[int, int]:
    found = p._locate(np.array([lane]), np.array([position]))
    return int(found.shard[0]), int(found.row[0])


def stand_ins(p, lane: int, position: int, last: int) -> list[tuple[int, int]]:
    found = [p.stand_in(lane, position, attempt) for attempt in range(1, last + 1)]
    assert {int(one.epoch[0]) for one in found} <= {position // int(p.lane_start[lane + 1] - p.lane_start[lane])}
    return [(int(one.shard[0]), int(one.row[0])) for one in found]


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 2, 5, 9, 40])
def test_stand_ins_are_the_same_each_time_and_come_from_the_block_of_the_position_first(block):
    p, again = (plan([40, 60, 21], seed=0, lanes=8, block=block) for _ in range(2))
    length = p.lane_start[1:] - p.lane_start[:-1]
    for lane in range(8):
        for position in range(0, 40, 3):
            epoch, offset = divmod(position, int(length[lane]))
            first, start = offset // block * block, epoch * int(length[lane])
            size = min(block, int(length[lane]) - first)
            inside = {due_at(p, lane, start + first + i) for i in range(size)}
            found, due = stand_ins(p, lane, position, 30), due_at(p, lane, position)
            assert found == stand_ins(again, lane, position, 30)
            near = min(STAND_IN_TRIES, size - 1)
            assert set(found[:near]) <= inside - {due} and len(set(found[:near])) == near


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_stand_ins_of_a_position_are_all_other_rows_once_each(case):
    """A row neither stands in for itself nor comes again: with replacement, the only row of a block did so eight times."""
    counts, _, lanes, block = CASES[case]
    p, total = plan(counts, seed=3, lanes=lanes, block=block), sum(counts)
    rows = sorted((s, r) for s, n in enumerate(counts) for r in range(n))
    for lane in range(lanes):
        for position in (0, 1, 5, 1000):
            assert sorted([due_at(p, lane, position), *stand_ins(p, lane, position, total - 1)]) == rows
            for attempt in (0, total):
                with pytest.raises(ValueError, match=naming(f"attempt {attempt}", total - 1)):
                    p.stand_in(lane, position, attempt)


@pytest.mark.slow
def test_far_stand_ins_are_as_likely_from_anywhere():
    n, times = 12, 3000
    p = plan([n], seed=0, lanes=n)  # lanes of one row: all stand-ins are from elsewhere
    found = np.array([stand_ins(p, 5, position, 2) for position in range(times)])[..., 1]
    due = np.array([due_at(p, 5, position)[1] for position in range(times)])
    for nth in range(2):
        parse_fraction = np.bincount((found[:, nth] - due) % n, minlength=n)[1:] / times * (n - 1)
        assert np.abs(parse_fraction - 1).max() < 0.25  # 4 deviations of 273 are 0.24


def test_what_stood_in_in_a_large_block_when_draws_were_with_replacement_still_does():
    p, changed = plan([20_000], seed=4, lanes=2, block=8192), 0
    for position in range(60):
        keys = [
            rng.sub_keys(rng.key(4, "stand-in", a), np.array([1]), np.array([position]))
            for a in range(1, STAND_IN_TRIES + 1)
        ]
        inside = [int(rng.uniforms(key, 1)[0, 0] * (8192 if position < 8192 else 1808)) for key in keys]
        changed += sum(
            a != (0, 10_000 + b) for a, b in zip(stand_ins(p, 1, position, STAND_IN_TRIES), inside, strict=True)
        )
    assert changed <= 2


def test_stand_ins_differ_by_attempt_and_position():
    p = plan([5000], seed=0, lanes=1, block=5000)
    rows = [int(p.stand_in(0, position, attempt).row[0]) for position in range(10) for attempt in range(1, 9)]
    assert len(set(rows)) > 75


def test_a_plan_of_a_billion_images_in_100000_shards_is_cheap():
    counts, batch = np.full(100_000, 10_000), 4096

    def seconds_of(make) -> float:
        times = []
        for _ in range(5):
            start = time.process_time()
            make()
            times.append(time.process_time() - start)
        return min(times)  # what is more is the machine's

    assert seconds_of(lambda: plan(counts, seed=0, lanes=512).places(0, batch)) <= 0.1
    random = np.random.default_rng(0)
    anywhere = [int(c) // 512 * 512 for c in random.integers(0, 10**12, 5)]
    fresh = plan(counts, seed=0, lanes=512)
    assert seconds_of(lambda: fresh.places(anywhere.pop(), batch)) <= 2  # another epoch each time; nothing is replayed
    tracemalloc.start()
    p = plan(counts, seed=0, lanes=512)
    p.places(0, batch)
    p.places(10**9 // 512 * 512, batch)  # the turn of the epoch: two epochs at a time
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 10e6, peak


def distinct_and_pairs(batches: list[np.ndarray]) -> tuple[float, float]:
    """Of a batch, on average: how many shards it has images of, and pairs of its images that share one."""
    counts = [np.unique(shards, return_counts=True)[1] for shards in batches]
    return float(np.mean([len(c) for c in counts])), float(np.mean([(c * (c - 1) // 2).sum() for c in counts]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shards", "rows", "batch"),
    [
        (2000, 500, 256),
        (2000, 500, 512),
        (400, 2500, 512),
        (1000, 10_000, 4096),
        (10_000, 1000, 4096),
        (100, 1000, 1024),
        (10_000, 1000, 3000),
        (1000, 1000, 5000),
    ],
)
def test_batches_are_mixed_like_those_of_a_full_permutation(shards, rows, batch):
    p = plan([rows] * shards, seed=0, lanes=choose_lanes(batch, shards * rows))
    random, steps = np.random.default_rng(0), range(0, shards * rows // batch, 40)
    whole = random.permutation(shards * rows) // rows
    ours = distinct_and_pairs([p.places(s * batch, batch).shard for s in steps])
    theirs = distinct_and_pairs([whole[s * batch : (s + 1) * batch] for s in steps])
    assert ours[0] >= 0.9 * theirs[0] and ours[1] <= 1.2 * theirs[1], (ours, theirs)


def test_orders_of_shards_of_neighbouring_epochs_are_not_correlated():
    n = 10_000
    p = plan([10] * n, seed=0, lanes=64)
    place = [np.argsort(p._line(epoch)[0]) for epoch in range(6)]
    for a, b in itertools.pairwise(place):
        assert abs(np.corrcoef(a, b)[0, 1]) <= 0.05


def test_memory_of_a_plan_does_not_grow_with_epochs():
    p = plan([10] * 1000, seed=0, lanes=8)
    for epoch in range(50):
        p.places(epoch * 10_000, 8)
    assert len(p._lines) <= 3


@pytest.mark.parametrize(
    ("batch", "images", "lanes"),
    [(256, 10**6, 256), (4096, 10**9, 2048), (96, 50, 48), (7, 3, 1), (1000, 10**4, 1000)],
)
def test_the_most_lanes_that_divide_the_batch_are_chosen(batch, images, lanes):
    assert choose_lanes(batch, images) == lanes


BATCHES = (96, 1000, 2500, 3000, 3072, 5000, 6000, 7000, 7936, 10_000, 12_288, 30_030)


@pytest.mark.parametrize("batch", BATCHES)
def test_every_number_of_ranks_up_to_1024_that_divides_the_batch_divides_the_lanes(batch):
    lanes = choose_lanes(batch, 10**9)
    ranks = [r for r in range(1, 1025) if batch % r == 0]
    assert batch % lanes == 0 and [r for r in ranks if lanes % r] == []
    plan([10**9], seed=0, lanes=lanes).places(0, batch, ranks[-1] - 1, ranks[-1])


def test_batches_that_are_powers_of_two_keep_the_lanes_that_runs_have_begun_with():
    assert [choose_lanes(2**n, 10**9) for n in range(17)] == [min(2**n, 2048) for n in range(17)]


def test_ranks_lanes_and_batches_that_do_not_fit_are_refused():
    with pytest.raises(RequestError, match="lanes"):
        plan([5], seed=0, lanes=6)
    with pytest.raises(RequestError, match="lanes"):
        plan([5], seed=0, lanes=0)
    with pytest.raises(RequestError, match="block"):
        plan([5], seed=0, lanes=1, block=0)
    p = plan([100], seed=0, lanes=4)
    for consumed, batch, ranks in ((0, 8, 3), (0, 6, 2), (2, 8, 1), (0, 8, 8)):
        with pytest.raises(RequestError, match=naming("ranks", "data.lanes", "batch")):
            p.places(consumed, batch, 0, ranks)


def test_the_fingerprint_names_the_order():
    base = {"seed": 0, "lanes": 4, "block": 8}
    prints = [plan([10, 20], **base).fingerprint]
    prints += [
        plan([10, 20], **{**base, name: value}).fingerprint for name, value in (("seed", 1), ("lanes", 2), ("block", 9))
    ]
    prints += [plan([20, 10], **base).fingerprint, plan([10, 20, 1], **base).fingerprint]
    assert len(set(prints)) == 6 and plan([10, 20], **base).fingerprint == prints[0]


@pytest.mark.slow
def test_a_plan_asked_batch_after_batch_says_what_one_asked_once_says():
    """It locates batches ahead; a jump, another rank, another batch size and ends of epochs must not meet what was meant for others."""
    counts, lanes = [200, 7, 93, 501], 12
    asked = plan(counts, seed=5, lanes=lanes)
    steps = [*range(8192 // 24 + 40), 3, 4, 5, 900, 901, 902, 2]
    calls = [(step * 24, 24, rank, ranks) for ranks, rank in ((1, 0), (4, 2), (4, 3)) for step in steps]
    calls += [(48, 24, 0, 1), (36, 24, 0, 1)]  # half a batch back
    calls += [(step * 36, 36, 0, 1) for step in range(200, 240)]
    for call in calls:
        found, alone = asked.places(*call), plan(counts, seed=5, lanes=lanes).places(*call)
        for name in ("lane", "position", "epoch", "shard", "row"):
            assert np.array_equal(getattr(found, name), getattr(alone, name)), call


def test_a_pool_of_a_few_images_is_not_located_for_hundreds_of_epochs_to_come(monkeypatch):
    few, epochs = plan([12, 8], seed=0, lanes=4), set()
    line = few._line
    monkeypatch.setattr(few, "_line", lambda epoch: epochs.add(epoch) or line(epoch))
    for step in range(3):
        few.places(step * 8, 8)
    assert max(epochs) <= 18
