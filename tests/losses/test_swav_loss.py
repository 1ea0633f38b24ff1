"""The SwAV loss against its definition, pair by pair in float64, differentiated by torch."""

import math

import pytest
import torch
from torch import Tensor

from seer.losses.swav import code_entropy, embedding_spread, swav_loss, used_prototypes
from tests.messages import naming


def pairwise(scores: Tensor, codes: Tensor, temperature: float, assign: tuple[int, ...]) -> Tensor:
    terms = []
    for row, a in enumerate(assign):
        for p in range(len(scores)):
            if p != a:
                log_probabilities = torch.log_softmax(scores[p] / temperature, dim=1)
                terms.append(-(codes[row] * log_probabilities).sum(1).mean())
    return torch.stack(terms).mean()


def example(views: int, images: int, prototypes: int, assigned: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(views, images, prototypes, generator=generator) * 2 - 1
    codes = torch.softmax(4 * torch.randn(assigned, images, prototypes, generator=generator), dim=-1)
    return scores, codes


CASES = [
    (6, 17, 300, (0, 1)),
    (6, 5, 16000, (0, 1)),
    (2, 8, 30, (0, 1)),
    (2, 8, 30, (1, 0)),
    (3, 8, 30, (1,)),
    (4, 8, 30, (0, 1, 3)),
    (3, 8, 30, (2, 0, 1)),
]


@pytest.mark.parametrize(("views", "images", "prototypes", "assign"), CASES)
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_loss_and_gradient_are_those_of_the_definition(views, images, prototypes, assign, temperature):
    scores, codes = example(views, images, prototypes, len(assign))
    ours, exact = scores.clone().requires_grad_(), scores.double().requires_grad_()
    loss = swav_loss(ours, codes, temperature=temperature, assign=assign)
    expected = pairwise(exact, codes.double(), temperature, assign)
    assert loss.shape == () and loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (3 * loss).backward()
    (3 * expected).backward()
    assert (ours.grad - exact.grad).norm() <= 1e-5 * exact.grad.norm()


def test_codes_whose_rows_do_not_sum_to_one_are_taken_as_they_are():
    scores, codes = example(4, 6, 20, 2)
    codes = codes * torch.linspace(0.0, 2.0, 6)[:, None]
    ours, exact = scores.clone().requires_grad_(), scores.double().requires_grad_()
    loss, expected = swav_loss(ours, codes, temperature=0.1), pairwise(exact, codes.double(), 0.1, (0, 1))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    assert (ours.grad - exact.grad).norm() <= 1e-5 * exact.grad.norm()


@pytest.mark.parametrize("prototypes", [512, 16000])
def test_uniform_predictions_cost_the_logarithm_of_the_prototypes(prototypes):
    _, codes = example(6, 4, prototypes, 2)
    loss = swav_loss(torch.zeros(6, 4, prototypes), codes, temperature=0.1)
    assert loss.item() == pytest.approx(math.log(prototypes), rel=1e-5)  # 16,000 terms, in the processor's order


def test_bfloat16_scores_and_autocast_are_computed_in_float32():
    scores, codes = example(6, 17, 300, 2)
    scores = scores.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = swav_loss(scores, codes, temperature=0.1)
    exact = scores.detach().double().requires_grad_()
    expected = pairwise(exact, codes.double(), 0.1, (0, 1))
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    assert scores.grad.dtype == torch.bfloat16
    assert (scores.grad - exact.grad).norm() <= 2**-8 * exact.grad.norm()


def test_large_logits_stay_finite():
    scores = torch.tensor([[[300.0, -300.0]], [[-300.0, 300.0]]]).requires_grad_()
    codes = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    loss = swav_loss(scores, codes, temperature=0.1)
    loss.backward()
    assert loss.item() == pytest.approx(6000.0) and scores.grad.isfinite().all()


def test_only_scores_get_a_gradient_and_inputs_stay_unchanged():
    scores, codes = example(4, 6, 20, 2)
    leaf, targets = scores.clone().requires_grad_(), codes.clone().requires_grad_()
    swav_loss(leaf, targets, temperature=0.1).backward()
    assert targets.grad is None
    assert torch.equal(leaf.detach(), scores) and torch.equal(targets.detach(), codes)


@pytest.mark.parametrize(("views", "images", "prototypes", "assign"), CASES)
def test_a_gradient_laid_where_the_scores_were_is_the_same_bit_by_bit(views, images, prototypes, assign):
    scores, codes = example(views, images, prototypes, len(assign))
    kept, lost = scores.clone().requires_grad_(), scores.clone().requires_grad_()
    given = lost * 1  # as of a layer
    expected = swav_loss(kept, codes, temperature=0.1, assign=assign)
    found = swav_loss(given, codes, temperature=0.1, assign=assign, overwrite=True)
    (3 * expected).backward()
    (3 * found).backward()
    assert torch.equal(found, expected) and torch.equal(lost.grad, kept.grad)
    assert torch.equal(given.detach(), kept.grad) and not torch.equal(given.detach(), scores)


@pytest.mark.parametrize("how", ["with gaps", "bfloat16", "no gradient"])
def test_scores_that_cannot_hold_their_gradient_stay_unchanged(how):
    scores, codes = example(4, 6, 40, 2)
    whole = scores.to(torch.bfloat16 if how == "bfloat16" else torch.float32).requires_grad_(how != "no gradient")
    given, codes = (whole[..., :20], codes[..., :20]) if how == "with gaps" else (whole, codes)
    before = given.detach().clone()
    loss = swav_loss(given, codes, temperature=0.1, overwrite=True)
    if how != "no gradient":
        loss.backward()
    assert torch.equal(given.detach(), before)
    assert loss.item() == pytest.approx(swav_loss(before, codes, temperature=0.1).item(), rel=1e-6)


def test_another_use_of_scores_that_are_lost_is_refused_rather_than_wrong():
    scores, codes = example(4, 6, 20, 2)
    given = scores.clone().requires_grad_() * 1
    other = given.square().sum()
    swav_loss(given, codes, temperature=0.1, overwrite=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.backward()


@pytest.mark.parametrize(
    ("scores", "codes", "temperature", "assign", "named"),
    [((4, 6, 20), (2, 6, 21), 0.1, (0, 1), r"\(2, 6, 21\)"), ((4, 6, 20), (1, 6, 20), 0.1, (0, 1), r"\(1, 6, 20\)"),
     ((4, 6, 20), (2, 6, 20), 0.1, (0, 4), "0 to 3"), ((4, 6, 20), (2, 6, 20), 0.1, (1, 1), "distinct"),
     ((4, 6, 20), (0, 6, 20), 0.1, (), "distinct"), ((1, 6, 20), (1, 6, 20), 0.1, (0,), "1 view"),
     ((4, 6, 20), (2, 6, 20), 0.0, (0, 1), "temperature is 0.0"), ((6, 20), (2, 20), 0.1, (0, 1), r"\[V, B, K\]")],
)  # fmt: skip
def test_wrong_arguments_are_named(scores, codes, temperature, assign, named):
    with pytest.raises(ValueError, match=named):
        swav_loss(torch.zeros(scores), torch.zeros(codes), temperature=temperature, assign=assign)


def test_entropy_is_zero_for_one_hot_and_ln_k_for_uniform_codes():
    assert code_entropy(torch.eye(8)).item() == 0.0
    assert code_entropy(torch.full((2, 3, 8), 1 / 8)).item() == pytest.approx(math.log(8), rel=1e-6)
    half = torch.stack([torch.eye(8), torch.full((8, 8), 1 / 8)])
    assert code_entropy(half).item() == pytest.approx(math.log(8) / 2, rel=1e-6)


def test_used_prototypes_counts_distinct_first_choices_over_all_views():
    codes = torch.nn.functional.one_hot(torch.tensor([[0, 0, 3], [3, 5, 0]]), 9).float()
    assert used_prototypes(codes).item() == 3
    assert used_prototypes(codes[0]).item() == 2


def test_spread_is_zero_for_one_direction_one_for_all_and_the_distance_from_the_mean_between():
    point = torch.nn.functional.normalize(torch.ones(2, 5, 8), dim=-1)
    assert embedding_spread(point).item() == pytest.approx(0.0, abs=1e-3)
    assert embedding_spread(torch.cat([torch.eye(8), -torch.eye(8)])).item() == pytest.approx(1.0)
    rows = torch.nn.functional.normalize(torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(0)) + 1, dim=-1)
    flat = rows.flatten(0, 1)
    expected = (flat - flat.mean(0)).square().sum(1).mean().sqrt()
    assert embedding_spread(rows).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_second_backward_is_refused_rather_than_wrong():
    scores, codes = torch.randn(3, 4, 5, requires_grad=True), torch.softmax(torch.randn(2, 4, 5), dim=-1)
    loss = swav_loss(scores, codes, temperature=0.1)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=naming("swav_loss")):
        loss.backward()
