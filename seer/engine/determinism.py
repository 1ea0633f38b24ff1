"""The same numbers every time, also on a GPU: what that needs, and what it costs here.

On a CPU all that a run uses is deterministic by itself. On a GPU some kernels add up in the order in which threads arrive, and
cuDNN picks algorithms by trying them; then a run that was interrupted ends a little elsewhere than one that was not. With
the switch torch takes deterministic kernels only, and raises where it has none.
"""

import os
import time
from collections.abc import Sequence

import torch
from torch import nn


def use_deterministic(wanted: bool, device: torch.device) -> None:
    """Before the first kernel of the process runs. Without it cuDNN tries algorithms for each shape and keeps the quickest."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for to be deterministic
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs a pass over every result, and helps nobody here
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not wanted


def cost(model: nn.Module, shapes: Sequence[Sequence[int]], device: torch.device, rounds: int = 3) -> float:
    """How many times as long a forward and a backward pass take with the switch as without; it is on afterwards.

    shapes: [v*B, 3, S, S] of each resolution. All ranks together, since they talk. Gradients and statistics are as before.
    """
    generator = torch.Generator(device).manual_seed(0)
    crops = [torch.randn(*shape, generator=generator, device=device) for shape in shapes]
    crops = [x.contiguous(memory_format=torch.channels_last) for x in crops]
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    ratios = []
    for _ in range(rounds + 1):
        seconds = []
        for switch in (False, True):
            use_deterministic(switch, device)
            seconds.append(_seconds(model, crops, device))
        ratios.append(seconds[1] / seconds[0])
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])
    return sorted(ratios[1:])[rounds // 2]  # the first round sets things up


def _seconds(model: nn.Module, crops: list[torch.Tensor], device: torch.device) -> float:
    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = now()
    model(crops)[1].square().mean().backward()
    end = now()
    model.zero_grad(set_to_none=True)
    return end - start
