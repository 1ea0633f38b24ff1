"""Keeps gradients on their rank while a step's batch is run in parts.

DistributedDataParallel and fairscale's ShardedDataParallel have `no_sync` for it. FSDP2 adds up whole gradients of every
parameter on each rank meanwhile: 4 bytes a parameter that are not sharded until the last part.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from torch.distributed.fsdp import FSDPModule


@contextmanager
def kept_apart(model: nn.Module) -> Iterator[None]:
    """Lets forward and backward passes in this context add to gradients without talking to other ranks; the next backward
    pass outside of it sends their sum."""
    if hasattr(model, "no_sync"):
        with model.no_sync():  # type: ignore[operator]
            yield
        return
    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    _send(shards, False)
    try:
        yield
    finally:
        _send(shards, True)


def _send(shards: Sequence[FSDPModule], last: bool) -> None:
    for module in shards:
        module.set_requires_gradient_sync(last, recurse=False)
        module.set_is_last_backward(last)
