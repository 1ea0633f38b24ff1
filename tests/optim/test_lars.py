"""LARS against its formula by hand in float64, one tensor at a time, and sharded over two ranks against whole."""

import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

from seer.optim.lars import LARS
from seer.parallel.world import World
from tests.ranks import run_ranks

STEPS = 50
SHAPES = {"conv": (16, 8, 3, 3), "bn_weight": (16,), "bn_bias": (16,), "linear": (5, 16), "bias": (5,), "scalar": ()}


def start() -> dict[str, Tensor]:
    """Float32 values as a network has them at step 0: batch-norm weights 1, biases 0."""
    generator = torch.Generator().manual_seed(0)
    values = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return values | {"bn_weight": torch.ones(16), "bn_bias": torch.zeros(16), "bias": torch.zeros(5)}


def gradients(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    made = {name: 0.01 * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    if step % 7 == 3:
        made["linear"].zero_()  # a zero gradient norm: momentum alone moves it, nothing decays
    return made


def rate(step: int) -> float:
    return 0.5 + 0.1 * (step % 5)


class ByHand:
    """ratio, g' and momentum for one tensor, in float64, with `if` where the rule says "if"."""

    def __init__(self, value: Tensor, decay: float, adapt: bool = True, momentum: float = 0.9):
        self.p, self.m = value.double(), None
        self.decay, self.adapt, self.momentum = decay, adapt, momentum

    def step(self, gradient: Tensor, lr: float) -> None:
        g = gradient.double()
        p_norm, g_norm = self.p.norm().item(), g.norm().item()
        if not self.adapt:
            g = g + self.decay * self.p
        elif p_norm > 0 and g_norm > 0:
            g = 0.001 * p_norm / (g_norm + self.decay * p_norm + 1e-8) * (g + self.decay * self.p)
        self.m = g if self.m is None else self.momentum * self.m + g
        self.p = self.p - lr * self.m


def worst(parameters: dict[str, Tensor], hands: dict[str, ByHand]) -> float:
    return max((parameters[name].detach().double() - hand.p).abs().max().item() for name, hand in hands.items())


@pytest.mark.parametrize("decay", [0.0, 1e-5, 0.1])
def test_fifty_steps_equal_the_formula_for_every_kind_of_parameter(decay):
    parameters = {name: nn.Parameter(value) for name, value in start().items()}
    hands = {name: ByHand(value, decay) for name, value in start().items()}
    optimizer = LARS(parameters.values(), lr=1.0, weight_decay=decay)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = rate(step)
        for name, gradient in gradients(step).items():
            parameters[name].grad = gradient
            hands[name].step(gradient, rate(step))
        optimizer.step()
    assert worst(parameters, hands) <= 2e-6
    assert all((parameters[name] - value).abs().max() > 1e-3 for name, value in start().items())


def test_zero_parameters_step_at_the_full_rate_and_zero_gradients_do_not_decay():
    zero, still = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.full((3,), 2.0))
    zero.grad, still.grad = torch.tensor([1.0, -2.0, 0.5]), torch.zeros(3)
    LARS([zero, still], lr=0.5, weight_decay=0.1).step()
    assert torch.equal(zero.detach(), torch.tensor([-0.5, 1.0, -0.25]))
    assert torch.equal(still.detach(), torch.full((3,), 2.0))


def test_without_momentum_each_step_is_its_own_gradient_at_its_own_rate():
    p, by_hand = nn.Parameter(torch.tensor([3.0, -4.0])), torch.tensor([3.0, -4.0], dtype=torch.float64)
    optimizer = LARS([p], lr=0.5, momentum=0.0, weight_decay=0.1)
    for gradient in (torch.tensor([1.0, 2.0]), torch.tensor([-0.5, 0.25])):
        p.grad = gradient.clone()
        optimizer.step()
        size, g = by_hand.norm(), gradient.double()
        by_hand -= 0.5 * 0.001 * size / (g.norm() + 0.1 * size + 1e-8) * (g + 0.1 * by_hand)
    torch.testing.assert_close(p.detach().double(), by_hand, rtol=1e-6, atol=0)


def test_groups_without_adapt_are_plain_sgd():
    adapted, plain = ("conv", "linear"), ("bn_weight", "bn_bias", "bias", "scalar")
    parameters = {name: nn.Parameter(value) for name, value in start().items()}
    hands = {name: ByHand(value, 1e-5 if name in adapted else 0.01, name in adapted) for name, value in start().items()}
    groups = [
        {"params": [parameters[name] for name in adapted]},
        {"params": [parameters[name] for name in plain], "adapt": False, "weight_decay": 0.01},
    ]
    optimizer = LARS(groups, lr=0.5, weight_decay=1e-5)
    twins = [nn.Parameter(parameters[name].detach().clone()) for name in plain]
    sgd = torch.optim.SGD(twins, lr=0.5, momentum=0.9, weight_decay=0.01)
    for step in range(STEPS):
        for name, gradient in gradients(step).items():
            parameters[name].grad = gradient
            hands[name].step(gradient, 0.5)
        for twin, name in zip(twins, plain, strict=True):
            twin.grad = gradients(step)[name]
        optimizer.step()
        sgd.step()
    assert worst(parameters, hands) <= 2e-6
    for twin, name in zip(twins, plain, strict=True):
        torch.testing.assert_close(parameters[name], twin, rtol=0, atol=1e-6)


def test_parameters_without_gradient_neither_move_nor_gather_momentum():
    moving, resting = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = LARS([moving, resting], lr=0.5, weight_decay=0.1)
    moving.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(resting.detach(), torch.ones(3)) and resting not in optimizer.state
    resting.grad = torch.ones(3)
    optimizer.step()
    momentum = optimizer.state[resting]["momentum_buffer"].clone()
    value = resting.detach().clone()
    resting.grad = None
    moving.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(optimizer.state[resting]["momentum_buffer"], momentum) and torch.equal(resting.detach(), value)


def test_gradients_stay_as_they_are():
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.tensor([1.0, 2.0, 3.0])
    LARS([p], lr=0.5, weight_decay=0.1).step()
    assert torch.equal(p.grad, torch.tensor([1.0, 2.0, 3.0]))


def test_a_nan_gradient_is_not_hidden():
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.tensor([1.0, float("nan"), 3.0])
    LARS([p], lr=0.5).step()
    assert p.isnan().all()


def test_state_saved_after_five_steps_continues_bitwise():
    def run(parameters, optimizer, steps):
        for step in steps:
            for p, gradient in zip(parameters, gradients(step).values(), strict=True):
                p.grad = gradient
            optimizer.step()

    through = [nn.Parameter(value) for value in start().values()]
    one = LARS(through, lr=0.5, weight_decay=1e-5)
    run(through, one, range(5))
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    resumed = copy.deepcopy(through)
    two = LARS(resumed, lr=0.1)
    two.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    run(through, one, range(5, 10))
    run(resumed, two, range(5, 10))
    assert all(torch.equal(a, b) for a, b in zip(through, resumed, strict=True))


def test_closure_is_evaluated_with_gradients_and_its_loss_returned():
    p = nn.Parameter(torch.ones(3))
    optimizer = LARS([p], lr=0.5)

    def closure():
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    assert (p < 1).all()


@pytest.mark.parametrize(
    "wrong", [{"lr": -1.0}, {"lr": 0.1, "momentum": 1.0}, {"lr": 0.1, "weight_decay": -1e-5}, {"lr": float("nan")}]
)
def test_wrong_arguments_are_named(wrong):
    name, value = list(wrong.items())[-1]
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        LARS([nn.Parameter(torch.ones(1))], **wrong)


def step_sharded(world: World) -> tuple[dict[str, Tensor], set[str]]:
    mesh = init_device_mesh("cpu", (2,))
    parameters = {name: nn.Parameter(value) for name, value in start().items()}
    for name in ("conv", "bn_weight", "bn_bias", "linear"):  # linear has 5 rows: 3 and 2; the others stay whole
        parameters[name] = nn.Parameter(distribute_tensor(start()[name], mesh, [Shard(0)]))
    optimizer = LARS(parameters.values(), lr=0.5, weight_decay=1e-5)
    for step in range(10):
        for name, gradient in gradients(step).items():
            sharded = hasattr(parameters[name], "full_tensor")
            parameters[name].grad = distribute_tensor(gradient, mesh, [Shard(0)]) if sharded else gradient
        optimizer.step()
    whole = {name: p.full_tensor() if hasattr(p, "full_tensor") else p for name, p in parameters.items()}
    kinds = {type(optimizer.state[parameters[name]]["momentum_buffer"]).__name__ for name in ("conv", "linear")}
    return {name: p.detach() for name, p in whole.items()}, kinds


@pytest.mark.slow
def test_parameters_sharded_over_two_ranks_step_as_whole_ones():
    sharded, kinds = run_ranks(step_sharded, 2)[0]
    hands = {name: ByHand(value, 1e-5) for name, value in start().items()}
    for step in range(10):
        for name, gradient in gradients(step).items():
            hands[name].step(gradient, 0.5)
    assert worst(sharded, hands) <= 2e-6
    assert kinds == {"DTensor"}  # momentum is saved and re-sharded like its parameter


def test_the_trust_ratios_of_a_step_are_told_by_their_range_and_without_those_that_adapt_nothing():
    parameters = {name: nn.Parameter(value) for name, value in start().items()}
    plain = nn.Parameter(torch.ones(3))
    for p, g in zip(parameters.values(), gradients(3).values(), strict=True):  # linear's gradient is zero
        p.grad = g
    plain.grad = torch.full((3,), 1e-9)
    optimizer = LARS(
        [{"params": list(parameters.values())}, {"params": [plain], "adapt": False}], lr=0.1, weight_decay=1e-2
    )
    assert optimizer.metrics() == {}
    norms = {n: (p.detach().double().norm(), p.grad.double().norm()) for n, p in parameters.items() if n != "linear"}
    optimizer.step()
    by_hand = sorted((0.001 * p / (g + 1e-2 * p + 1e-8)).item() if p > 0 else 1.0 for p, g in norms.values())
    found = {name: value.item() for name, value in optimizer.metrics().items()}
    assert found["trust/smallest"] == pytest.approx(by_hand[0], rel=1e-5)
    assert found["trust/largest"] == pytest.approx(by_hand[-1], rel=1e-5)
    assert found["trust/median"] == pytest.approx(by_hand[(len(by_hand) - 1) // 2], rel=1e-5)
