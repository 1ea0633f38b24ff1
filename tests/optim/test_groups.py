"""Rules -> groups, schedules on groups, and what frozen means to LARS, SGD and AdamW."""

import pytest
import torch
from torch import nn

from seer.optim.groups import Rule, apply_schedules, build_groups, drop_frozen_gradients
from seer.optim.lars import LARS
from tests.messages import naming


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.head = nn.Linear(6, 5)
        self.prototypes = nn.Linear(5, 7, bias=False)

    def forward(self, x):
        return self.prototypes(self.head(self.trunk(x)))


def names(model: nn.Module, group: dict) -> list[str]:
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return [known[id(parameter)] for parameter in group["params"]]


def test_first_matching_rule_wins_and_the_rest_is_default():
    model = Model()
    rules = [
        {"pattern": "^prototypes", "frozen_steps": 313},
        Rule("bias$", name="biases", weight_decay=0.0),
        {"pattern": "trunk"},
    ]
    groups = build_groups(model.named_parameters(), rules, weight_decay=1e-5)
    assert [group["name"] for group in groups] == ["^prototypes", "biases", "trunk", "default"]
    assert [names(model, group) for group in groups] == [
        ["prototypes.weight"],
        ["trunk.0.bias", "trunk.1.bias", "head.bias"],
        ["trunk.0.weight", "trunk.1.weight"],
        ["head.weight"],
    ]
    assert [group["weight_decay"] for group in groups] == [1e-5, 0.0, 1e-5, 1e-5]
    assert [group["frozen"] for group in groups] == [True, False, False, False]


def test_rules_may_ask_for_few_dimensions():
    model = Model()
    groups = build_groups(
        model.named_parameters(), [{"pattern": ".", "name": "vectors", "max_dims": 1, "adapt": False}]
    )
    assert names(model, groups[0]) == ["trunk.0.bias", "trunk.1.weight", "trunk.1.bias", "head.bias"]
    assert groups[0]["adapt"] is False and "adapt" not in groups[1]
    assert [group["adapt"] for group in LARS(groups, lr=0.1).param_groups] == [False, True]


def test_anchored_patterns_see_through_wrappers():
    model = Model()
    wrapped = [
        ("module._orig_mod." + name.replace("trunk.", "trunk._checkpoint_wrapped_module."), parameter)
        for name, parameter in model.named_parameters()
    ]
    groups = build_groups(wrapped, [{"pattern": r"^trunk\.0\."}])
    assert names(model, groups[0]) == ["trunk.0.weight", "trunk.0.bias"]


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([{"pattern": "prototpyes"}], ("'prototpyes'", 7, "trunk.0.weight")),
        ([{"pattern": "trunk"}, {"pattern": r"trunk\.1"}], ("max_dims", "trunk.1.weight")),
        ([{"pattern": "trunk", "frozen": 3}], ("['frozen']", "pattern")),
        ([{"name": "trunk"}], ("pattern",)),
        ([{"pattern": "("}], ("regular expression",)),
        (
            [{"pattern": "trunk", "weight_decay": 0.1, "weight_decay_scale": 2.0}],
            ("weight_decay", "weight_decay_scale"),
        ),
        ([{"pattern": "trunk", "lr_scale": -1.0}], ("lr_scale -1.0",)),
        ([{"pattern": "trunk", "name": "default"}], ("two groups", "'default'")),
    ],
)
def test_wrong_rules_are_named(rules, said):
    with pytest.raises(ValueError, match=naming(*said)):
        build_groups(Model().named_parameters(), rules)


OPTIMIZERS = {
    "lars": lambda groups: LARS(groups, lr=1.0),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1.0, momentum=0.9),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=1.0),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_schedules_are_scaled_by_group_and_none_freezes(kind):
    rules = [
        {"pattern": "prototypes", "frozen_steps": 3},
        {"pattern": "head", "lr_scale": 10.0, "weight_decay": 0.5},
        {"pattern": "trunk.1", "weight_decay_scale": 0.0},
    ]
    optimizer = OPTIMIZERS[kind](build_groups(Model().named_parameters(), rules, weight_decay=0.25))
    prototypes, head, norm, rest = optimizer.param_groups
    apply_schedules(optimizer, 2, lambda step: 0.1 * step, lambda step: 0.01 * step)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.0, 2.0, 0.2, 0.2])
    assert [group["frozen"] for group in optimizer.param_groups] == [True, False, False, False]
    assert [group["weight_decay"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.5, 0.0, 0.02])
    apply_schedules(optimizer, 3, lambda step: 0.1 * step, by_group={"head": lambda step: None})
    assert [group["frozen"] for group in optimizer.param_groups] == [False, True, False, False]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.3, 0.0, 0.3, 0.3])
    assert rest["weight_decay"] == pytest.approx(0.02)  # no decay schedule: as it was
    apply_schedules(optimizer, 4, lambda step: None)
    assert all(group["frozen"] for group in (prototypes, head, norm, rest))


def test_a_schedule_for_an_unknown_group_is_named():
    optimizer = torch.optim.SGD(build_groups(Model().named_parameters(), [{"pattern": "head"}]), lr=0.1)
    with pytest.raises(ValueError, match=naming("['haed']", "['default', 'head']")):
        apply_schedules(optimizer, 0, lambda step: 0.1, by_group={"haed": lambda step: 0.2})


def test_groups_made_elsewhere_follow_the_schedule():
    optimizer = torch.optim.SGD(Model().parameters(), lr=0.1, weight_decay=0.3)
    apply_schedules(optimizer, 1, lambda step: 0.7, lambda step: 0.2)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (0.7, 0.2)
    assert optimizer.param_groups[0]["frozen"] is False


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_frozen_groups_neither_move_nor_gather_momentum_and_then_start_fresh(kind):
    torch.manual_seed(0)
    model, images = Model(), torch.randn(3, 8, 4)
    rules = [{"pattern": "prototypes", "frozen_steps": 2}]
    optimizer = OPTIMIZERS[kind](build_groups(model.named_parameters(), rules, weight_decay=0.1))
    weight, before = model.prototypes.weight, model.prototypes.weight.detach().clone()
    for step in range(3):
        apply_schedules(optimizer, step, lambda step: 0.05)
        optimizer.zero_grad()
        model(images[step]).square().mean().backward()
        assert weight.grad is not None
        gradient = weight.grad.clone()
        drop_frozen_gradients(optimizer)
        optimizer.step()
        if step < 2:
            assert torch.equal(weight.detach(), before) and not optimizer.state.get(weight)
            assert model.head.weight.grad is not None
    assert not torch.equal(weight.detach(), before)
    if kind == "sgd":  # its buffer holds step 2's gradient alone
        torch.testing.assert_close(optimizer.state[weight]["momentum_buffer"], gradient + 0.1 * before)


def test_groups_survive_the_optimizers_state_dict_without_functions():
    groups = build_groups(Model().named_parameters(), [{"pattern": "prototypes", "frozen_steps": 2}])
    optimizer = LARS(groups, lr=0.1)
    apply_schedules(optimizer, 0, lambda step: 0.1)
    saved = optimizer.state_dict()["param_groups"]
    assert [group["name"] for group in saved] == ["prototypes", "default"] and saved[0]["frozen_steps"] == 2
    assert not any(callable(value) for group in saved for value in group.values())
