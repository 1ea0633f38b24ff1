"""The average of weights against its closed form, its place in the model while judged, and its state."""

import pytest
import torch
from torch import nn

from seer.engine.weight_average import WeightAverage


class Few:
    """A task of a backbone with statistics, one head that a bundle keeps and one that it does not."""

    def __init__(self):
        self.parts = {"backbone": nn.BatchNorm1d(3), "head": nn.Linear(3, 2), "prototypes": nn.Linear(3, 2)}

    def modules(self):
        return self.parts

    def head_cards(self):
        return {"head": None}


def filled(task: Few, step: int) -> None:
    with torch.no_grad():
        for part in task.parts.values():
            for i, tensor in enumerate(part.state_dict().values()):
                tensor.fill_(step + 1) if not tensor.is_floating_point() else tensor.fill_((step + 1) ** 2 / (i + 3))


def test_the_average_is_the_closed_form_of_all_weights_so_far():
    task, decay, steps = Few(), 0.9, 20
    filled(task, -1)
    average = WeightAverage(task, decay)
    for step in range(steps):
        filled(task, step)
        average.update()
    # sum over steps of (1 - d) d^(steps - 1 - s) w_s, beside d^steps of where it began (0)
    known = sum((1 - decay) * decay ** (steps - 1 - s) * (s + 1) ** 2 for s in range(steps))
    names = set(average.tensors)
    assert names == {f"backbone.{n}" for n in task.parts["backbone"].state_dict()} | {"head.weight", "head.bias"}
    for part in ("backbone", "head"):
        for i, (name, tensor) in enumerate(task.parts[part].state_dict().items()):
            found = average.tensors[f"{part}.{name}"]
            if tensor.is_floating_point():
                torch.testing.assert_close(found, torch.full_like(found, known / (i + 3)), rtol=1e-6, atol=0)
            else:
                assert int(found) == steps


def test_it_stands_in_and_gives_the_weights_back_to_the_bit():
    task = Few()
    average = WeightAverage(task, 0.5)
    filled(task, 4)
    average.update()
    before = {n: t.clone() for n, t in task.parts["backbone"].state_dict().items()}
    with pytest.raises(ZeroDivisionError), average.standing_in():
        now = task.parts["backbone"].state_dict()
        assert all(torch.equal(now[n], average.tensors[f"backbone.{n}"]) for n in now)
        assert not torch.equal(now["weight"], before["weight"])
        _ = 1 / 0
    assert all(torch.equal(t, before[n]) for n, t in task.parts["backbone"].state_dict().items())


def test_weights_that_stay_are_their_own_average_to_the_bit_and_a_state_is_taken_back():
    task = Few()
    with torch.no_grad():
        task.parts["head"].weight.normal_()
    average = WeightAverage(task, 0.97)
    for _ in range(50):
        average.update()
    assert torch.equal(average.tensors["head.weight"], task.parts["head"].weight)
    state = {name: tensor + 1 for name, tensor in average.state_dict().items()}
    kept = average.tensors["head.weight"]
    average.load_state_dict(state)
    assert average.tensors["head.weight"] is kept and torch.equal(kept, state["head.weight"])
    with pytest.raises(ValueError):
        average.load_state_dict({})
