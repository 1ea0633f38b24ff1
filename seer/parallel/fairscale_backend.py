"""Wraps fairscale's sharded optimizer and data parallel: every rank holds all weights, and momentum and the
gradients of some tensors.

For those who have runs of that kind; `parallel.mode=fsdp` is what replaces it. fairscale 0.4.13 (2022) is the last there is.

Surprising:
- Its reduce buffers step on stale gradients after `zero_grad(set_to_none=True)`: without them losses are DDP's.
- It lays parameters into flat buffers, so weights are contiguous; crops bring channels_last in.
- The consolidated state of the optimizer travels between ranks as pickles, which are this job's own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from seer.core.errors import RequestError
from seer.parallel.world import World


def shard(
    model: nn.Module,
    groups: Sequence[dict[str, Any]],
    make: Callable[[Sequence[dict[str, Any]]], torch.optim.Optimizer],
    world: World,
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Shards a plain model on its device, and the optimizer that `make` gives for parameter groups; returns both.

    The optimizer's state_dict is the plain optimizer's, on every rank, and costs a gather. It is marked `gradients_shared_out`:
    a gradient is on one rank alone. Raises RequestError without fairscale.
    """
    try:
        from fairscale.nn.data_parallel import ShardedDataParallel
        from fairscale.optim.oss import OSS
    except ImportError as error:
        raise RequestError(
            f"parallel.mode=fairscale: {error}; pip install fairscale==0.4.13, or use parallel.mode=fsdp, which needs nothing"
        ) from error

    class Sharded(OSS):
        gradients_shared_out = True

        def state_dict(self) -> dict[str, Any]:
            return super().state_dict(all_ranks=True)

    defaults = make(groups).defaults
    optimizer = Sharded(groups, optim=lambda some, **_: make(some), group=world.group, **defaults)
    wrapped = ShardedDataParallel(
        model,
        optimizer,
        process_group=world.group,
        broadcast_buffers=False,
        reduce_buffer_size=0,
        auto_refresh_trainable=False,
    )
    return wrapped, optimizer
