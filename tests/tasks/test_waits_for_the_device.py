"""A step must not wait for the GPU. Here the meta device stands for one: it has no data, so whatever the host would read from it
raises, and what the host sends is seen on its way. tests/gpu/test_waits.py asks torch itself, on a GPU."""

import dataclasses
from collections.abc import Callable
from contextlib import closing, nullcontext
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from seer.core.records import Batch, stays_on_host
from seer.data import synthetic
from seer.data.augment import augment_batch
from seer.data.loading.loader import Loader
from seer.data.loading.reader import Reader
from seer.data.multicrop import MultiCrop
from seer.data.order import Plan
from seer.data.shards.open import open_shards
from seer.data.shards.writer import write_shards
from seer.engine.precision import Precision
from seer.models.regnet import RegNet
from seer.optim.lars import LARS
from seer.run.assemble import on_device_arguments
from seer.tasks.swav import SwAVTask

META, CPU = torch.device("meta"), torch.device("cpu")
CROP = dict(
    sizes=[32, 24], counts=[2, 2], scales=[[0.14, 1.0], [0.05, 0.14]], aspect=[0.75, 4 / 3], flip=0.5, jitter=0.8
)
COLOR = dict(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, grayscale=0.3, blur=0.5, blur_sigma=[0.1, 2.0])
READS = {"item", "tolist", "cpu", "numpy", "nonzero", "masked_select", "unique", "__bool__", "__float__", "__int__"}


class Waits(TorchFunctionMode):
    """Notes what would hold the host up on a GPU: reading a number there, or sending data that it then waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, function: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", str(function))
        if name in READS and args and _is_there(args[0]):
            self.found.append(name)
        if function in (torch.tensor, torch.as_tensor) and _named(kwargs.get("device")) and not _is_there(args[0]):
            self.found.append(name)  # a blocking copy of the numbers
        if name in ("to", "copy_") and not kwargs.get("non_blocking"):
            source, goal = (args[0], [*args[1:], *kwargs.values()]) if name == "to" else (args[1], [args[0]])
            if _is_host(source) and any(_named(x) or _is_there(x) for x in goal):
                self.found.append(name)
        return function(*args, **kwargs)


def _is_there(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.device == META


def _is_host(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.device == CPU


def _named(x: Any) -> bool:
    return isinstance(x, str | torch.device) and torch.device(x) == META


@pytest.fixture(scope="module")
def crop() -> MultiCrop:
    return MultiCrop(**CROP, **COLOR, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def batch(tmp_path_factory, crop) -> Batch:
    """Drawn images, with every color operation, gray and blur among them."""
    folder = tmp_path_factory.mktemp("shards")
    write_shards(synthetic.samples(32, 0), folder, total=32, per_shard=32)
    shards = open_shards(folder)
    loader = Loader(Reader(shards, Plan([32], seed=1, lanes=1), 1), crop, batch=32, threads=0)
    with closing(loader.batches(0)) as stream:
        return next(iter(stream))


def there(batch: Batch) -> Batch:
    return dataclasses.replace(
        batch, fields={name: x if stays_on_host(name) else x.to(META) for name, x in batch.fields.items()}
    )


@pytest.mark.parametrize("method", [{}, {"queue": 32}, {"hard_until": 9, "heads": 2}], ids=str)
def test_a_step_waits_for_nothing(batch, crop, method, monkeypatch):
    task = SwAVTask(RegNet((16, 24), (1, 1), (8, 8)), crop, hidden=(16,), embedding=8, prototypes=12, **method)
    task.model.to(META).train()
    steps = LARS([*task.backbone.parameters(), *task.head.parameters()], lr=0.1, weight_decay=1e-6)
    precision = Precision(META, "fp32", clip=1.0)
    monkeypatch.setattr(torch, "_fused_sgd_", lambda *a, **k: None)  # one kernel, which meta has not got
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: nullcontext())  # which does not know this device
    images = there(batch)
    waits = Waits()
    for step in range(3):
        with waits:
            task.before_step(step)
            output = task.loss(images)
            precision.backward(output.loss)
            precision.step(steps, output.loss)
            task.after_step(step)
    assert waits.found == []


def test_views_are_made_without_waiting_with_and_without_colors(batch, crop):
    fields = there(batch).fields
    with Waits() as waits:
        augment_batch(fields, 32, crop.mean, crop.std)
        augment_batch({"views/32": fields["views/32"]}, 32, crop.mean, crop.std)
    assert waits.found == []


def test_what_waits_is_seen():
    x = torch.zeros(3, device=META)
    with Waits() as waits:
        torch.tensor([1.0], device=META)
        torch.zeros(3).to(META)
        x.copy_(torch.zeros(3))
        torch.zeros(3).to(META, non_blocking=True)
        for read in (x[0].item, x.tolist, x.nonzero):
            with pytest.raises((RuntimeError, NotImplementedError)):
                read()
    assert waits.found == ["tensor", "to", "copy_", "item", "tolist", "nonzero"]


def test_an_optimizer_of_torch_runs_as_one_kernel_on_a_gpu_where_nobody_chose():
    adamw = {"_target_": "torch.optim.AdamW", "fused": None, "foreach": None}
    assert on_device_arguments(adamw, torch.device("cuda")) == {"fused": True}
    assert on_device_arguments(adamw, CPU) == {}
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.ones(3)
    for name in ("AdamW", "SGD"):  # on a CPU: the one kernel heeds the flag of a broken step, so nobody need read it
        given = on_device_arguments({"_target_": f"torch.optim.{name}"}, torch.device("cuda"))
        optimizer = getattr(torch.optim, name)([parameter], lr=0.1, **given)
        assert optimizer._step_supports_amp_scaling
        optimizer.grad_scale, optimizer.found_inf = None, torch.ones(())
        optimizer.step()
        assert parameter.tolist() == [0, 0, 0]
    for chosen in ({"fused": False}, {"foreach": True}, {"differentiable": True}, {"_target_": "seer.optim.lars.LARS"}):
        assert on_device_arguments(adamw | chosen, torch.device("cuda")) == {}
