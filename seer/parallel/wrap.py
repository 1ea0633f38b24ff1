"""The one order of wrappers: surgery, grouped batch norm, recompute, compile, data parallel.

Compile, FSDP2 and fairscale come with the distributed engine; their places are here.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from seer.parallel.batchnorm import group_batchnorm
from seer.parallel.remat import remat as recompute
from seer.parallel.world import World, batch_norm_groups


def parallelize(
    model: nn.Module,
    world: World,
    *,
    batch_norm_group: int = 0,
    channels_last: bool = True,
    remat: str | Sequence[str] = "none",
) -> nn.Module:
    """A plain model -> the same model on its device, ready for training on this world.

    batch_norm_group: ranks that share batch statistics, 0 = all, 1 = none. Running statistics are not broadcast:
    ranks of one group hold the same, groups hold their own. remat: what is made again in the backward pass (`remat`).
    """
    model = model.to(world.device)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    model = group_batchnorm(model, batch_norm_groups(world, batch_norm_group), world.device)
    model = recompute(model, remat)
    if world.group is None:
        return model
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, process_group=world.group, broadcast_buffers=False)
