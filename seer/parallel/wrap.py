"""Wraps a model for training in one order: surgery, grouped batch norm, recompute, compile, data parallel.

    ddp         every rank holds everything; gradients are averaged (DistributedDataParallel)
    fsdp        every rank holds a part of each parameter, its gradient and its optimizer state, and gathers a block when it
            runs (FSDP2, `fully_shard`): blocks of each tower one by one, the rest of the tower, the head
    fairscale   wraps model and optimizer together, once there is an optimizer (`parallel/fairscale_backend.py`)

Surprising: modules keep their names and their places under both, so `task.backbone` is always what evaluators run and what
checkpoints name. Under FSDP backbone and head are roots of their own, because an evaluator calls the backbone alone, and
weights stay contiguous, since `fully_shard` takes no others: the crops bring channels_last in. In 16-bit training a tower's
parameters travel narrow and their gradients are summed in float32; batch norms, a unit of their own in each block, and the
head with its prototypes stay float32 throughout, as SEER's did.
"""

import inspect
import warnings
from collections.abc import Sequence

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from seer.core.errors import RequestError
from seer.parallel.batchnorm import group_batchnorm
from seer.parallel.blocks import around, blocks, towers
from seer.parallel.remat import remat as recompute
from seer.parallel.world import World, batch_norm_groups

# features are a view of pooled maps, and nobody writes into them
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
MODES = ("auto", "ddp", "fsdp", "fairscale")


def parallelize(
    model: nn.Module,
    world: World,
    *,
    mode: str = "auto",
    batch_norm_group: int = 0,
    channels_last: bool = True,
    remat: str | Sequence[str] = "none",
    compiled: bool = False,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Makes a plain model ready for training on this world, on its device, and returns the same model.

    mode: see above; auto is ddp. One process needs neither and gets the model itself. batch_norm_group: ranks that share
    batch statistics, 0 = all, 1 = none. Running statistics are not broadcast: ranks of one group hold the same, groups hold
    their own. remat: what is made again in the backward pass (`remat`). compiled: by torch.compile. dtype: of autocast, in
    which FSDP gathers. Raises RequestError.
    """
    check_mode(mode, remat, compiled)
    sharded = mode == "fsdp" and world.group is not None
    if not sharded:  # a model that is sharded comes to its device block by block
        model = model.to(world.device)
    contiguous = world.group is not None and mode in ("fsdp", "fairscale")
    if channels_last and not contiguous:
        model = model.to(memory_format=torch.channels_last)
    model = group_batchnorm(model, batch_norm_groups(world, batch_norm_group), world.device, compiled=compiled)
    model = recompute(model, remat)
    if compiled:
        _compile(model, whole=remat == "none" and not sharded)
    if world.group is None:
        return model
    if contiguous:
        model.channels_last = channels_last  # type: ignore[assignment]
    if mode == "fairscale":
        return model
    if sharded:
        return _shard(model, world, dtype)
    devices = [world.device] if world.device.type == "cuda" else None
    # batch statistics of groups differ between ranks; newer torch has another word for it, which syncs once, when all are new
    new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
    unsynced = {"forward_sync_buffers" if new else "broadcast_buffers": False}
    return DistributedDataParallel(model, device_ids=devices, process_group=world.group, **unsynced)  # type: ignore[arg-type]


def check_mode(mode: str, remat: str | Sequence[str], compiled: bool) -> None:
    """Raises RequestError for an unknown mode, and for recompute that compilation undoes."""
    if mode not in MODES:
        raise RequestError(f"parallel.mode={mode}: one of {', '.join(MODES)}")
    if compiled and remat == "selective":
        raise RequestError(
            "parallel.remat=selective keeps single convolutions, which parallel.compile=true merges away; use parallel.remat=block"
        )


def _compile(model: nn.Module, whole: bool) -> None:
    """Compiles in place every tower, or a model without any as a whole. Shapes are fixed, so each crop size is
    compiled once, in one graph, collectives and all. Recompute and FSDP act between blocks: then each block is
    compiled by itself, and those that are alike share what was compiled. FSDP in 16 bits gathers batch norms
    apart (`_shard`), which cuts a block's graph at each."""
    parts = (list(towers(model).values()) or [model]) if whole else list(blocks(model).values())
    # torch gives up after 8 variants of one function, and all blocks are one: two sizes, first and second pass, each shape of
    # block; four norms of a block where graphs are cut
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, 16 * len(parts))
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, dynamo.recompile_limit)
    for part in parts:
        part.compile(dynamic=False)


def _shard(model: nn.Module, world: World, dtype: torch.dtype) -> nn.Module:
    mesh = world.mesh()
    wide = MixedPrecisionPolicy(cast_forward_inputs=False)
    narrow = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    narrow = wide if dtype == torch.float32 else narrow

    def unit(module: nn.Module, policy: MixedPrecisionPolicy) -> None:
        norms: list[nn.Module] = [
            m for m in module.modules() if isinstance(m, _BatchNorm) and m.affine and not isinstance(m, FSDPModule)
        ]
        if policy is narrow is not wide and norms:
            fully_shard(norms, mesh=mesh, mp_policy=wide)
        # what has run is let go at once, at the root too: evaluators and checkpoints come between forward passes
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)

    for block in blocks(model).values():
        unit(block, narrow)
    for tower in towers(model).values():
        unit(tower, narrow)
        if hasattr(tower, "forward_stages"):
            register_fsdp_forward_method(tower, "forward_stages")
    for part in around(model):
        unit(part, wide)
    _all_sharded(model)
    return model


def _all_sharded(model: nn.Module) -> None:
    """Raises RequestError for a parameter that no part holds: it would be whole on every rank, and its gradient that rank's own."""
    whole = [name for name, p in model.named_parameters() if not isinstance(p, DTensor)]
    if whole:
        raise RequestError(
            f"parallel.mode=fsdp: {', '.join(whole[:5])} of {type(model).__name__} lies in no module of its own, so FSDP cannot "
            "shard it: put it into a module, or use parallel.mode=ddp"
        )
