"""Sinkhorn, the SwAV loss and LARS beside others; ratios, not seconds.

    python benchmarks/losses_and_lars.py [part=sinkhorn|loss|lars|all] [seconds=4] [swav=FOLDER]

The others: "plain", written here from the published formulas; "lightly", where it is importable (`pip install lightly`, never
a dependency of ours); "swav", the published program's own `distributed_sinkhorn`, where `swav` names a checkout of it.

All parties run in one process on one thread, turn by turn; a ratio is the median over rounds of CPU time over ours, so
another load on the machine disturbs little. `seconds` is the time for each row. Extra memory is what the process held at
its peak beyond what it held before the call, in multiples of one score matrix.
"""

import ast
import statistics
import sys
import time
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seer.losses.sinkhorn import sinkhorn
from seer.losses.swav import swav_loss
from seer.optim.lars import LARS

try:
    from lightly.loss.swav_loss import SwaVLoss
    from lightly.loss.swav_loss import sinkhorn as lightly_sinkhorn
    from lightly.utils.lars import LARS as LightlyLARS
except ImportError:
    SwaVLoss = lightly_sinkhorn = LightlyLARS = None

EPSILON, ROUNDS, TEMPERATURE = 0.05, 10, 0.1


def whole_matrix(scores: Tensor) -> Tensor:
    """SwAV's routine from its description: the K x B matrix itself is brought to equal rows, then columns."""
    plan = torch.exp(scores / EPSILON).t()
    plan /= plan.sum()
    prototypes, samples = plan.shape
    for _ in range(ROUNDS):
        plan /= plan.sum(dim=1, keepdim=True)
        plan /= prototypes
        plan /= plan.sum(dim=0, keepdim=True)
        plan /= samples
    plan *= samples
    return plan.t()


def pair_by_pair(scores: Tensor, codes: Tensor) -> Tensor:
    """The loss as it is written: a log-softmax for every pair of an assign view and a predicting one."""
    terms = [
        -(codes[a] * torch.log_softmax(scores[p] / TEMPERATURE, dim=1)).sum(1).mean()
        for a in (0, 1)
        for p in range(len(scores))
        if p != a
    ]
    return torch.stack(terms).mean()


