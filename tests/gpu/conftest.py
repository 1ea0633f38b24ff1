"""What the tests on a GPU share. SEER_GPU_TESTS=cpu runs their equalities on a CPU, to see that they are sound."""

import os
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from seer.parallel.world import World

# torch reads it once in a process, at the first matrix product, which is long before the tests of whole runs ask for it
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "gpu":
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def device() -> torch.device:
    if os.environ.get("SEER_GPU_TESTS") == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda", 0)


@pytest.fixture(scope="session")
def one_rank(device, tmp_path_factory) -> Iterator[World]:
    """A world of one rank that talks: NCCL on a GPU."""
    meet = tmp_path_factory.mktemp("meet") / "file"
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{meet}", rank=0, world_size=1)
    yield World(0, 1, 0, device, dist.group.WORLD)
    dist.destroy_process_group()
