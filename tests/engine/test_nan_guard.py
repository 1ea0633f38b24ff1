"""A step with a number that is not finite changes nothing, is captured, and ends the run with status 70."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from seer.core.errors import NumericsError
from seer.data import synthetic as sample
from seer.engine.nan_guard import NaNGuard
from seer.engine.precision import Precision
from seer.optim import lars
from seer.optim.lars import LARS
from seer.parallel.world import World
from tests.messages import naming, says
from tests.program import SMALL, losses, seer
from tests.ranks import run_ranks

CPU = torch.device("cpu")
OPTIMIZERS = {
    "LARS": lambda p: LARS(p, lr=0.5, weight_decay=1e-4),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9),
    "SGD, fused": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9, fused=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.5),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=0.5, fused=True),
}


def take(precision: Precision, model: nn.Module, optimizer: torch.optim.Optimizer, factor: float) -> torch.Tensor:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    loss = model(x).square().mean() * factor
    precision.backward(loss)
    return precision.step(optimizer, loss)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_step_and_those_after_it_leave_weights_and_state_bit_for_bit(name, bad):
    model = nn.Linear(4, 3)
    optimizer, precision = OPTIMIZERS[name](model.parameters()), Precision(CPU)
    take(precision, model, optimizer, 1.0)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict()["state"])
    assert precision.broken.item() == 0
    assert not take(precision, model, optimizer, bad).isfinite() and precision.broken.item() == 1
    take(precision, model, optimizer, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(weights.values(), model.state_dict().values(), strict=True))
    for before, after in zip(state.values(), optimizer.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(before[k], after[k]) for k in before)


def test_torch_still_marks_the_optimizers_that_heed_found_inf():
    """`_step_supports_amp_scaling` is torch's own, private word; if it goes, the flag is read on the host instead."""
    p = [nn.Parameter(torch.ones(2))]
    assert torch.optim.AdamW(p, fused=True)._step_supports_amp_scaling  # type: ignore[attr-defined]
    assert not getattr(torch.optim.AdamW(p), "_step_supports_amp_scaling", False)


@pytest.mark.parametrize("adapt", [True, False])
def test_the_update_for_a_gpu_is_that_for_a_cpu_and_masks_itself(adapt):
    """Run here on CPU tensors: both are made of operations that exist on either."""
    made = []
    for update in (lars._on_cpu, lars._on_device):
        g = torch.Generator().manual_seed(0)
        shapes = [(8, 4, 3, 3), (8, 4, 1, 1), (16,), ()]
        parameters = [nn.Parameter(torch.randn(s, generator=g)) for s in shapes]
        parameters[0].data = parameters[0].data.to(memory_format=torch.channels_last)
        buffers = [torch.zeros(s) for s in shapes]  # of another memory format than the first parameter
        group = dict(momentum=0.9, weight_decay=1e-2, lr=0.5, trust_coefficient=0.001, eps=1e-8, adapt=adapt)
        for step in range(12):
            for p in parameters:
                p.grad = torch.randn(p.shape, generator=g) * (float("nan") if step == 7 else 1.0)
            ratios = lars._ratios(parameters, group)
            update(parameters, buffers, ratios, group, torch.tensor(float(step == 7)))
        made.append([*parameters, *buffers])
    assert all(t.isfinite().all() for t in made[0])
    for ours, theirs in zip(*made, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)


def guard(folder: Path) -> NaNGuard:
    return NaNGuard(
        folder, World(0, 1, 0, CPU), images=lambda step: [{"row": step}],
        explain=lambda evidence: {"twice": 2 * evidence["x"]}, weights=lambda: {"w": torch.ones(2)}, config={"batch": 4},
    )  # fmt: skip


def test_the_flag_of_a_step_is_read_when_the_next_is_under_way_and_before_a_checkpoint_at_once(tmp_path):
    bad, good, numbers = torch.tensor(1.0), torch.tensor(0.0), {"loss": torch.tensor(float("nan"))}
    late, soon = guard(tmp_path / "late"), guard(tmp_path / "soon")
    late.watch(4, bad, numbers, {"x": torch.ones(3)})
    with pytest.raises(NumericsError, match=r"step 4 \(loss nan\).*schedule\.peak"):
        late.watch(5, bad, numbers, {"x": torch.zeros(3)})
    soon.watch(4, good, numbers, {"x": torch.ones(3)})
    soon.check_now()
    soon.watch(5, bad, numbers, {"x": torch.ones(3)})
    with pytest.raises(NumericsError, match=naming("step 5", "schedule.peak")):
        soon.check_now()
    soon.check_now()  # once is enough
    seen = torch.load(tmp_path / "late" / "capture-00000004" / "rank-00000.pt", weights_only=True)
    assert torch.equal(seen["twice"], torch.full((3,), 2.0)) and seen["pictures"] == [{"row": 4}]
    card = json.loads((tmp_path / "late" / "capture-00000004" / "capture.json").read_text())
    assert card["step"] == 4 and card["loss"] == "nan" and card["config"] == {"batch": 4}


def one_rank_breaks(world: World) -> list[tuple[float, torch.Tensor]]:
    p = nn.Parameter(torch.ones(3))
    precision, optimizer = Precision(CPU), LARS([p], lr=0.5)
    found = []
    for step in range(2):
        p.grad = torch.ones(3)
        loss = torch.tensor(float("inf") if world.rank == 1 and step == 1 else 1.0)
        precision.step(optimizer, loss, world.group)
        found.append((precision.broken.item(), p.detach().clone()))
    return found


@pytest.mark.slow
def test_a_loss_that_is_infinite_on_one_rank_masks_the_step_on_both():
    for (before, moved), (after, kept) in run_ranks(one_rank_breaks, 2):
        assert (before, after) == (0.0, 1.0) and torch.equal(moved, kept) and not torch.equal(moved, torch.ones(3))


@pytest.mark.slow
def test_a_run_whose_loss_becomes_nan_captures_the_step_ends_with_70_and_keeps_its_checkpoint(
    tmp_path, capfd, monkeypatch
):
    from seer.tasks import swav

    calls, plain = [], swav.swav_loss

    def breaks(*given, **named):
        calls.append(1)
        return plain(*given, **named) * (float("nan") if len(calls) == 6 else 1.0)  # step 5

    monkeypatch.setattr(swav, "swav_loss", breaks)
    for key, fields in sample.samples(50, seed=3):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        (tmp_path / "pictures" / f"{key}.jpg").write_bytes(fields["jpg"])
    small = [w for w in SMALL if not w.startswith(("model=", "every.log"))]
    words = (*small, "model=regnety_tiny", "steps=12", "every.checkpoint=2", "every.log=3")
    run = tmp_path / "run"
    ended = seer(capfd, "pretrain", *words, f"data.source={tmp_path / 'pictures'}", f"output={run}")
    assert ended.status == 70 and ended.result["exit"] == 70 and says(ended.result["error"], "not finite", "step 5")
    assert (run / "checkpoints" / "last").resolve().name == "step-00000004"
    assert len(losses(run)) == 1  # of step 2: the row of step 5 waits behind the flag
    card = json.loads((run / "capture-00000005" / "capture.json").read_text())
    assert card["config"]["batch"] == 16 and card["loss"] == "nan" and len(card["pictures"]) == 16
    assert {"epoch", "shard", "row"} == set(card["pictures"][0])
    seen = torch.load(run / "capture-00000005" / "rank-00000.pt", weights_only=True)
    assert seen["scores"].shape == (4 * 16, 16) and seen["embeddings"].shape == (4 * 16, 16)
    assert seen["scores"].isfinite().all() and seen["scores"].abs().max() <= 1.001
