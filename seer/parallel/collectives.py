"""The few collectives that losses, metrics and batch norm speak through.

Surprising here: `group is None` means *one process* and makes every function a no-op, whereas `None` in
torch.distributed means the world. Whoever wants the world passes it (`seer.parallel.world` hands groups out), so code
written for one process cannot start to talk by accident. No function moves pickled objects: only tensors travel.

Every rank of the group has to call the same function in the same order, with the same shape and dtype.

Shapes: R ranks of the group; `..` is any shape, the same on every rank.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

Group = dist.ProcessGroup

__all__ = ["AllGatherStack", "Group", "all_gather_stack", "all_reduce_mean", "all_reduce_sum", "any_true", "broadcast"]


@torch.no_grad()
def all_reduce_sum(tensor: Tensor, group: Group | None) -> Tensor:
    """Sums `tensor` [..] over the group in place and returns it; contiguous, any dtype, no gradient passes."""
    if group is not None:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=group)
    return tensor


@torch.no_grad()
def all_reduce_mean(tensor: Tensor, group: Group | None) -> Tensor:
    """Averages `tensor` [..] (floating point) over the group in place and returns it; no gradient passes.

    A sum and a division rather than ReduceOp.AVG, which gloo does not have.
    """
    if group is not None:
        dist.all_reduce(tensor, op=dist.ReduceOp.SUM, group=group)
        tensor.div_(dist.get_world_size(group))
    return tensor


class AllGatherStack(torch.autograd.Function):
    """[..] on each of R ranks -> [R, ..] on all; the gradient of row r is summed over the group and goes to rank r."""

    @staticmethod
    def forward(ctx, tensor: Tensor, group: Group) -> Tensor:
        ctx.group = group
        stacked = tensor.new_empty((dist.get_world_size(group), *tensor.shape))  # [R, ..]
        dist.all_gather(list(stacked.unbind()), tensor.contiguous(), group=group)
        return stacked

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        # every rank used all R rows, so the gradient of ours is spread over all ranks; a copy, because autograd may
        # hand the same tensor to somebody else
        total = gradient.clone(memory_format=torch.contiguous_format)  # [R, ..]
        dist.all_reduce(total, op=dist.ReduceOp.SUM, group=ctx.group)
        return total[dist.get_rank(ctx.group)], None


def all_gather_stack(tensor: Tensor, group: Group | None) -> Tensor:
    """`tensor` [..] of each rank -> [R, ..] in rank order, differentiable; [1, ..] (a view) for one process."""
    if group is None:
        return tensor.unsqueeze(0)
    return AllGatherStack.apply(tensor, group)


@torch.no_grad()
def broadcast(tensor: Tensor, group: Group | None, source: int = 0) -> Tensor:
    """Overwrites `tensor` [..] with that of rank `source` *of the group*, in place, and returns it."""
    if group is not None:
        dist.broadcast(tensor, group=group, group_src=source)
    return tensor


def any_true(flag: bool, group: Group | None) -> bool:
    """True on every rank as soon as `flag` is true on one; waits for the answer, so not for every step."""
    if group is None:
        return bool(flag)
    # a group that speaks gloo for the CPU spares the accelerator; one of NCCL alone takes no CPU tensor
    on_cpu = "gloo" in dist.get_backend_config(group) or "mpi" in dist.get_backend_config(group)
    device = torch.device("cpu") if on_cpu else torch.accelerator.current_accelerator()
    count = torch.tensor(int(bool(flag)), dtype=torch.int32, device=device)
    dist.all_reduce(count, op=dist.ReduceOp.MAX, group=group)
    return bool(count.item())
