"""Makes runs repeat to the last bit, also on a GPU, and measures what that costs.

On a CPU all that a run uses is deterministic by itself. On a GPU some kernels add up in the order in which threads arrive, and
cuDNN picks algorithms by trying them; then a run that was interrupted ends a little elsewhere than one that was not. With
the switch torch takes deterministic kernels only, and raises where it has none.
"""

import os
import time

import torch

from seer.core.protocols import Task
from seer.core.records import Batch
from seer.engine.precision import Precision


def use_deterministic(deterministic: bool, device: torch.device) -> None:
    """Switches deterministic algorithms on or off; call it before the first kernel of the process runs. Without
    it cuDNN tries algorithms for each shape and keeps the default_dtype."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for to be deterministic
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs a pass over every result, and helps nobody here
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = device.type == "cuda" and not deterministic


def cost(task: Task, batch: Batch, precision: Precision, device: torch.device, rounds: int = 3) -> float:
    """Returns how many times as long a forward and a backward pass take with the switch as without; it is on afterwards.

    batch: an example on the device. All ranks together, since they talk. State and gradients are as before.
    """
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    task.model.train()
    ratios = []
    for _ in range(rounds + 1):
        seconds = []
        for switch in (False, True):
            use_deterministic(switch, device)
            seconds.append(_seconds(task, batch, precision, device))
        ratios.append(seconds[1] / seconds[0])
    task.load_state_dict(before)
    return sorted(ratios[1:])[rounds // 2]  # the first round sets things up


def _seconds(task: Task, batch: Batch, precision: Precision, device: torch.device) -> float:
    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = now()
    with precision.autocast():
        loss = task.loss(batch).loss
    loss.backward()
    end = now()
    task.model.zero_grad(set_to_none=True)
    return end - start
