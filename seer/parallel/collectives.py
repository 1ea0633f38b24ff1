"""Holds the few collectives that losses, metrics and batch norm speak through.

Surprising here: `group is None` means *one process* and makes every function a no-op, whereas `None` in
torch.distributed means the world. Whoever wants the world passes it (`seer.parallel.world` hands groups out), so code
written for one process cannot start to talk by accident. No function moves pickled objects: only tensors travel.

Every rank of the group has to call the same function in the same order, with the same shape and dtype.

Shapes: R ranks of the group; `..` is any shape, the same on every rank.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import GroupName, _resolve_process_group
from torch.distributed.tensor import DTensor, distribute_tensor

Group = dist.ProcessGroup

__all__ = [
    *("Group", "all_gather_stack", "all_reduce_max", "all_reduce_mean", "all_reduce_sum", "any_rank", "broadcast"),
    *(
        "copy_full_tensor_",
        "first_ranks",
        "gather_rows",
        "gather_text",
        "highest",
        "broadcast_text",
        "waited",
        "gather_to_rank0",
    ),
]


class _Waited:
    """Counts collectives, as a context around each, and adds up what the host spent in them: waiting for peers, mostly.

    Not of a thread that called `aside`: it waits while the step goes on.
    """

    seconds, entered = 0.0, 0

    def __init__(self) -> None:
        self._thread = threading.local()

    def aside(self) -> None:
        self._thread.aside = True

    def __enter__(self) -> None:
        if not hasattr(self._thread, "aside"):
            self.entered += 1
        self._thread.since = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if not hasattr(self._thread, "aside"):
            self.seconds += time.perf_counter() - self._thread.since


waited = _Waited()


@torch.no_grad()
def all_reduce_sum(tensor: Tensor, group: Group | None) -> Tensor:
    """Sums `tensor` [..] over the group in place and returns it; contiguous, any dtype, no gradient passes."""
    if group is not None:
        with waited:
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=group)
    return tensor


@torch.no_grad()
def all_reduce_max(tensor: Tensor, group: Group | None) -> Tensor:
    """Takes the largest of all ranks for each entry of `tensor` [..], in place, and returns it; no gradient passes."""
    if group is not None:
        with waited:
            dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group)
    return tensor


@torch.no_grad()
def all_reduce_mean(tensor: Tensor, group: Group | None) -> Tensor:
    """Averages `tensor` [..] (floating point) over the group in place and returns it; no gradient passes.

    A sum and a division rather than ReduceOp.AVG, which gloo does not have.
    """
    if group is not None:
        with waited:
            dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=group)
        tensor.div_(dist.get_world_size(group))
    return tensor


@torch.library.custom_op("seer::all_gather_stack", mutates_args=(), schema="(Tensor tensor, str group) -> Tensor")
def _stacked(tensor: Tensor, group: str) -> Tensor:
    ranks = _resolve_process_group(GroupName(group))
    stacked = tensor.new_empty((ranks.size(), *tensor.shape))  # [R, ..]
    with waited:
        dist.all_gather(list(stacked.unbind()), tensor.contiguous(), group=ranks)
    return stacked


@torch.library.custom_op("seer::sum_of_own_row", mutates_args=(), schema="(Tensor gradient, str group) -> Tensor")
def _own_row(gradient: Tensor, group: str) -> Tensor:
    ranks = _resolve_process_group(GroupName(group))
    # a copy, because autograd may hand the same tensor to somebody else
    total = gradient.clone(memory_format=torch.contiguous_format)  # [R, ..]
    with waited:
        dist.all_reduce(total, op=dist.ReduceOp.SUM, group=ranks)
    return total[ranks.rank()].clone()


@_stacked.register_fake
def _(tensor: Tensor, group: str) -> Tensor:
    return tensor.new_empty((_resolve_process_group(GroupName(group)).size(), *tensor.shape))


@_own_row.register_fake
def _(gradient: Tensor, group: str) -> Tensor:
    return gradient.new_empty(gradient.shape[1:])


def _keep_group(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
    ctx.group = inputs[1]


def _to_its_rank(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    # every rank used all R rows, so the gradient of ours is spread over all ranks
    return _own_row(gradient, ctx.group), None


_stacked.register_autograd(_to_its_rank, setup_context=_keep_group)


def all_gather_stack(tensor: Tensor, group: Group | None) -> Tensor:
    """Gathers `tensor` [..] of each rank -> [R, ..] in rank order; [1, ..] (a view) for one process.
    Differentiable once: the gradient of row r is summed over the group and goes to rank r. torch.compile takes
    it for one operation."""
    if group is None:
        return tensor.unsqueeze(0)
    return _stacked(tensor, group.group_name)


@torch.no_grad()
def broadcast(tensor: Tensor, group: Group | None, source: int = 0) -> Tensor:
    """Overwrites `tensor` [..] with that of rank `source` *of the group*, in place, and returns it."""
    if group is not None:
        with waited:
            dist.broadcast(tensor, group=group, group_src=source)
    return tensor


@torch.no_grad()
def copy_full_tensor_(tensor: Tensor, whole: Tensor) -> None:
    """Overwrites a tensor [..], which may be sharded, with a whole one [..] that every rank holds alike."""
    if isinstance(tensor, DTensor):
        whole = distribute_tensor(whole, tensor.device_mesh, tensor.placements)
    tensor.copy_(whole)


@torch.no_grad()
def gather_to_rank0(tensors: Mapping[str, Tensor], group: Group | None) -> dict[str, Tensor]:
    """Gathers the tensors, whole, on the CPU of the group's first rank; {} on the others. One after the other,
    so that no device holds more than one of them whole."""
    first = group is None or group.rank() == 0
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if first:
            found[name] = whole.detach().cpu()
    return found


def any_rank(flag: bool, group: Group | None) -> bool:
    """Returns True on every rank as soon as `flag` is true on one; waits for the answer, so not for every step."""
    return bool(max_over_ranks(int(bool(flag)), group))


def max_over_ranks(value: int, group: Group | None) -> int:
    """Returns the highest of all ranks' values (below 2^31), on every rank; waits for the answer."""
    if group is None:
        return value
    found = torch.tensor(value, dtype=torch.int32, device=_device(group))
    with waited:
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=group)
    return int(found.item())


