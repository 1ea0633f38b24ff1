"""A batch run in parts against the whole: gradients, losses, queue, statistics; what is sent between ranks; and the words."""

import json

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from seer.core.records import Batch
from seer.data import synthetic as sample
from seer.data.multicrop import MultiCrop
from seer.data.transforms.one_view import OneView
from seer.engine.accumulate import images_of, in_parts, parts_of
from seer.engine.precision import Precision
from seer.models.regnet import RegNet
from seer.models.surgery import freeze_batch_norm
from seer.parallel.gradients import kept_apart
from seer.parallel.world import World
from seer.parallel.wrap import parallelize
from seer.tasks.heads import HeadsTask
from seer.tasks.swav import SwAVTask
from tests.program import seer
from tests.ranks import run_ranks

CPU = torch.device("cpu")
CROPS = MultiCrop(sizes=[24, 16], counts=[2, 2], scales=[[0.3, 1.0], [0.1, 0.3]])
IMAGES = 8


def swav(frozen: bool, queue: int = 0) -> SwAVTask:
    torch.manual_seed(0)
    backbone = RegNet((16, 24), (1, 1), (8, 8))
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1), module.running_var.uniform_(0.5, 2)
    backbone = freeze_batch_norm(backbone) if frozen else backbone
    numbers = {"hidden": [16], "embedding": 8, "prototypes": 12, "batch_norm": not frozen, "queue": queue, "heads": 2}
    return SwAVTask(backbone, CROPS, **numbers)


def stepped(task, batches: list[Batch], parts: int) -> tuple[list, list, dict]:
    """Losses and metrics of plain SGD, gradients of the last step, and the state."""
    precision, found = Precision(CPU), []
    parameters = [p for p in task.model.parameters() if p.requires_grad]
    task.model.train()
    for step, batch in enumerate(batches):
        for p in parameters:
            p.grad = None
        task.before_step(step)
        if parts == 1:
            output = task.loss(batch)
            precision.backward(output.loss)
        else:
            output = in_parts(task, batch, precision, parts)
        found.append([output.loss.item(), *(v.item() for v in output.metrics.values())])
        with torch.no_grad():
            for p in parameters:
                p -= 0.1 * p.grad
        task.after_step(step)
    return found, [p.grad.clone() for p in parameters], task.state_dict()


