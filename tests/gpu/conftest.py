"""What the tests on a GPU share. SEER_GPU_TESTS=cpu runs their equalities on a CPU, to see that they are sound.

The table of speeds takes what is left of SEER_GPU_BUDGET_S (540) seconds since the start; rows beyond it are "not measured".
"""

import os
import time
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from seer.parallel.world import World

STARTED = time.monotonic()
# torch reads it once in a process, at the first matrix product, which is long before the tests of whole runs ask for it
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
ROWS: list[tuple[str, ...]] = []  # of the table that is printed at the end


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


@pytest.fixture
def left_s() -> float:
    """Seconds that are left of the budget."""
    return float(os.environ.get("SEER_GPU_BUDGET_S", "540")) - (time.monotonic() - STARTED)


@pytest.fixture(scope="session")
def table() -> list[tuple[str, ...]]:
    return ROWS


def pytest_terminal_summary(terminalreporter):
    if ROWS:
        name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"
        terminalreporter.section(f"speed and memory on {name}, torch {torch.__version__}")
        widths = [max(len(row[i]) for row in ROWS) for i in range(len(ROWS[0]))]
        for row in ROWS:
            terminalreporter.write_line("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)))
