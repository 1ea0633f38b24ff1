"""What tests of checkpoints share: a small state, ways to look at it, and damage."""

import resource
from contextlib import contextmanager
from pathlib import Path

import torch

from seer.parallel.world import World

ALONE = World(0, 1, 0, torch.device("cpu"))
FACTS = {"data": "abc", "batch": 64}
TENSORS = "shard-00001-model-00001-of-00001.safetensors"


def state(step: int, size: int = 100) -> dict:
    parameter = torch.nn.Parameter(torch.full((size,), float(step)))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    return {
        "task": {"backbone.w": parameter.detach(), "backbone.bn.num_batches_tracked": torch.tensor(step)},
        "optimizer": optimizer.state_dict(),
        "precision": {},
    }


def same(a, b) -> bool:
    if torch.is_tensor(a):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@contextmanager
def full_disk(most: int):
    """No file of this process may grow beyond so many bytes: writes fail as on a full disk (File too large)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