def test_parts_hold_each_image_once_with_all_its_views_and_colors():
    batch = swav(True).example(IMAGES)
    numbered = torch.arange(2 * IMAGES) % IMAGES  # view-major
    batch.fields["views/24"] = numbered[:, None, None, None].expand(-1, 3, 24, 24).to(torch.uint8)
    batch.fields |= {"color/24/gray": numbered.clone(), "label": torch.arange(IMAGES)}
    parts = parts_of(batch, 4, IMAGES)
    for number, part in enumerate(parts):
        expected = [2 * number, 2 * number + 1]
        assert part.fields["label"].tolist() == expected
        assert part.fields["color/24/gray"].tolist() == expected * 2
        assert part.fields["views/24"][:, 0, 0, 0].tolist() == expected * 2
        assert part.fields["views/16"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("queue", [0, 16])
@pytest.mark.parametrize("parts", [2, 8])
def test_without_batch_statistics_parts_give_the_losses_and_gradients_of_the_whole(parts, queue):
    batches = [swav(True).example(IMAGES) for _ in range(4)]
    generator = torch.Generator().manual_seed(1)
    for batch in batches:
        for name in ("views/24", "views/16"):
            batch.fields[name] = torch.randint(256, batch.fields[name].shape, generator=generator, dtype=torch.uint8)
    whole, gradients, state = stepped(swav(True, queue), batches, 1)
    found, others, after = stepped(swav(True, queue), batches, parts)
    assert torch.tensor(found) == pytest.approx(torch.tensor(whole), abs=2e-5)
    assert max(a.abs().max() for a in gradients) > 1e-3
    for a, b in zip(gradients, others, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    for name, value in state.items():  # the queue is part of it
        assert torch.allclose(after[name].float(), value.float(), atol=1e-5), name


def test_with_batch_statistics_losses_differ_and_running_statistics_move_once_a_part():
    batch, task = swav(False).example(IMAGES), swav(False)
    whole, _, _ = stepped(swav(False), [batch], 1)
    found, _, _ = stepped(task, [batch], 4)
    assert abs(found[0][0] - whole[0][0]) > 1e-4
    moved = {int(b) for n, b in task.model.named_buffers() if n.startswith("backbone") and n.endswith("tracked")}
    assert moved == {8}  # two sizes of views, four parts: the pass for the codes does not count


def test_a_head_learns_from_parts_as_from_the_whole():
    torch.manual_seed(0)
    backbone = freeze_batch_norm(RegNet((16, 24), (1, 1), (8, 8)))
    task = HeadsTask(backbone, OneView(size=24), classes=["a", "b", "c"])
    batch = task.example(IMAGES)
    batch.fields["label"] = torch.arange(IMAGES) % 3
    assert images_of(task, batch) == IMAGES
    before = {k: v.clone() for k, v in task.model.state_dict().items()}
    whole, gradients, _ = stepped(task, [batch], 1)
    task.model.load_state_dict(before)
    found, others, _ = stepped(task, [batch], 4)
    assert found[0] == pytest.approx(whole[0], abs=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients, others, strict=True))


def sums(world: World, mode: str) -> list[list[float]]:
    """A gradient of this rank behind the first part, and behind both; rank r's inputs are r + 1 and 10 * (r + 1)."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(1, 1, bias=False))
    model = parallelize(inner, world, mode=mode)
    parameter = next(inner.parameters())
    found = []
    for number, factor in enumerate((1, 10)):
        x = torch.full((1, 1), float(factor * (world.rank + 1)))
        if number == 0:
            with kept_apart(model):
                model(x).sum().backward()
        else:
            model(x).sum().backward()
        gradient = parameter.grad
        gradient = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
        found.append(None if gradient is None else gradient.item())
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "first"), [("ddp", [1.0, 2.0]), ("fsdp", [None, None])])
def test_ranks_send_no_gradient_before_the_last_part(mode, first):
    found = run_ranks(sums, 2, mode)
    assert [one[0] for one in found] == first  # each rank's own; FSDP keeps it in a place of its own
    assert [one[1] for one in found] == [16.5, 16.5]  # the mean over ranks of 11 and 22


@pytest.mark.slow
def test_the_program_runs_in_parts_and_goes_on_bit_for_bit(tmp_path, capfd):
    for key, fields in sample.samples(40, seed=3):
        (tmp_path / f"{key}.jpg").write_bytes(fields["jpg"])
    words = ("pretrain", "model=regnety_tiny", "augment=small", "augment.sizes=[32,16]", "task=swav_small", "task.hidden=[32]",
             "task.prototypes=16", "batch=16", "every.log=1", "every.evaluate=0", "log.tensorboard=false", "data.threads=0",
             "parallel.device=cpu", "task.queue=32", f"data.source={tmp_path / '*.jpg'}")  # fmt: skip
    whole = seer(capfd, *words, "accumulate=4", "steps=6", "every.checkpoint=3", f"output={tmp_path / 'a'}")
    assert whole.status == 0 and (whole.result["steps"], whole.result["images"]) == (6, 96)
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert [row["images"] for row in rows] == [16 * n for n in range(1, 7)]
    newest = tmp_path / "a" / "checkpoints"
    for path in (newest / "step-00000006").iterdir():
        path.unlink()
    (newest / "step-00000006").rmdir()
    (tmp_path / "a" / "result.json").unlink()
    again = seer(capfd, *words, "accumulate=4", "steps=6", "every.checkpoint=3", f"output={tmp_path / 'a'}")
    assert again.status == 0
    after = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    timing = ("images_per_s", "data_wait", "step_ms", "peak_memory_gb")
    strip = lambda rows: [{k: v for k, v in row.items() if k not in timing} for row in rows]  # noqa: E731
    assert strip(after) == strip(rows)
    other = seer(capfd, *words, "accumulate=2", "steps=6", f"output={tmp_path / 'a'}")
    assert other.status == 78 and "accumulate: 4 -> 2" in other.result["error"]
    uneven = seer(capfd, *words, "accumulate=3", "steps=6", f"output={tmp_path / 'b'}")
    assert uneven.status == 78 and "accumulate=3" in uneven.result["error"] and not (tmp_path / "b").exists()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_the_plan_counts_one_part_at_a_time_beside_the_gradients_of_those_before(mode, capfd):
    words = ("plan", "model=regnety_200mf", "augment=swav", "augment.sizes=[160,96]", "augment.counts=[2,4]", "gpus=2",
             f"parallel.mode={mode}", "task.prototypes=256")  # fmt: skip
    part, whole = seer(capfd, *words, "batch=32"), seer(capfd, *words, "batch=128", "accumulate=4", "steps=8h")
    assert part.status == whole.status == 0
    gradients = 4 * part.result["parameters"] / 1e9
    step = whole.result["step"] - part.result["step"]
    assert -0.011 <= step <= gradients + 0.03  # figures are rounded to 0.01 GB; codes of 64 images are small
    more = whole.result["gradients"] - part.result["gradients"]
    assert more == pytest.approx(gradients if mode == "fsdp" else 0, abs=0.011)
    at_once = seer(capfd, *words, "batch=128")
    assert at_once.result["step"] > 2 * whole.result["step"]
