"""Images a second, share of the measured bf16 matmul rate, and peak memory of whole SwAV steps; the table is printed at the end.

SwAV at 2 x 224 + 4 x 96, RegNetY-16GF and 128GF, bf16, LARS, eager and compiled, with and without recompute. Work of a step: the
multiply-adds of all views by their area, three times for forward and backward (recompute is no work), two operations each.
"""

import time
from collections.abc import Callable

import pytest
import torch

from seer.core.records import Batch
from seer.data.multicrop import MultiCrop
from seer.engine.precision import Precision
from seer.models import zoo
from seer.optim.lars import LARS
from seer.parallel.memory import step_memory
from seer.parallel.world import World
from seer.parallel.wrap import parallelize
from seer.tasks import swav

# multiply-adds of one 224 x 224 view, in thousand millions (docs/zoo.md)
GMACS = {"regnety_16gf": 15.91, "regnety_128gf": 127.52}
CROP = dict(
    sizes=[224, 96], counts=[2, 4], scales=[[0.14, 1.0], [0.05, 0.14]], aspect=[0.75, 4 / 3], flip=0.5, jitter=0.8
)
COLOR = dict(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, grayscale=0.2, blur=0.5, blur_sigma=[0.1, 2.0])
CASES = [  # the last figure: seconds it may take, a guess; what no longer fits into the budget is not begun
    ("regnety_16gf", 64, False, "none", 25),
    ("regnety_16gf", 64, False, "block", 25),
    ("regnety_16gf", 64, True, "none", 90),
    ("regnety_128gf", 16, False, "none", 25),
    ("regnety_128gf", 16, False, "block", 25),
    ("regnety_128gf", 16, False, "selective", 25),
    ("regnety_16gf", 64, True, "block", 90),
    ("regnety_128gf", 16, True, "none", 150),
]
HEADER = ("network", "batch", "compiled", "recompute", "images/s", "of bf16 matmul", "GB beyond weights", "planned")


def matmul_rate(device: torch.device) -> float:
    """Operations a second of a large bf16 product, the median of ten."""
    side = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / timed(lambda: a @ b, device, 10)


def timed(action: Callable[[], object], device: torch.device, times: int) -> float:
    """Median seconds of an action, after two to warm up."""
    seconds = []
    for _ in range(times + 2):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds[2:])[times // 2]


@pytest.fixture(scope="module")
def rate(device) -> float:
    return matmul_rate(device)


@pytest.mark.parametrize(("name", "batch", "compiled", "policy", "takes_s"), CASES)
def test_a_step_and_its_memory(device, table, rate, left_s, monkeypatch, name, batch, compiled, policy, takes_s):
    if not table:
        table.append(HEADER)
    if device.type == "cpu":
        name, batch = "regnety_400mf", 1
    case = (name, str(batch), str(compiled), policy)
    if left_s < takes_s:
        table.append((*case, "not measured", "", "", ""))
        pytest.skip(f"{left_s:.0f} s are left, it may take {takes_s}")
    crop = MultiCrop(**CROP, **COLOR, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    torch.manual_seed(0)
    task = swav.SwAVTask(zoo.build(name), crop, hidden=(2048,), prototypes=3000)
    shapes = [(v * batch, 3, side, side) for v, side in zip(crop.counts, crop.sizes, strict=True)]
    expected = step_memory(task.model, shapes, torch.bfloat16, policy)
    task.model = parallelize(task.model, World(0, 1, 0, device), remat=policy, compiled=compiled)
    optimizer = LARS([*task.backbone.parameters(), *task.head.parameters()], lr=0.3, weight_decay=1e-6)
    precision = Precision(device, "bf16")
    views = [torch.randn(*s, device=device).contiguous(memory_format=torch.channels_last) for s in shapes]
    monkeypatch.setattr(swav, "finish", lambda fields, size, *_: fields[f"views/{size}"])  # colors are timed elsewhere
    images = Batch({f"views/{x.shape[-1]}": x for x in views}, [], 0)
    task.model.train()
    if device.type == "cuda":
        torch.cuda.empty_cache()

    def step() -> None:
        with precision.autocast():
            output = task.loss(images)
        precision.backward(output.loss)
        precision.step(optimizer, output.loss)
        task.after_step(0)

    step()  # momentum is there from here on
    held = 0
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    seconds = timed(step, device, 10 if device.type == "cuda" else 1)
    work = (
        6
        * 1e9
        * GMACS.get(name, 0.4)
        * batch
        * sum(v * side**2 for v, side in zip(crop.counts, crop.sizes, strict=True))
        / 224**2
    )
    peak = torch.cuda.max_memory_allocated() - held if device.type == "cuda" else 0
    shown = f"{batch / seconds:.1f}", f"{work / seconds / rate:.1%}", f"{peak / 1e9:.2f}", f"{expected.peak / 1e9:.2f}"
    table.append((*case, *shown))
    assert seconds > 0
    if device.type == "cuda" and not compiled:
        assert peak <= 1.15 * expected.peak  # workspaces of convolutions come on top
