"""What `seer plan parallel.device=cpu` says beside the resident memory of a real training process.

    python benchmarks/plan.py [repeats=1] [malloc=default|pages] ["words of a configuration" ...]

Each configuration is run by `seer pretrain` on drawn images, three steps in a process of its own with the run's own allocator.
malloc=pages takes every block of 128 KB and more straight from the system: what is then left between planned and measured is not
the allocator's. On Linux, where /proc tells the peak.

measured = the largest VmHWM of steps 2 and 3, less file pages and shared pages at their end (code of libraries; batches), less
anonymous memory just before the first step (imports, the program, what it has read), plus the weights, which were there by
then, plus the whole ring of batches, of which three steps touch a part. The reader process has memory of its own, not counted.
"""

import ctypes
import json
import subprocess
import sys
import tempfile
from pathlib import Path

FIELD = (
    "model=regnety_400mf augment.sizes=[96,48] batch=32",
    "model=regnety_400mf augment.sizes=[96,48] batch=32 parallel.remat=block",
    "model=regnety_1_6gf augment.sizes=[128,64] batch=8",
    "model=regnety_200mf augment.sizes=[160,96] batch=8 parallel.remat=stage",
)
MORE = (
    "model=regnety_400mf augment.sizes=[96,48] batch=32 precision=bf16",
    "model=regnety_200mf augment.sizes=[96,48] batch=32 task.queue=64 task.prototypes=8000",
    "model=regnety_400mf augment.sizes=[96,48] batch=32 optim=adamw parallel.remat=selective",
    "model=regnety_200mf augment.sizes=[96,48] batch=16 task.heads=3",
)
# the shares in `seer/parallel/allocator.py` were fitted to those above; these had no part in it
HELD_OUT = (
    "model=regnety_200mf augment.sizes=[96,48] batch=24 parallel.remat=block",
    "model=regnety_1_6gf augment.sizes=[96,48] batch=8 parallel.remat=block",
    "model=regnety_400mf augment.sizes=[128,64] batch=16 parallel.remat=stage",
    "model=regnety_800mf augment.sizes=[96,48] batch=16 parallel.remat=selective",
    "model=regnety_800mf augment.sizes=[128,96] batch=8",
    "model=regnety_200mf augment.sizes=[224,96] batch=8 optim=adamw",
    "model=regnety_400mf augment.sizes=[96,48] batch=16 precision=bf16 parallel.remat=block",
)
RUN = ("data=drawn", "data.drawn=64", "data.drawn_test=0", "steps=3", "every.evaluate=0", "every.checkpoint=0")
RUN += ("log.tensorboard=false", "parallel.device=cpu")


def held() -> dict[str, int]:
    """Returns bytes of this process: VmHWM, RssAnon, RssFile, RssShmem."""
    lines = (line.split() for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
    return {words[0][:-1]: int(words[1]) * 1024 for words in lines if words[0].startswith(("VmHWM", "Rss"))}


def one(words: list[str]) -> None:
    from seer.cli import config, pretrain
    from seer.data.loading import reader_process as process
    from seer.tasks.swav import SwAVTask

    ready, peaks, facts = [], [], {}
    before, after, start = SwAVTask.before_step, SwAVTask.after_step, process.ReaderProcess._start

    def before_step(task: SwAVTask, step: int) -> None:
        if not ready:
            ready.append(held()["RssAnon"])
            facts["weights"] = sum(p.numel() * p.itemsize for p in task.model.parameters())
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
        before(task, step)

    def after_step(task: SwAVTask, step: int) -> None:
        after(task, step)
        now = held()
        peaks.append(now["VmHWM"] - now["RssFile"] - now["RssShmem"])

    def started(reader: process.ReaderProcess) -> None:
        facts["ring"] = reader.blocks * reader.layout.bytes
        start(reader)

    SwAVTask.before_step, SwAVTask.after_step = before_step, after_step
    process.ReaderProcess._start = started
    with tempfile.TemporaryDirectory() as folder:
        pretrain.run(config.read("pretrain", [*words, *RUN, f"output={folder}/run"]), [])
    print(json.dumps({"steps": [p - ready[0] + facts["weights"] + facts.get("ring", 0) for p in peaks], **facts}))


def planned(words: list[str]) -> dict:
    """Returns the JSON line of `seer plan` for a CPU."""
    command = [sys.executable, "-m", "seer", "plan", *words, "gpus=1", "parallel.device=cpu"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(words: list[str], malloc: str = "default") -> int:
    """Returns the peak of steps 2 and 3, in bytes."""
    command = [sys.executable, __file__, f"one={malloc}", *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return max(json.loads(done.stdout.splitlines()[-1])["steps"][1:])


def main() -> None:
    given = sys.argv[1:]
    if given and given[0].startswith("one="):
        if given[0] == "one=pages":
            ctypes.CDLL(None).mallopt(-3, 128 << 10)  # M_MMAP_THRESHOLD
        one(given[1:])
        return
    options = dict(word.split("=", 1) for word in given if word.startswith(("repeats=", "malloc=")))
    lines = [word for word in given if not word.startswith(("repeats=", "malloc="))] or [*FIELD, *MORE, *HELD_OUT]
    for line in lines:
        plan = planned(line.split())
        for _ in range(int(options.get("repeats", 1))):
            peak = measured(line.split(), options.get("malloc", "default")) / 1e9
            print(f"planned {plan['sum']:.2f} measured {peak:.3f} ratio {plan['sum'] / peak:.3f}  {line}", flush=True)


if __name__ == "__main__":
    main()
