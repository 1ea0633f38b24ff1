"""What recompute costs and saves: peak memory above the weights and time of a forward and backward pass, beside none.

    python benchmarks/recompute.py [model=regnety_16gf] [side=224] [batch=8] [steps=3] [policies=none,stage,block,selective]

float32, channels_last, one thread; each policy in a process of its own, three rounds in turn, medians of the ratios of CPU time.
Gradients count, since every step makes them. On Linux, where /proc tells the peak.
"""

import json
import statistics
import subprocess
import sys
import time

import torch

from seer.models import zoo
from seer.parallel.remat import remat


def held(name: str) -> int:
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def one(policy: str, model: str, side: int, batch: int, steps: int) -> None:
    torch.manual_seed(0)
    network = remat(zoo.build(model).train().to(memory_format=torch.channels_last), policy)
    x = torch.randn(batch, 3, side, side).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        network.zero_grad(set_to_none=True)
        network(x).square().mean().backward()

    network(x[:1, :, :64, :64]).sum().backward()  # what libraries set up once
    network.zero_grad(set_to_none=True)
    before = held("VmRSS")
    with open("/proc/self/clear_refs", "w", encoding="ascii") as marks:
        marks.write("5")  # forget the peak so far
    times = []
    for _ in range(steps):
        start = time.process_time()
        step()
        times.append(time.process_time() - start)
    print(json.dumps({"seconds": times, "extra": held("VmHWM") - before}))


def main() -> None:
    torch.set_num_threads(1)
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    given = {"model": "regnety_16gf", "side": "224", "batch": "8", "steps": "3"} | words
    if "one" in words:
        one(words["one"], given["model"], int(given["side"]), int(given["batch"]), int(given["steps"]))
        return
    policies = given.get("policies", "none,stage,block,selective").split(",")
    found: dict[str, list[dict]] = {policy: [] for policy in policies}
    for _ in range(3):
        for policy in policies:
            command = [
                sys.executable,
                __file__,
                f"one={policy}",
                *(f"{k}={v}" for k, v in given.items() if k != "policies"),
            ]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[policy].append(json.loads(done.stdout))
            print(policy, found[policy][-1], file=sys.stderr, flush=True)
    for policy, rows in found.items():
        plain = found[policies[0]]
        memory = statistics.median(r["extra"] / p["extra"] for r, p in zip(rows, plain, strict=True))
        slower = statistics.median(
            statistics.median(r["seconds"]) / statistics.median(p["seconds"]) for r, p in zip(rows, plain, strict=True)
        )
        peak = statistics.median(r["extra"] for r in rows) / 1e9
        print(
            f"{given['model']} {given['batch']}x{given['side']}: {policy:10} {peak:5.2f} GB, {memory:.2f}x; time {slower:.2f}x"
        )


if __name__ == "__main__":
    main()
