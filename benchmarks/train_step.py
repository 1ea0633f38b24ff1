"""One SwAV step on a CPU: crops of one size in one forward pass, bf16, channels_last, compiled, beside a crop-by-crop float32 loop.

    python benchmarks/train_step.py [model=regnety_400mf] [batch=32] [steps=8] [rounds=3] [parties=loop,ours,compiled]

The step counts: forward, Sinkhorn, loss, backward, LARS; colors, which belong to the images, are made before. 2 x 96 + 4 x 48,
3000 prototypes, one thread, each party in a process of its own, in turn, medians of CPU time after two steps. "loop" is the
usual SwAV loop: each crop through the network alone, float32, NCHW. Every party sees the same built-in images; with steps=100
the mean loss of the last twenty is what the others are held against.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from seer.core.records import Batch
from seer.data import synthetic as sample
from seer.data.augment import augment_batch
from seer.data.loading.loader import Loader
from seer.data.loading.reader import Reader
from seer.data.multicrop import MultiCrop
from seer.data.order import Plan
from seer.data.shards.open import open_shards
from seer.data.shards.writer import write_shards
from seer.engine.precision import Precision, default_dtype
from seer.models import zoo
from seer.optim.lars import LARS
from seer.parallel.world import World
from seer.parallel.wrap import parallelize
from seer.tasks import swav
from seer.tasks.swav import SwAVTask

CPU = torch.device("cpu")
CROP = dict(
    sizes=[96, 48], counts=[2, 4], scales=[[0.14, 1.0], [0.05, 0.14]], aspect=[0.75, 4 / 3], flip=0.5, jitter=0.8
)
COLOR = dict(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, grayscale=0.2, blur=0.5, blur_sigma=[0.1, 2.0])
PARTIES = {  # dtype, channels_last, compiled
    "loop": ("fp32", False, False),
    "fp32": ("fp32", False, False),
    "ours": ("bf16", True, False),
    "compiled": ("bf16", True, True),
}


class CropByCrop(nn.Module):
    """Stands for the model of a task: every view is a forward pass of its own."""

    def __init__(self, backbone: nn.Module, head: nn.Module, views: list[int]):
        super().__init__()
        self.backbone, self.head, self.views = backbone, head, views

    def forward(self, crops: list[Tensor]) -> tuple[Tensor, Tensor]:
        each = [x.contiguous() for joined, v in zip(crops, self.views, strict=True) for x in joined.chunk(v)]
        embeddings, scores = zip(*[self.head(self.backbone(x)) for x in each], strict=True)
        return torch.cat(embeddings), torch.cat(scores)


def colored(batch: Batch, crop: MultiCrop) -> Batch:
    views = {f"views/{size}": augment_batch(batch.fields, size, crop.mean, crop.std) for size in crop.sizes}
    return dataclasses.replace(batch, fields=views)


def one(party: str, model: str, batch: int, steps: int) -> None:
    dtype, channels_last, compiled = PARTIES[party]
    crop = MultiCrop(**CROP, **COLOR, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    with tempfile.TemporaryDirectory() as folder:
        write_shards(sample.samples(1000, 0), Path(folder), total=1000, per_shard=1000)
        shards = open_shards(folder)
        plan = Plan([len(s) for s in shards], seed=1, lanes=1)
        loader = Loader(Reader(shards, plan, 1), crop, batch=batch, threads=0)
        with closing(loader.batches(0)) as stream:
            batches = [colored(b, crop) for b in islice(stream, steps + 2)]
    swav.augment_batch = lambda fields, size, *_: fields[f"views/{size}"]  # type: ignore[assignment]
    torch.manual_seed(0)
    task = SwAVTask(zoo.build(model), crop)
    if party == "loop":
        task.model = CropByCrop(task.backbone, task.head, CROP["counts"])
    else:
        world = World(0, 1, 0, CPU)
        task.model = parallelize(task.model, world, channels_last=channels_last, compiled=compiled)
    parameters = [*task.backbone.parameters(), *task.head.parameters()]
    optimizer, precision = LARS(parameters, lr=0.3 * batch / 256, weight_decay=1e-6), Precision(CPU, dtype)
    task.model.train()
    times, losses = [], []
    for step, images in enumerate(batches):
        start = time.process_time()
        task.before_step(step)
        with precision.autocast():
            output = task.loss(images)
        precision.backward(output.loss)
        precision.step(optimizer, output.loss)
        task.after_step(step)
        losses.append(output.loss.item())
        times.append(time.process_time() - start)
    print(json.dumps({"seconds": times[2:], "before": sum(times[:2]), "losses": losses}))


def main() -> None:
    torch.set_num_threads(1)
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    given = {"model": "regnety_400mf", "batch": "32", "steps": "8", "rounds": "3"} | words
    if "one" in words:
        one(words["one"], given["model"], int(given["batch"]), int(given["steps"]))
        return
    parties = given.get("parties", "loop,ours,compiled").split(",")
    found: dict[str, list[dict]] = {party: [] for party in parties}
    for _ in range(int(given["rounds"])):
        for party in parties:
            asked = [f"{k}={given[k]}" for k in ("model", "batch", "steps")]
            command = [sys.executable, __file__, f"one={party}", *asked]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[party].append(json.loads(done.stdout.strip().splitlines()[-1]))
    print(
        f"{given['model']}, batch {given['batch']}, 2 x 96 + 4 x 48, {given['rounds']} rounds of {given['steps']} steps, one thread, "
        + torch.backends.cpu.get_cpu_capability()
        + (
            ""
            if default_dtype(CPU) == "bf16"
            else " without bfloat16, which is emulated: say nothing of bf16 by this machine"
        )
    )
    first = [statistics.median(run["seconds"]) for run in found[parties[0]]]
    reference = statistics.mean(found[parties[0]][0]["losses"][-20:])
    for party in parties:
        each = [statistics.median(run["seconds"]) for run in found[party]]
        ratio = statistics.median(a / b for a, b in zip(first, each, strict=True))
        loss = statistics.mean(found[party][0]["losses"][-20:])
        print(
            f"{party:9} {statistics.median(each):6.2f} s a step, {ratio:5.2f}x; first two steps {found[party][-1]['before']:5.1f} s; "
            f"mean loss of the last 20 steps {loss:.4f} ({100 * (loss / reference - 1):+.2f} %)"
        )


if __name__ == "__main__":
    main()
