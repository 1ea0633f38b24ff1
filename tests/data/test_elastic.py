"""Ranks and threads may change in the middle of an epoch: each image once, and the same pixels as if nothing had."""

import hashlib
from collections import Counter

import numpy as np
import pytest
import torch

from seer.data.loading.loader import Loader
from seer.data.loading.reader import Reader
from seer.data.multicrop import MultiCrop
from seer.data.order import plan
from seer.data.shards.open import open_shards
from seer.data.shards.writer import write_shards
from tests.data.image_files import png

N, BATCH, LANES = 192, 16, 16
CROP = MultiCrop((16, 8), (2, 1), ((0.3, 1), (0.1, 0.3)))
BROKEN = {5, 77, 78, 150}


@pytest.fixture(scope="module")
def reader(tmp_path_factory) -> Reader:
    folder = tmp_path_factory.mktemp("shards")
    samples = ((f"k{i:03d}", {"png": b"broken" if i in BROKEN else png(i, 16, 16)}) for i in range(N))
    write_shards(samples, folder, total=N, per_shard=50)
    shards = open_shards(folder)
    return Reader(shards, plan([len(s) for s in shards], seed=3, lanes=LANES, block=6), 0)


def steps(reader: Reader, consumed: int, count: int, ranks: int, threads: int) -> list[tuple[list[torch.Tensor], list]]:
    """Joined batches of all ranks: crops [v, B, 3, S, S] by size, and what was skipped."""
    streams = [
        Loader(reader, CROP, batch=BATCH, rank=r, ranks=ranks, threads=threads, prefetch=1).batches(consumed)
        for r in range(ranks)
    ]
    found = []
    for _ in range(count):
        parts = [next(stream) for stream in streams]
        assert {p.images_seen for p in parts} == {consumed + (len(found) + 1) * BATCH}
        crops = [
            torch.cat([p.fields[f"views/{size}"].unflatten(0, (views, -1)) for p in parts], 1)
            for views, size in zip(CROP.counts, CROP.sizes, strict=True)
        ]
        found.append((crops, [s for p in parts for s in p.skipped]))
    for stream in streams:
        stream.close()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_8_4_2_8_ranks_and_0_3_1_threads_at_random_steps_give_the_pixels_of_one_undisturbed_run(reader, seed):
    random = np.random.default_rng(seed)
    total = 2 * N // BATCH
    quiet = steps(reader, 0, total, 1, 1)
    cuts = [0, *sorted(random.choice(np.arange(1, total), 5, replace=False).tolist()), total]
    phases = list(zip([8, 4, 2, 8, 1, 16], [0, 3, 1, 1, 3, 0], cuts, cuts[1:]))
    seen = []
    for ranks, threads, first, last in phases:
        seen += steps(reader, first * BATCH, last - first, ranks, threads)
    assert len(seen) == total
    for (crops, skipped), (crops_quiet, skipped_quiet) in zip(seen, quiet, strict=True):
        assert skipped == skipped_quiet
        assert all(torch.equal(a, b) for a, b in zip(crops, crops_quiet, strict=True))
    assert sum(s.attempt == 0 for _, skipped in seen for s in skipped) == 2 * len(BROKEN)  # each once an epoch


@pytest.mark.parametrize("lanes", [24, 48])
def test_each_image_comes_once_an_epoch_when_the_number_of_ranks_is_drawn_anew_at_every_step(lanes):
    random = np.random.default_rng(lanes)
    counts = random.integers(0, 90, 20).tolist()
    p, batch = plan(counts, seed=1, lanes=lanes, block=7), 48
    seen = Counter()
    for step in range(-(-3 * sum(counts) // batch)):
        ranks = int(random.choice([r for r in range(1, lanes + 1) if lanes % r == 0]))
        for rank in random.permutation(ranks).tolist():
            places = p.places(step * batch, batch, rank, ranks)
            seen.update(zip(places.epoch.tolist(), places.shard.tolist(), places.row.tolist()))
    for epoch in (0, 1):
        rows = {key: times for key, times in seen.items() if key[0] == epoch}
        assert set(rows.values()) == {1} and len(rows) == sum(counts)


def test_pixels_of_one_image_differ_between_epochs_and_not_between_ways_to_it(reader):
    def of(batch: int, ranks: int) -> str:
        return hashlib.sha256(steps(reader, batch * BATCH, 1, ranks, 0)[0][0][0].numpy().tobytes()).hexdigest()

    assert of(3, 1) == of(3, 4) == of(3, 16) != of(3 + N // BATCH, 1)
