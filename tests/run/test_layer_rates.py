"""Rates by depth against the closed form, and modules that rest at first, on the groups that an optimizer gets."""

import pytest
import torch
from torch import nn

from seer.core.errors import RequestError
from seer.data.transforms.one_view import OneView
from seer.models.regnet import RegNet
from seer.optim.groups import apply_schedules, build_groups, split_groups
from seer.run.layer_rates import depths, places_of
from seer.tasks.heads import HeadsTask


def task(heads_first: int = 0) -> HeadsTask:
    net = RegNet(widths=[8, 16, 24, 32], depths=[1, 2, 1, 1], group_widths=[8, 8, 8, 8])
    return HeadsTask(net, OneView(16), classes=["a", "b"], heads_first=heads_first)


def groups(task: HeadsTask, decay: float) -> tuple[list[dict], dict[int, str]]:
    names = [(f"{part}.{n}", p) for part, module in task.modules().items() for n, p in module.named_parameters()]
    rules = [{"pattern": "bias$", "name": "biases", "weight_decay": 0.0}]
    made = build_groups(names, rules, weight_decay=0.1)
    return split_groups(made, places_of(task, decay)), {id(p): name for name, p in names}


def test_rates_fall_by_the_power_of_the_depth_and_rules_keep_theirs():
    made, names = groups(task(), 0.75)
    expected = {
        "stem": 0.75**5,
        "stage1": 0.75**4,
        "stage2": 0.75**3,
        "stage3": 0.75**2,
        "stage4": 0.75,
        "classify": 1.0,
    }
    optimizer = torch.optim.SGD(made, lr=0.0)
    apply_schedules(optimizer, 7, lambda step: 0.4, by_group={"biases": lambda step: 0.2})
    seen = set()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            place = name.split(".")[1] if name.startswith("backbone.") else "classify"
            bias = name.endswith("bias")
            assert group["lr"] == pytest.approx((0.2 if bias else 0.4) * expected[place], rel=1e-12), name
            assert group["weight_decay"] == (0.0 if bias else 0.1)
            seen.add(name)
    assert seen == set(names.values())


def test_a_backbone_that_rests_has_groups_of_its_own():
    made, names = groups(task(heads_first=3), 1.0)
    optimizer = torch.optim.SGD(made, lr=0.0)
    for step in (0, 2, 3):
        apply_schedules(optimizer, step, lambda step: 0.4)
        for group in optimizer.param_groups:
            rests = names[id(group["params"][0])].startswith("backbone") and step < 3
            assert (group["frozen"], group["lr"]) == (rests, 0.0 if rests else 0.4)


def test_alike_from_the_first_step_on_changes_no_group():
    assert places_of(task(), 1.0) == {}


def test_a_network_without_stages_is_refused():
    with pytest.raises(RequestError, match="layer_decay"):
        depths(nn.Sequential(nn.Conv2d(3, 8, 1)))