def first_ranks(value: float, group: Group | None) -> float:
    """Returns the first rank's number, to the last bit, on every rank; waits for it."""
    if group is None:
        return value
    return float(broadcast(torch.tensor(value, dtype=torch.float64, device=_device(group)), group).item())


@torch.no_grad()
def gather_rows(rows: Tensor, group: Group | None) -> list[Tensor]:
    """Returns every rank's rows [m, ..] on the host, in rank order, on every rank; m may differ from rank to rank, the
    other axes and the dtype not. Waits for the answer."""
    if group is None:
        return [rows]
    counts = [int(text) for text in gather_text(str(len(rows)), group)]
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    stacked = all_gather_stack(padded.to(_device(group)), group).cpu()  # [R, most, ..]
    return [one[:count] for one, count in zip(stacked, counts, strict=True)]


def gather_text(text: str, group: Group | None) -> list[str]:
    """Returns every rank's text, in rank order, on every rank. Bytes travel, not pickles; waits for the answer."""
    if group is None:
        return [text]
    data = text.encode()
    room = max_over_ranks(len(data), group)
    mine = torch.zeros(room + 4, dtype=torch.uint8)  # four bytes of length, then the text
    mine[:4] = torch.tensor(list(len(data).to_bytes(4, "little")), dtype=torch.uint8)
    if data:
        mine[4 : 4 + len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    rows = all_gather_stack(mine.to(_device(group)), group).cpu()  # [R, 4 + room]
    parts = [bytes(row.tolist()) for row in rows]
    return [part[4 : 4 + int.from_bytes(part[:4], "little")].decode() for part in parts]


def broadcast_text(text: str, group: Group | None) -> str:
    """Returns the text of the group's first rank, on every rank; what others pass is ignored."""
    return gather_text(text if group is None or group.rank() == 0 else "", group)[0]


def _device(group: Group) -> torch.device:
    """Returns the device for plain numbers: the CPU where the group speaks gloo (or MPI) for it, since one of
    NCCL alone takes no CPU tensor."""
    on_cpu = "gloo" in dist.get_backend_config(group) or "mpi" in dist.get_backend_config(group)
    found = torch.device("cpu") if on_cpu else torch.accelerator.current_accelerator()
    assert found is not None
    return found
