"""Sinkhorn, the SwAV loss and LARS beside plain versions written from their published formulas; ratios, not seconds.

    python benchmarks/losses_and_lars.py [part=sinkhorn|loss|lars|all] [seconds=4]

All parties run in one process on one thread, turn by turn, and each ratio is that of the medians of CPU time; so another
load on the machine disturbs little. `seconds` is the time for each row. Extra memory is what the process held at its peak
beyond what it held before the call, in multiples of one score matrix.
"""

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from seer.losses.sinkhorn import sinkhorn
from seer.losses.swav import swav_loss
from seer.optim.lars import LARS

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


def compare(ours: Callable[[], object], plain: Callable[[], object], seconds: float) -> tuple[float, float, int]:
    """(median ms of ours, how many times that the plain one takes, rounds)."""
    times: tuple[list[float], list[float]] = ([], [])
    end = time.monotonic() + seconds
    while len(times[0]) < 3 or time.monotonic() < end:
        for kept, party in zip(times, (ours, plain), strict=True):
            start = time.process_time()
            party()
            kept.append(time.process_time() - start)
    mine, other = map(statistics.median, times)
    return 1e3 * mine, other / mine, len(times[0])


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


def sinkhorn_rows(seconds: float) -> list[float]:
    ratios = []
    for prototypes in (3000, 16000):
        centres = nn.functional.normalize(torch.randn(prototypes, 128), dim=1)
        for samples in (512, 2048, 8192):
            noise = 0.12 * torch.randn(samples, 128)
            chosen = centres[torch.randint(prototypes, (samples,))]
            scores = nn.functional.normalize(chosen + noise, dim=1) @ centres.t()
            exact = whole_matrix(scores.double())
            difference = (sinkhorn(scores, epsilon=EPSILON, iterations=ROUNDS) - exact).abs()
            worst, each = difference.max().item(), difference.sum(1).max().item()
            del exact, difference
            memory = extra(lambda s=scores: sinkhorn(s, epsilon=EPSILON, iterations=ROUNDS)) / (4 * scores.numel())
            mine, ratio, rounds = compare(
                lambda s=scores: sinkhorn(s, epsilon=EPSILON, iterations=ROUNDS),
                lambda s=scores: whole_matrix(s),
                seconds,
            )
            ratios.append(ratio)
            print(
                f"sinkhorn K={prototypes:5} B={samples:4}: {mine:8.1f} ms, {ratio:.2f}x ({rounds} rounds), "
                f"extra {memory:.2f} score matrices, error {worst:.1e}, L1 a sample {each:.1e}",
                flush=True,
            )
    return ratios


def loss_rows(seconds: float) -> list[float]:
    ratios = []
    for prototypes in (3000, 16000):
        scores = (torch.rand(6, 256, prototypes) - 0.5).requires_grad_()
        codes = torch.softmax(4 * torch.randn(2, 256, prototypes), dim=-1)

        def run(loss: Callable[[], Tensor], scores: Tensor = scores) -> None:
            scores.grad = None
            loss().backward()

        def ours(scores=scores, codes=codes) -> None:
            run(lambda: swav_loss(scores, codes, temperature=TEMPERATURE))

        def plain(scores=scores, codes=codes) -> None:
            run(lambda: pair_by_pair(scores, codes))

        gradient = 4 * scores.numel()  # both have to make it
        memory = [(extra(party) - gradient) / (4 * 256 * prototypes) for party in (ours, plain)]
        mine, ratio, rounds = compare(ours, plain, seconds)
        ratios.append(ratio)
        print(
            f"loss with gradient K={prototypes:5} B=256 V=6: {mine:8.1f} ms, {ratio:.2f}x ({rounds} rounds), "
            f"extra {memory[0]:.1f} score matrices, plain {memory[1]:.1f}",
            flush=True,
        )
    return ratios


def lars_rows(seconds: float) -> list[float]:
    from seer.models import zoo

    parties = []
    for make in (LARS, TensorByTensor):
        torch.manual_seed(0)
        parameters = list(zoo.build("regnety_16gf").parameters())
        for p in parameters:
            p.grad = torch.randn_like(p)
        parties.append(make(parameters, lr=0.5, momentum=0.9, weight_decay=1e-5))  # type: ignore[operator]
    count = len(parties[0].param_groups[0]["params"])
    mine, ratio, rounds = compare(parties[0].step, parties[1].step, seconds)
    print(f"LARS, {count} tensors of RegNetY-16GF: {mine:8.1f} ms, {ratio:.2f}x ({rounds} rounds)", flush=True)
    return [ratio]


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    seconds, part = float(words.get("seconds", 4)), words.get("part", "all")
    for name, rows in (("sinkhorn", sinkhorn_rows), ("loss", loss_rows), ("lars", lars_rows)):
        if part in (name, "all"):
            ratios = rows(seconds)
            print(
                f"{name}: plain takes {min(ratios):.2f}x at the least, {statistics.median(ratios):.2f}x in the median"
            )


if __name__ == "__main__":
    main()
