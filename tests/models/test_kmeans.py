"""Spherical k-means finds clusters that are there, and is a function of rows and seed alone."""

import pytest
import torch
from torch.nn import functional as F

from seer.models.kmeans import spherical_kmeans
from tests.messages import naming


def clusters(count: int = 8, each: int = 50, spread: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows around `count` random directions, mixed, and these directions."""
    generator = torch.Generator().manual_seed(5)
    centers = F.normalize(torch.randn(count, 32, generator=generator), dim=1)
    rows = centers.repeat(each, 1) + spread * torch.randn(count * each, 32, generator=generator)
    return F.normalize(rows, dim=1)[torch.randperm(len(rows), generator=generator)], centers


@pytest.mark.parametrize("seed", range(5))
def test_each_of_eight_clusters_gets_one_unit_center(seed):
    rows, true = clusters()
    centers = spherical_kmeans(rows, 8, seed=seed)
    assert torch.allclose(centers.norm(dim=1), torch.ones(8))
    nearest = (centers @ true.t()).max(dim=1)
    assert sorted(nearest.indices.tolist()) == list(range(8)) and nearest.values.min() > 0.99


def test_centers_are_the_mean_directions_of_those_nearest_to_them():
    rows, _ = clusters(spread=0.5)
    centers = spherical_kmeans(rows, 5, seed=0, rounds=100)
    owner = (rows @ centers.t()).argmax(dim=1)
    means = torch.stack([F.normalize(rows[owner == c].sum(0), dim=0) for c in range(5)])
    assert torch.allclose(means, centers, atol=1e-5)


def test_the_seed_decides_and_the_default_generator_is_left_alone():
    rows, _ = clusters(spread=0.5)
    state = torch.get_rng_state()
    one, again, other = (spherical_kmeans(rows, 12, seed=s) for s in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_no_center_is_left_without_members_also_when_rows_repeat():
    rows = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.001], [0.0, 1.0]]), dim=1).repeat(4, 1)
    centers = spherical_kmeans(rows, 3, seed=0)
    assert centers.isfinite().all() and torch.allclose(centers.norm(dim=1), torch.ones(3))


def test_fewer_rows_than_centers_are_refused():
    with pytest.raises(ValueError, match=naming(3, "embeddings", 4, "prototypes")):
        spherical_kmeans(torch.eye(3), 4, seed=0)
