"""Sinkhorn against the published procedure written out in float64, and over ranks against the joined batch."""

import math

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from seer.losses.sinkhorn import residual, sinkhorn
from seer.parallel.world import World
from tests.ranks import run_ranks

TOLERANCE = 1e-5


def cosines(samples: int, prototypes: int, seed: int = 0, width: int = 64) -> Tensor:
    """Scores of samples that lie near prototypes, as in a run that has learnt something: [B, K] float32 in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.nn.functional.normalize(torch.randn(prototypes, width, generator=generator), dim=1)
    chosen = centers[torch.randint(prototypes, (samples,), generator=generator)]
    noise = 0.12 * torch.randn(samples, width, generator=generator)
    return torch.nn.functional.normalize(chosen + noise, dim=1) @ centers.t()


def published(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Prototypes to 1/K, then samples to 1/B, on the whole matrix [B, K], in float64."""
    plan = torch.exp(scores.double() / epsilon)
    plan /= plan.sum()
    samples, prototypes = plan.shape
    for _ in range(iterations):
        plan = plan / plan.sum(0, keepdim=True) / prototypes
        plan = plan / plan.sum(1, keepdim=True) / samples
    return plan * samples


def in_logarithms(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The same procedure on logarithms, in float64: no score is too low for it. The codes do not depend on 1/K and 1/B."""
    log_plan = scores.double() / epsilon
    for _ in range(iterations):
        log_plan = log_plan - log_plan.logsumexp(0, keepdim=True)
        log_plan = log_plan - log_plan.logsumexp(1, keepdim=True)
    return log_plan.exp()


def low_scores(case: str, samples: int = 96, prototypes: int = 40, width: int = 32) -> Tensor:
    """[B, K] float32: scores of which a row, a column or all lie far below 1. Each broke a simpler form of the routine."""
    generator = torch.Generator().manual_seed(5)

    def unit(*shape: int) -> Tensor:
        return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)

    images = torch.nn.functional.normalize(torch.eye(width)[0] + 0.2 * unit(samples, width), dim=1)  # cosine 0.96
    scores = images @ unit(prototypes, width).t()
    opposite = unit(1, width)
    if case == "half opposite":
        scores[: samples // 2] = -scores[: samples // 2].abs() - 0.3
        scores[: samples // 4] = -1.0
    if case == "one far from both sides":
        scores = (
            torch.cat([unit(samples - 1, width), opposite]) @ torch.cat([unit(prototypes - 1, width), -opposite]).t()
        )
    scores = {
        "all equal": lambda: torch.full((samples, prototypes), 0.3),
        "all opposite": lambda: torch.full((samples, prototypes), -1.0),
        "one row": lambda: scores.index_fill(0, torch.tensor([3]), -1.0),
        "one column": lambda: scores.index_fill(1, torch.tensor([3]), -1.0),
        "row and column": lambda: scores.index_fill(0, torch.tensor([3]), -1.0).index_fill(1, torch.tensor([7]), -1.0),
        "opposite signs": lambda: scores.sign() + 0.0 * scores,
        "spread": lambda: 2 * torch.rand(samples, prototypes, generator=generator) - 1,
    }.get(case, lambda: scores)()
    return scores.clamp(-1, 1)


CASES = (
    *("concentrated", "half opposite", "one far from both sides", "all equal", "all opposite", "one row", "one column"),
    *("row and column", "opposite signs", "spread"),
)
EPSILONS = (0.015, 0.02, 0.0249, 0.025, 0.029, 0.05, 0.1)  # on both sides of where maxima are taken


def assert_same_codes(codes: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    assert codes.dtype == torch.float32 and codes.shape == expected.shape
    difference = (codes.double() - expected).abs()
    assert difference.max() <= tolerance and difference.sum(-1).max() <= tolerance


@pytest.mark.parametrize("epsilon", [0.1, 0.05, 0.03])
@pytest.mark.parametrize(("samples", "prototypes"), [(7, 5), (64, 300), (512, 30), (34, 16000)])
def test_codes_are_those_of_the_published_procedure(samples, prototypes, epsilon):
    scores = cosines(samples, prototypes)
    before = scores.clone()
    for iterations in (1, 3, 10):
        codes = sinkhorn(scores, epsilon=epsilon, iterations=iterations)
        assert_same_codes(codes, published(scores, epsilon, iterations))
        assert (codes.sum(-1) - 1).abs().max() <= 5e-6  # sums of up to 16000 float32
    assert torch.equal(scores, before)


@pytest.mark.parametrize(("samples", "prototypes"), [(8, 16000), (8192, 300)])
def test_few_samples_or_many_keep_the_last_digits_over_ten_rounds(samples, prototypes):
    """The first left float32 (0.3 off at epsilon 0.025), the second lost digits in long sums (2e-5)."""
    scores = cosines(samples, prototypes)
    for epsilon in (0.025, 0.05, 0.1):
        assert_same_codes(sinkhorn(scores, epsilon=epsilon, iterations=10), published(scores, epsilon, 10))


def test_leading_dimensions_are_separate_problems():
    scores = torch.stack([cosines(24, 40, seed) for seed in range(6)]).view(2, 3, 24, 40)
    codes = sinkhorn(scores, epsilon=0.05, iterations=5)
    for a in range(2):
        for b in range(3):
            assert_same_codes(codes[a, b], published(scores[a, b], 0.05, 5))


def test_strided_scores_give_the_codes_of_their_values():
    scores = cosines(40, 24).t()
    assert_same_codes(sinkhorn(scores, epsilon=0.05, iterations=3), published(scores, 0.05, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_computed_in_float32(dtype):
    scores = cosines(64, 300).to(dtype)
    assert_same_codes(sinkhorn(scores, epsilon=0.05, iterations=10), published(scores, 0.05, 10))


def test_autocast_leaves_the_computation_in_float32():
    scores = cosines(64, 300).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = sinkhorn(scores, epsilon=0.05, iterations=10)
    assert_same_codes(codes, published(scores.detach(), 0.05, 10))
    assert not codes.requires_grad


@pytest.mark.parametrize("case", CASES)
def test_low_scores_give_the_codes_of_logarithms_in_float64(case):
    for epsilon in EPSILONS:
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            scores = low_scores(case).to(dtype)
            for iterations in (1, 3, 10):
                codes = sinkhorn(scores, epsilon=epsilon, iterations=iterations)
                assert_same_codes(codes, in_logarithms(scores, epsilon, iterations))


@pytest.mark.parametrize("prototypes", [1, 2, 300, 16000])
def test_low_scores_give_the_codes_of_logarithms_for_few_and_many_prototypes(prototypes):
    for case in ("concentrated", "row and column", "opposite signs"):
        scores = low_scores(case, samples=24, prototypes=max(prototypes, 8))[:, :prototypes]
        for epsilon in (0.015, 0.02, 0.025):
            codes, expected = sinkhorn(scores, epsilon=epsilon, iterations=10), in_logarithms(scores, epsilon, 10)
            difference = (
                codes.double() - expected
            ).abs()  # sums of 16,000 equal float32 all round one way: 2e-5 of them
            assert difference.max() <= TOLERANCE and difference.sum(-1).max() <= 3 * TOLERANCE


def test_an_epsilon_below_all_that_is_asked_for_leaves_codes_finite():
    scores = torch.full((6, 4), -1.0)
    scores[:5, :3] = cosines(5, 3)
    for iterations in (1, 10):
        codes = sinkhorn(scores, epsilon=0.005, iterations=iterations)
        assert (codes.sum(-1) - 1).abs().max() <= 1e-5
    assert sinkhorn(torch.full((8, 5), -1.0), epsilon=0.005, iterations=3).allclose(torch.full((8, 5), 0.2))


def test_residual_is_the_largest_relative_excess_of_a_prototype():
    codes = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5]] * 4])
    assert residual(codes).item() == pytest.approx(0.5)  # masses 3 and 1 where 2 is uniform; the second problem has 0
    assert residual(codes[1]).item() == 0.0
    rounds = [residual(sinkhorn(cosines(64, 32), epsilon=0.05, iterations=n)).item() for n in (1, 3, 10, 100)]
    assert rounds == sorted(rounds, reverse=True) and rounds[-1] < 0.01


@pytest.mark.parametrize(
    ("shape", "epsilon", "iterations", "named"),
    [((4,), 0.05, 3, r"\(4,\)"), ((0, 4), 0.05, 3, r"\(0, 4\)"), ((2, 4), 0.0, 3, "epsilon is 0.0"),
     ((2, 4), math.nan, 3, "epsilon is nan"), ((2, 4), 0.05, 0, "iterations is 0")],
)  # fmt: skip
def test_wrong_arguments_are_named(shape, epsilon, iterations, named):
    with pytest.raises(ValueError, match=named):
        sinkhorn(torch.zeros(shape), epsilon=epsilon, iterations=iterations)


SHARES = (20, 33, 11)  # unequal on purpose: nothing in the result may depend on how the batch is cut
PROTOTYPES = 200


def joined(ranks: int) -> Tensor:
    """[2, sum of shares, K]: two assign views of the joined batch."""
    return torch.stack([cosines(sum(SHARES[:ranks]), PROTOTYPES, seed) for seed in (1, 2)])


def balance(world: World) -> dict[int, tuple[Tensor, Tensor, Tensor]]:
    rank, found = world.rank, {}
    groups = {len(SHARES): world.group, 2: dist.new_group([0, 1])}
    for ranks, group in groups.items():
        if rank < ranks:
            mine = joined(ranks).split(SHARES[:ranks], dim=1)[rank]
            codes = sinkhorn(mine, epsilon=0.05, iterations=10, group=group)
            low = [low_scores(case, sum(SHARES[:ranks])).split(SHARES[:ranks])[rank] for case in CASES]
            sharp = sinkhorn(torch.stack(low), epsilon=0.015, iterations=10, group=group)
            found[ranks] = codes, residual(codes, group), sharp
    return found


@pytest.fixture(scope="module")
def balanced() -> list[dict[int, tuple[Tensor, Tensor, Tensor]]]:
    return run_ranks(balance, len(SHARES))


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_together_equal_one_process_on_the_joined_batch(balanced, ranks):
    parts = [balanced[rank][ranks] for rank in range(ranks)]
    codes = torch.cat([codes for codes, _, _ in parts], dim=1)
    for view in range(2):
        assert_same_codes(codes[view], published(joined(ranks)[view], 0.05, 10))
    for _, deviation, _ in parts:
        assert deviation.item() == pytest.approx(residual(codes).item(), rel=1e-4)
    sharp = torch.cat([sharp for _, _, sharp in parts], dim=1)
    for codes, case in zip(sharp, CASES, strict=True):
        assert_same_codes(codes, in_logarithms(low_scores(case, sum(SHARES[:ranks])), 0.015, 10))