class TensorByTensor(torch.optim.Optimizer):
    """LARS as it is written: a loop with two norms and an `if` for each tensor."""

    def __init__(self, params, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                gradient, decay = p.grad, group["weight_decay"]
                weight_norm, gradient_norm = p.norm(), gradient.norm()
                if weight_norm != 0 and gradient_norm != 0:
                    ratio = 0.001 * weight_norm / (gradient_norm + decay * weight_norm + 1e-8)
                    gradient = (gradient + decay * p) * ratio
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
                buffer = self.state[p]["momentum_buffer"]
                buffer.mul_(group["momentum"]).add_(gradient)
                p.add_(buffer, alpha=-group["lr"])


def published_sinkhorn(checkout: str) -> Callable[[Tensor], Tensor]:
    """`distributed_sinkhorn` of the published SwAV, read from the user's own checkout; its all-reduce does nothing."""
    tree = ast.parse((Path(checkout) / "main_swav.py").read_text(encoding="utf-8"))
    name = "distributed_sinkhorn"
    node = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
    settings = types.SimpleNamespace(epsilon=EPSILON, world_size=1, sinkhorn_iterations=ROUNDS)
    names: dict[str, Any] = {"torch": torch, "args": settings, "dist": types.SimpleNamespace(all_reduce=lambda x: None)}
    exec(compile(ast.Module([node], []), "main_swav.py", "exec"), names)
    return names[name]


def compare(parties: Mapping[str, Callable[[], object]], seconds: float) -> tuple[float, dict[str, float], int]:
    """(median ms of "ours", how many times that each other party takes, rounds)."""
    times: dict[str, list[float]] = {name: [] for name in parties}
    end = time.monotonic() + seconds
    while len(times["ours"]) < 3 or time.monotonic() < end:
        for name, party in parties.items():
            start = time.process_time()
            party()
            times[name].append(time.process_time() - start)
    ratios = {
        name: statistics.median(t / mine for t, mine in zip(kept, times["ours"], strict=True))
        for name, kept in times.items()
        if name != "ours"
    }
    return 1e3 * statistics.median(times["ours"]), ratios, len(times["ours"])


def told(ratios: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {ratio:.2f}x" for name, ratio in ratios.items())


def extra(party: Callable[[], object]) -> int:
    """Bytes at the peak of a call beyond those before it (Linux)."""

    def held(name: str) -> int:
        with open("/proc/self/status", encoding="utf-8") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

    with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
        file.write("5")
    before = held("VmRSS")
    party()
    return held("VmHWM") - before


Rows = list[dict[str, float]]


def sinkhorn_rows(seconds: float, checkout: str | None) -> Rows:
    others: dict[str, Callable[[Tensor], Tensor]] = {"plain": whole_matrix}
    if lightly_sinkhorn:
        others["lightly"] = lambda s: lightly_sinkhorn(s, iterations=ROUNDS, epsilon=EPSILON)
    if checkout:
        others["swav"] = published_sinkhorn(checkout)
    found = []
    for prototypes in (3000, 16000):
        centers = nn.functional.normalize(torch.randn(prototypes, 128), dim=1)
        for samples in (512, 2048, 8192):
            noise = 0.12 * torch.randn(samples, 128)
            chosen = centers[torch.randint(prototypes, (samples,))]
            scores = nn.functional.normalize(chosen + noise, dim=1) @ centers.t()
            exact = whole_matrix(scores.double())
            difference = (sinkhorn(scores, epsilon=EPSILON, iterations=ROUNDS) - exact).abs()
            worst, each = difference.max().item(), difference.sum(1).max().item()
            del exact, difference
            memory = extra(lambda s=scores: sinkhorn(s, epsilon=EPSILON, iterations=ROUNDS)) / (4 * scores.numel())
            parties: dict[str, Callable[[], object]] = {
                "ours": lambda s=scores: sinkhorn(s, epsilon=EPSILON, iterations=ROUNDS)
            }
            parties |= {name: lambda f=f, s=scores: f(s) for name, f in others.items()}
            mine, ratios, rounds = compare(parties, seconds)
            found.append(ratios)
            print(
                f"sinkhorn K={prototypes:5} B={samples:4}: {mine:8.1f} ms, {told(ratios)} ({rounds} rounds), "
                f"extra {memory:.2f} score matrices, error {worst:.1e}, L1 a sample {each:.1e}",
                flush=True,
            )
    return found


def loss_rows(seconds: float, _: str | None) -> Rows:
    found = []
    for prototypes in (3000, 16000):
        leaf = (torch.rand(6, 256, prototypes) - 0.5).requires_grad_()
        leaves = [view.detach().clone().requires_grad_() for view in leaf]  # what others take
        codes = torch.softmax(4 * torch.randn(2, 256, prototypes), dim=-1)

        def ours(leaf=leaf, codes=codes) -> None:
            leaf.grad = None
            swav_loss(leaf, codes, temperature=TEMPERATURE).backward()

        def plain(leaf=leaf, codes=codes) -> None:
            leaf.grad = None
            pair_by_pair(leaf, codes).backward()

        parties: dict[str, Callable[[], object]] = {"ours": ours, "plain": plain}
        if SwaVLoss:
            whole = SwaVLoss(temperature=TEMPERATURE)

            def lightly(leaves=leaves, codes=codes, whole=whole) -> None:
                """Its own subloss for every assign view, put together as its forward does, with the same codes."""
                for view in leaves:
                    view.grad = None
                pairs = [(a, v) for a in (0, 1) for v in range(len(leaves)) if v != a]
                parts = [whole.subloss(leaves[v], codes[a]) for a, v in pairs]
                (torch.stack(parts).sum() / len(pairs)).backward()

            parties["lightly"] = lightly
        gradient = 4 * leaf.numel()  # everybody has to make it
        memory = {name: (extra(party) - gradient) / (4 * 256 * prototypes) for name, party in parties.items()}
        mine, ratios, rounds = compare(parties, seconds)
        found.append(ratios)
        kept = ", ".join(f"{name} {matrices:.1f}" for name, matrices in memory.items())
        print(
            f"loss with gradient K={prototypes:5} B=256 V=6: {mine:8.1f} ms, {told(ratios)} ({rounds} rounds), "
            f"extra score matrices: {kept}",
            flush=True,
        )
    return found


def lars_rows(seconds: float, _: str | None) -> Rows:
    from seer.models import zoo

    makers: dict[str, Any] = {"ours": LARS, "plain": TensorByTensor} | ({"lightly": LightlyLARS} if LightlyLARS else {})
    parties, count = {}, 0
    for name, make in makers.items():
        torch.manual_seed(0)
        parameters = list(zoo.build("regnety_16gf").parameters())
        for p in parameters:
            p.grad = torch.randn_like(p)
        count = len(parameters)
        # vectors without decay, which makes plain SGD of them in lightly: all of them are adapted in ours
        groups = [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 1e-5},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ]
        parties[name] = make(groups, lr=0.5, momentum=0.9, weight_decay=1e-5).step
    mine, ratios, rounds = compare(parties, seconds)
    print(f"LARS, {count} tensors of RegNetY-16GF: {mine:8.1f} ms, {told(ratios)} ({rounds} rounds)", flush=True)
    return [ratios]


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    seconds, part = float(words.get("seconds", 4)), words.get("part", "all")
    print(f"torch {torch.__version__}, lightly {'is used' if SwaVLoss else 'is not installed'}")
    for name, rows in (("sinkhorn", sinkhorn_rows), ("loss", loss_rows), ("lars", lars_rows)):
        if part in (name, "all"):
            found = rows(seconds, words.get("swav"))
            for other in found[0]:
                ratios = [row[other] for row in found]
                print(
                    f"{name}: {other} takes {min(ratios):.2f}x at the least, {statistics.median(ratios):.2f}x in the median"
                )


if __name__ == "__main__":
    main()
