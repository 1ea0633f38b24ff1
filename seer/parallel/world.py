"""Says who and where this process is: rank, size, device. No other file creates process groups.

One process needs no rendezvous and gets no group; torchrun or srun tell which rank it is (`core.launcher`), and then gloo
speaks for the CPU and NCCL for CUDA.
"""

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from seer.core import launcher
from seer.core.errors import RequestError
from seer.core.log import log
from seer.core.signals import listener
from seer.parallel.heartbeat import Heartbeat


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    local_rank: int
    device: torch.device
    group: dist.ProcessGroup | None = None  # all ranks; None for one process
    side: dist.ProcessGroup | None = None  # the same ranks over gloo, for the thread of a checkpoint alone
    watch: Heartbeat | None = None

    def barrier(self) -> None:
        if self.group is not None:
            dist.barrier(self.group)

    def mesh(self) -> DeviceMesh:
        """Returns all ranks in one row, to shard over. Only where there is a group."""
        assert self.group is not None
        return DeviceMesh.from_group(self.group, self.device.type)

    def set_phase(self, step: int, phase: str) -> None:
        """Notes what this rank is at: said of it should it keep the others waiting, or be lost."""
        if self.watch is not None:
            self.watch.set_phase(step, phase)


@contextmanager
def open_world(device: str = "auto", timeout_s: float = 600) -> Iterator[World]:
    """Opens this process's world, as a context. device: auto, cpu or cuda. timeout_s: how long a collective
    waits for a peer.

    Raises RequestError when cuda is asked for and absent, and LostPeer for what goes wrong because of another rank.
    """
    here = launcher.adopt(os.environ)
    rank, size, local = here.rank, here.size, here.local
    if device not in ("auto", "cpu", "cuda"):
        raise RequestError(f"parallel.device={device}: one of auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise RequestError("the device is to be cuda, but torch sees no GPU here; use auto or cpu")
    if device != "cpu" and torch.cuda.is_available():
        count = torch.cuda.device_count()
        place = torch.device("cuda", launcher.device_index(local, count, os.environ))
        torch.cuda.set_device(place)
        if size == 1 and (idle := launcher.idle_gpus(count, os.environ)):
            log.warning(idle)
    else:
        place = torch.device("cpu")
    if here.note:
        log.warning(here.note)
    if size == 1:
        yield World(0, 1, 0, place)
        return
    launcher.check_meeting(os.environ)
    limit = datetime.timedelta(seconds=timeout_s)
    with listener.heard_in_calls():
        dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo", timeout=limit)
        # a connection of its own: that of the process group may be waiting for something
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=limit)
    with Heartbeat(rank, size, store, timeout_s) as watch:
        try:
            with listener.heard_in_calls():
                side = dist.new_group(backend="gloo", timeout=limit)
            assert isinstance(side, dist.ProcessGroup)
            yield World(rank, size, local, place, dist.group.WORLD, side, watch)
        except (Exception, KeyboardInterrupt) as error:
            # the process group is left as it is: taking it down would wait for those who are gone
            raise watch.judged(error) from error
    dist.destroy_process_group()


def batch_norm_groups(world: World, group_size: int) -> dist.ProcessGroup | None:
    """Returns the group this rank shares batch statistics with. 0 = all ranks, 1 = none; else it must divide
    the world."""
    if group_size == 1 or world.group is None:
        return None
    if group_size < 0 or (group_size and world.size % group_size):
        raise RequestError(f"parallel.batch_norm_group={group_size} does not divide {world.size} ranks; 0 means all")
    if group_size in (0, world.size):
        return world.group
    starts = range(0, world.size, group_size)  # every rank takes part in making every group
    groups = [dist.new_group(list(range(start, start + group_size))) for start in starts]
    own = groups[world.rank // group_size]
    assert isinstance(own, dist.ProcessGroup)
    return own


def statistics_groups(world: World, group_size: int) -> int:
    """Returns how many groups of ranks have batch statistics of their own; group_size as in `batch_norm_groups`."""
    return 1 if world.size == 1 or group_size == 0 else world.size // group_size


def same_statistics(world: World, group_size: int, batch: int, images: int) -> None:
    """Raises RequestError when batch statistics are those of another number of images of a step than before
    (each counts once, however many views it has), with the group size that keeps them, or the worlds that can."""
    now = batch // statistics_groups(world, group_size)
    if now == images:
        return
    ranks = images * world.size // batch  # of one group, as it was
    possible = ranks and ranks * batch == images * world.size and world.size % ranks == 0
    remedy = f"parallel.batch_norm_group={ranks}" if possible else f"a multiple of {batch // images} ranks"
    raise RequestError(
        f"batch statistics were those of {images} images, with parallel.batch_norm_group={group_size} on {world.size} ranks they "
        f"would be those of {now}; go on with {remedy}"
    )
