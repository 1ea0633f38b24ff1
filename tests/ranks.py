"""Starts several gloo ranks on one function: `run_ranks(function, 2, …)` calls `function(world, …)` in each and returns what each returned.

Surprising: when one rank fails, the others fail too, with "connection closed by peer", and may be heard first. So each
writes down when and of what it failed, and the first in time is the one that is told.

Ranks are forks of one process that has imported torch and seer, and done nothing else: imports are 3 to 4 s of each new
process. What a rank prints goes where that process was started to write.
"""

import datetime
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from seer.parallel.world import World

LIMIT = datetime.timedelta(seconds=300)  # that a rank waits for another in one collective
CPU = torch.device("cpu")
IMPORTED = [
    "torch.distributed.tensor",
    "torch.distributed.fsdp",
    "seer.cli.pretrain",
    "seer.cli.config",
    "seer.tasks.swav",
    "pytest",
]


def run_ranks(function: Callable[..., Any], ranks: int, *arguments: Any) -> list[Any]:
    """Returns what `function(world, *arguments)` returned on each rank: tensors and plain containers, as `torch.load` reads them.

    function is looked up by its name, so it stands at the top of a module. One rank runs in this process, without a group.
    Raises AssertionError with the traceback of the rank that failed first.
    """
    if ranks == 1:
        return [function(World(0, 1, 0, CPU), *arguments)]
    with tempfile.TemporaryDirectory(prefix="seer-ranks-") as folder:
        try:
            forked(_rank, ranks, ranks, folder, function, arguments)
        except (mp.ProcessExitedException, mp.ProcessRaisedException) as error:
            failed = sorted(Path(folder).glob("*.failed"), key=lambda path: int(path.read_text().partition("\n")[0]))
            if not failed:  # killed, or it could not be started
                raise AssertionError(f"of {ranks} ranks one ended and said nothing: {error}") from None
            said = failed[0].read_text().partition("\n")[2]
            raise AssertionError(f"of {ranks} ranks, rank {failed[0].stem} failed first ({error}):\n{said}") from None
        return [torch.load(Path(folder, f"{rank}.pt")) for rank in range(ranks)]


def forked(function: Callable[..., None], ranks: int, *arguments: Any) -> None:
    """Calls `function(rank, *arguments)` in as many forks of the process that has imported all; waits for their ends."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(IMPORTED)
    mp.start_processes(_begun, (dict(os.environ), function, arguments), nprocs=ranks, start_method="forkserver")


def _begun(rank: int, names: dict[str, str], function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.clear()
    os.environ.update(names)  # those of now, not of when the first test started ranks
    torch.set_num_threads(1)
    function(rank, *arguments)


def _rank(rank: int, ranks: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    status = 1
    try:
        meet = f"file://{folder}/meet"
        dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=ranks, timeout=LIMIT)
        side = dist.new_group(backend="gloo", timeout=LIMIT)
        found = function(World(rank, ranks, rank, CPU, dist.group.WORLD, side), *arguments)
        torch.save(found, f"{folder}/{rank}.pt")
        dist.barrier()
        status = 0
    except BaseException:
        text = f"{time.time_ns()}\n{traceback.format_exc()}"
        Path(folder, f"{rank}.writing").write_text(text)
        Path(folder, f"{rank}.writing").rename(Path(folder, f"{rank}.failed"))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # gloo's threads may abort while the interpreter unwinds; all is on disk
