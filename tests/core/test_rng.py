"""Keys and draws: SplitMix64 against its published numbers, independence of who asks, and the shape of the draws."""

import numpy as np
import pytest
import torch

from seer.core import rng

GOLDEN = 0x9E3779B97F4A7C15
# First outputs of Vigna's splitmix64.c seeded with 1234567
PUBLISHED = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


def test_mix_gives_the_published_numbers_of_splitmix64():
    states = [(1234567 + (i + 1) * GOLDEN) & (2**64 - 1) for i in range(5)]
    assert rng.mix(np.array(states, dtype=np.uint64)).tolist() == PUBLISHED


def test_draws_are_the_published_numbers_turned_into_53_bits():
    drawn = rng.uniforms(np.array([1234567], dtype=np.uint64), 5)
    assert drawn.tolist() == [[(word >> 11) * 2.0**-53 for word in PUBLISHED]]


def test_fewer_draws_are_the_first_of_more_and_rows_do_not_see_each_other():
    keys = np.array([rng.key(0, "a", i) for i in range(6)], dtype=np.uint64)
    many = rng.uniforms(keys, 40)
    np.testing.assert_array_equal(rng.uniforms(keys, 3), many[:, :3])
    for i in range(6):
        np.testing.assert_array_equal(rng.uniforms(keys[i : i + 1], 40)[0], many[i])


def test_keys_differ_by_seed_name_number_and_order_of_parts():
    keys = [
        rng.key(0),
        rng.key(1),
        rng.key(0, "order"),
        rng.key(0, "views"),
        rng.key(0, 0),
        rng.key(0, 1),
        rng.key(0, 0, 1),
        rng.key(0, 1, 0),
        rng.key(0, "order", 1),
        rng.key(0, 1, "order"),
        rng.key(-1),
        rng.key(0, -1),
    ]
    assert len(set(keys)) == len(keys)
    assert all(0 <= k < 2**64 for k in keys)


@pytest.mark.slow
def test_a_million_neighbouring_sub_keys_do_not_collide():
    row, shard = np.meshgrid(np.arange(1000), np.arange(1000))
    keys = rng.sub_keys(rng.key(0, "x"), shard.ravel(), row.ravel())
    assert len(np.unique(keys)) == 1_000_000


def test_sub_keys_do_not_depend_on_the_other_rows():
    rows = np.arange(50)
    together = rng.sub_keys(7, rows, rows[::-1])
    alone = [int(rng.sub_keys(7, np.array([i]), np.array([49 - i]))[0]) for i in range(50)]
    assert together.tolist() == alone


@pytest.mark.parametrize("n", [1, 2, 8])
def test_draws_are_uniform_and_unrelated_between_neighbouring_keys(n):
    keys = rng.sub_keys(rng.key(3, "uniform"), np.arange(40_000))
    u = rng.uniforms(keys, n)
    assert 0 <= u.min() and u.max() < 1
    error = 1 / np.sqrt(12 * len(u))  # of a mean of uniforms
    assert np.abs(u.mean(0) - 0.5).max() < 4.5 * error
    counts = np.stack([np.bincount((c * 100).astype(int), minlength=100) for c in u.T])
    chi2 = ((counts - 400) ** 2 / 400).sum(1)
    assert np.all(chi2 < 99 + 5 * np.sqrt(2 * 99))
    neighbours = np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]
    assert abs(neighbours) < 4.5 / np.sqrt(len(u))


def test_torch_generators_of_one_name_agree_and_of_two_differ():
    a, b, c = (rng.torch_generator(0, name) for name in ("weights", "weights", "head"))
    x, y, z = (torch.randn(8, generator=g) for g in (a, b, c))
    assert torch.equal(x, y) and not torch.equal(x, z)
