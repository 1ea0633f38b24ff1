"""What the network costs on a GPU: equalities, layouts, steps beside matmul rate and bandwidth, each layer beside its roofline.

    python benchmarks/gpu.py [output=gpu.json] [limit=230] [equalities=tests/gpu] [device=cuda] [models=regnety_16gf:64,regnety_128gf:16]

One prepared command (`make gpu`): every part has its seconds, the whole ends within `limit` of them, and what there was no
time for is told. Results go to one JSON file (output, else $OUT/gpu.json, else gpu.json) with the card's name, and as
tables to stdout. Without a GPU it says so and ends with 0; device=cpu runs it at toy size, which shows that the script is
sound and says nothing about speed. Exit status 1: an equality failed, or a step took over 1.15 times the planned memory.

ceilings     a bf16 product of 8192 x 8192 matrices on random numbers; a copy of 2 GiB, bytes read and written
layouts      a RegNet block forward and backward, NCHW beside channels_last, by group width and dtype, in turn
steps        whole SwAV steps, 2 x 224 + 4 x 96, LARS. "of matmul": multiply-adds of all views, three times for both passes,
             over the measured rate. "of bandwidth": the bytes below over the measured bandwidth, over the step's time
layers       the network's distinct layers alone, forward and backward, in the layout of the steps. The bound is the longer
             of FLOPs over rate and bytes over bandwidth; "share" is the bound over what was measured
bytes        each convolution and batch norm as a kernel of its own that reads and writes each tensor once (forward: input,
             weight, output; backward: both and the gradients of all), bf16; ReLU, squeeze-and-excitation and sums are free;
             LARS reads weight, gradient and momentum and writes two, float32. So a step may beat it only by fusing these
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seer.core.records import Batch
from seer.data.multicrop import MultiCrop
from seer.engine.precision import Precision
from seer.models import zoo
from seer.models.regnet import Block
from seer.optim.lars import LARS
from seer.parallel.memory import step_memory
from seer.parallel.world import World
from seer.parallel.wrap import parallelize
from seer.tasks import swav

OURS = {"output": "", "limit": "230", "equalities": "tests/gpu", "device": "cuda", "models": ""}
SHARES = {"equalities": 90, "layouts": 35, "steps": 70, "layers": 30}  # seconds of 230
GROUP_WIDTHS = (
    (8, 128),
    (16, 192),
    (24, 240),
    (48, 240),
    (112, 448),
    (232, 696),
    (264, 1056),
    (328, 1968),
)  # and channels
CROP = dict(scales=[[0.14, 1.0], [0.05, 0.14]], aspect=[0.75, 4 / 3], flip=0.5, jitter=0.8)
COLOR = dict(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, grayscale=0.2, blur=0.5, blur_sigma=[0.1, 2.0])
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
SWITCHES = ("auto", "none"), ("auto", "block"), ("NCHW", "none"), ("compiled", "none")  # of a step, and its recompute


class Budget:
    """Counts the seconds of the whole and of its parts. What would begin too late is noted instead."""

    def __init__(self, limit: float):
        self.started, self.limit, self.left_out = time.monotonic(), limit, []
        self.until = self.started + limit

    def part(self, name: str, left: float) -> None:
        """Begins a part. left: seconds that must remain for those behind it."""
        share = SHARES[name] * self.limit / 230
        self.until = min(time.monotonic() + share, self.started + self.limit - left * self.limit / 230)

    def allows(self, what: str) -> bool:
        if time.monotonic() < self.until:
            return True
        self.left_out.append(what)
        return False


def timed(action: Callable[[], object], device: torch.device, times: int) -> float:
    """Returns the median seconds of an action, after two to warm up."""
    seconds = []
    for _ in range(times + 2):
        _wait(device)
        start = time.perf_counter()
        action()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def ceilings(device: torch.device) -> dict[str, float]:
    """Measures operations a second of a large bf16 product, and bytes a second of a large copy."""
    toy = device.type == "cpu"
    side, numbers = (256, 2**20) if toy else (8192, 2**29)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(numbers, device=device)
    goal = torch.empty_like(source)
    return {
        "flops_per_s": 2 * side**3 / timed(lambda: a @ b, device, 10),
        "bytes_per_s": 2 * source.nbytes / timed(lambda: goal.copy_(source), device, 10),
    }


def equalities(path: str, device: torch.device, budget: Budget) -> dict[str, Any]:
    """Runs the tests that hold this device against a CPU, in a process of their own, until their seconds are over."""
    environment = dict(os.environ, **({"SEER_GPU_TESTS": "cpu"} if device.type == "cpu" else {}))
    command = [sys.executable, "-m", "pytest", path, "-m", "gpu", "-q", "-x", "--no-header", "-p", "no:cacheprovider"]
    if (seconds := budget.until - time.monotonic()) <= 0:
        budget.left_out.append("equalities: no time for them")
        return {"status": None, "words": ""}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment, check=False)
    except subprocess.TimeoutExpired as cut:
        budget.left_out.append(f"equalities: stopped after {seconds:.0f} s")
        text = cut.stdout or b""
        return {"status": None, "words": (text if isinstance(text, str) else text.decode())[-2000:]}
    return {"status": done.returncode, "words": done.stdout[-2000:] + done.stderr[-500:]}


def backward_too(module: nn.Module, x: torch.Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """Returns one pass forward and backward, gradients of input and weights among it."""
    x.requires_grad_()
    with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
        gradient = torch.randn_like(module(x))

    def run() -> None:
        with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
            out = module(x)
        torch.autograd.grad(out, [x, *module.parameters()], gradient)

    return run


def layouts(device: torch.device, budget: Budget) -> list[dict[str, Any]]:
    """Times a block of each group width in both layouts and dtypes."""
    toy, rows = device.type == "cpu", []
    batch, side, times = (1, 7, 1) if toy else (128, 28, 5)
    for group_width, width in GROUP_WIDTHS[: 2 if toy else None]:
        for dtype in (torch.bfloat16, torch.float16, torch.float32)[: 2 if toy else None]:
            if not budget.allows(f"layouts: group width {group_width}, {dtype}"):
                continue
            torch.manual_seed(0)
            ms = {}
            for name, layout in LAYOUTS.items():
                block = Block(width, width, stride=1, group_width=group_width, se_ratio=0.25).to(device)
                block.to(memory_format=layout)
                x = torch.randn(batch, width, side, side, device=device).to(memory_format=layout)
                ms[name] = 1e3 * timed(backward_too(block, x, dtype), device, times)
            faster = min(ms, key=lambda name: ms[name])
            row = {"group_width": group_width, "channels": width, "dtype": str(dtype)[6:], **ms}
            rows.append(row | {"faster": faster, "by": max(ms.values()) / ms[faster]})
    return rows


def distinct_layers(name: str, shapes: list[tuple[int, ...]]) -> Counter:
    """Counts (kind, arguments, input shape) of convolutions and batch norms of one forward pass of every crop size."""
    with torch.device("meta"):
        network = zoo.build(name)
    found: Counter = Counter()

    def note(module: nn.Module, given: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        shape = tuple(given[0].shape)
        if isinstance(module, nn.Conv2d):
            kind = (module.in_channels, module.out_channels, module.kernel_size[0], module.stride[0], module.groups)
            found["conv", kind, shape] += 1
        else:
            found["batch norm", (shape[1],), shape] += 1

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.register_forward_hook(note)
    with torch.no_grad():
        for shape in shapes:
            network(torch.empty(shape, device="meta"))
    return found


def layer_of(kind: str, numbers: tuple[int, ...]) -> nn.Module:
    if kind == "batch norm":
        return nn.BatchNorm2d(*numbers)
    wide, out, kernel, stride, groups = numbers
    return nn.Conv2d(wide, out, kernel, stride, kernel // 2, groups=groups, bias=False)


def cost(kind: str, numbers: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns FLOPs and bytes of a layer forward and backward in bf16; see the legend above."""
    batch, channels, height, width = shape
    read = batch * channels * height * width
    if kind == "batch norm":  # forward x, y; backward x, dy, dx
        return 0, 2 * 5 * read
    wide, out, kernel, stride, groups = numbers
    places = batch * -(-height // stride) * -(-width // stride)
    weights = out * wide // groups * kernel**2
    # forward x, w, y; backward x, w, dy, dx, dw
    return 6 * places * weights, 2 * (3 * read + 2 * places * out + 3 * weights)


def layers(name: str, shapes: list[tuple[int, ...]], device: torch.device, rates: dict, budget: Budget) -> list[dict]:
    """Times the layers alone, those with the longest bound first."""

    def bound(key: tuple) -> tuple[float, str]:
        flops, moved = cost(*key)
        by = {"matmul": flops / rates["flops_per_s"], "bandwidth": moved / rates["bytes_per_s"]}
        which = max(by, key=lambda one: by[one])
        return by[which], which

    found, rows = distinct_layers(name, shapes), []
    longest_first = sorted(found.items(), key=lambda item: -item[1] * bound(item[0])[0])
    for key, count in longest_first[: 6 if device.type == "cpu" else None]:
        if not budget.allows(f"layers of {name}: {key[0]} {key[1]} on {key[2]}"):
            continue
        kind, numbers, shape = key
        layer = layer_of(kind, numbers).to(device, memory_format=torch.channels_last)
        x = torch.randn(shape, device=device, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        seconds = timed(backward_too(layer, x, torch.bfloat16), device, 1 if device.type == "cpu" else 5)
        (least, which), (flops, moved) = bound(key), cost(*key)
        row = {"model": name, "layer": kind, "numbers": list(numbers), "input": list(shape), "times": count}
        row |= {"ms": 1e3 * seconds, "gflops": flops / 1e9, "mbytes": moved / 1e6, "bound": which}
        rows.append(row | {"share": least / seconds})
    return rows


def step_of(name: str, batch: int, switch: str, policy: str, device: torch.device) -> dict[str, Any]:
    """Times one kind of training step. Returns its seconds, peak memory and what was planned."""
    sizes, counts = ([32, 16], [2, 2]) if device.type == "cpu" else ([224, 96], [2, 4])
    crop = MultiCrop(sizes=sizes, counts=counts, **CROP, **COLOR, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    shapes = [(v * batch, 3, side, side) for v, side in zip(counts, sizes, strict=True)]
    torch.manual_seed(0)
    head = {"hidden": (16,), "prototypes": 12} if device.type == "cpu" else {"hidden": (2048,), "prototypes": 3000}
    task = swav.SwAVTask(zoo.build(name), crop, **head)
    planned = step_memory(task.model, shapes, torch.bfloat16, policy).peak
    world = World(0, 1, 0, device)
    task.model = parallelize(
        task.model, world, remat=policy, compiled=switch == "compiled", channels_last=switch != "NCHW"
    )
    parameters = [*task.backbone.parameters(), *task.head.parameters()]
    optimizer, precision = LARS(parameters, lr=0.3, weight_decay=1e-6), Precision(device, "bf16")
    images = Batch(
        {
            f"views/{s[-1]}": torch.randint(0, 256, s, dtype=torch.uint8, device=device).contiguous(
                memory_format=torch.channels_last
            )
            for s in shapes
        },
        [],
        0,
    )
    task.model.train()

    def step() -> None:
        with precision.autocast():
            output = task.loss(images)
        precision.backward(output.loss)
        precision.step(optimizer, output.loss)
        task.after_step(0)

    step()  # momentum is there from here on
    held = 0
    if device.type == "cuda":
        _wait(device)
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    seconds = timed(step, device, 8 if device.type == "cuda" else 1)
    peak = torch.cuda.max_memory_allocated() - held if device.type == "cuda" else 0
    return {"seconds": seconds, "peak_bytes": peak, "planned_bytes": planned, "shapes": shapes}


def steps(models: list[tuple[str, int]], device: torch.device, rates: dict, budget: Budget) -> list[dict[str, Any]]:
    """Times whole steps. The cheap switches of every network come before the first that is compiled."""
    rows = []
    cases = [(name, batch, *switch) for switch in SWITCHES for name, batch in models]
    for name, batch, switch, policy in cases if device.type == "cuda" else cases[:1]:
        if not budget.allows(f"steps: {name}, {switch}, recompute {policy}"):
            continue
        found = step_of(name, batch, switch, policy, device)
        shapes = found.pop("shapes")
        work = distinct_layers(name, shapes)
        flops = sum(count * cost(*key)[0] for key, count in work.items())
        with torch.device("meta"):
            parameters = sum(p.numel() for p in zoo.build(name).parameters())
        moved = sum(count * cost(*key)[1] for key, count in work.items()) + 5 * 4 * parameters
        seconds = found["seconds"]
        row = {"model": name, "batch": batch, "switch": switch, "recompute": policy, "images_per_s": batch / seconds}
        row |= {"of_matmul": flops / rates["flops_per_s"] / seconds, "flops": flops, "bytes": moved}
        rows.append(row | {"of_bandwidth": moved / rates["bytes_per_s"] / seconds, **found})
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def table(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}")
    if not rows:
        print("  nothing was measured")
        return
    shown = [list(rows[0])] + [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    widths = [max(len(row[i]) for row in shown) for i in range(len(shown[0]))]
    for row in shown:
        print("  " + "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)))


def given() -> dict[str, str]:
    words = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    if wrong := [word for word in sys.argv[1:] if "=" not in word or word.split("=")[0] not in OURS]:
        raise SystemExit(f"{' '.join(wrong)}: words are {', '.join(f'{k}=' for k in OURS)}")
    return OURS | words


def main() -> int:
    words = given()
    device = torch.device(words["device"])
    if device.type == "cuda" and not torch.cuda.is_available():
        print("No GPU here that torch can use, so nothing was measured.")
        return 0
    toy = device.type == "cpu"
    default = "regnety_200mf:2" if toy else "regnety_16gf:64,regnety_128gf:16"
    models = [(one.split(":")[0], int(one.split(":")[1])) for one in (words["models"] or default).split(",")]
    card = "CPU" if toy else torch.cuda.get_device_name(device)
    budget = Budget(float(words["limit"]))
    report: dict[str, Any] = {"card": card, "torch": torch.__version__, "toy": toy}
    report["ceilings"] = rates = ceilings(device)
    sizes = [(2, 32), (2, 16)] if toy else [(2, 224), (4, 96)]
    budget.part("equalities", 140)
    report["equalities"] = equalities(words["equalities"], device, budget)
    budget.part("steps", 70)
    report["steps"] = steps(models, device, rates, budget)
    budget.part("layouts", 30)
    report["layouts"] = layouts(device, budget)
    budget.part("layers", 5)
    report["layers"] = []
    for name, batch in models:
        shapes = [(views * batch, 3, side, side) for views, side in sizes]
        report["layers"] += layers(name, shapes, device, rates, budget)
    report |= {"left_out": budget.left_out, "seconds": time.monotonic() - budget.started}
    path = Path(words["output"] or Path(os.environ.get("OUT", ".")) / "gpu.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1))
    return tell(report, path)


def tell(report: dict[str, Any], path: Path) -> int:
    """Prints the tables. Returns the exit status."""
    rates, equal = report["ceilings"], report["equalities"]
    print(f"{report['card']}, torch {report['torch']}, {report['seconds']:.0f} s" + ", toy size" * report["toy"])
    print(f"bf16 matmul {rates['flops_per_s'] / 1e12:.4g} TFLOP/s, copy {rates['bytes_per_s'] / 1e12:.4g} TB/s")
    for part in ("layouts", "steps"):
        table(part, report[part])
    table("layers, longest bounds first (all are in the file)", report["layers"][:30])
    over = [row for row in report["steps"] if row["switch"] != "compiled"]
    over = [row for row in over if row["peak_bytes"] > 1.15 * row["planned_bytes"]]
    print(f"\nequalities: {'stopped' if equal['status'] is None else 'status ' + str(equal['status'])}")
    if equal["status"] != 0:
        print(equal["words"])
    for row in over:
        print(f"{row['model']}, {row['switch']}: peak memory over 1.15 times what was planned")
    left_out = Counter(what.split(":")[0] for what in report["left_out"])
    for what, times in left_out.items():
        print(
            f"not measured for want of time: {what}" + (f", {times} of them (named in the file)" if times > 1 else "")
        )
    print(f"all figures: {path}")
    return 1 if over or equal["status"] not in (0, None) else 0


if __name__ == "__main__":
    sys.exit(main())
