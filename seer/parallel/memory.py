"""Counts what a training step keeps in memory beside weights and images, on tensors without data, before one is made.

Torch's FakeTensorMode runs the real forward and backward pass, with autocast, recompute, loss and all, on shapes alone; every
new storage is added up until it is freed. RegNetY-16GF takes half a second. What libraries take behind torch's back
(workspaces of convolutions) and what an allocator wastes is not in it.

`recomputed_within` gives `parallel.remat=budget=GB` its blocks: those that keep most are made again first, and no more than are
needed.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seer.core.errors import RequestError
from seer.parallel.blocks import blocks, towers
from seer.parallel.remat import remat

Shapes = Sequence[Sequence[int]]
Loss = Callable[[nn.Module, list[Tensor]], Tensor]


def mean_square(model: nn.Module, crops: list[Tensor]) -> Tensor:
    """Returns a loss for models without a task. It takes more than SwAV's where prototypes are few."""
    return model(crops)[1].square().mean()


@dataclass(frozen=True)
class StepMemory:
    """Holds bytes beyond weights, statistics and images. kept: after the forward pass, until the backward pass
    needs it. peak: at the worst moment of both, gradients among them."""

    kept: int
    peak: int


def step_memory(
    model: nn.Module,
    shapes: Shapes,
    dtype: torch.dtype = torch.float32,
    policy: str | Sequence[str] = "none",
    *,
    sharded: bool = False,
    loss: Loss = mean_square,
) -> StepMemory:
    """Counts the memory of a step. model: plain, on any device, meta too; it takes crops and gives (embeddings,
    scores), and is left alone. shapes: [v*B, 3, S, S] of each resolution, on one rank. dtype: of autocast.
    policy: of `remat`. sharded: as under FSDP, which gathers a backbone's weights in `dtype` (not counted here)
    and lets a whole gradient go once the last resolution has added to it. loss: of a model and its float32
    crops, called in autocast; what it makes counts."""
    with FakeTensorMode():
        twin = remat(_twin(model), policy).train()
        if sharded:
            _as_gathered(twin, dtype)
        crops = [torch.empty(*shape).contiguous(memory_format=torch.channels_last) for shape in shapes]
        live = Live([*twin.parameters(), *twin.buffers(), *crops])
        with live:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                value = loss(twin, crops)
            kept = live.now
            value.backward()
        return StepMemory(kept, live.peak)


def recomputed_within(
    model: nn.Module, budget: int, shapes: Shapes, dtype: torch.dtype = torch.float32, loss: Loss = mean_square
) -> list[str]:
    """Returns the blocks to make again so that a step with this loss peaks at `budget` bytes at most; [] when
    none need be.

    Fewer for a larger budget, always. Raises RequestError with the least that is possible.
    """
    order = [name for name, _ in sorted(_kept_by_block(model, shapes, dtype).items(), key=lambda item: -item[1])]
    least = None
    for count in range(len(order) + 1):
        peak = step_memory(model, shapes, dtype, order[:count] or "none", loss=loss).peak
        if peak <= budget:
            return sorted(order[:count], key=_place)
        least = peak if least is None else min(least, peak)
    assert least is not None
    raise RequestError(
        f"parallel.remat=budget={budget / 1e9:g}: with every block recomputed a step takes {least / 1e9:.2f} GB beyond the weights, "
        "the least that is possible; give so much, a smaller batch, or smaller crops"
    )


class Live(TorchDispatchMode):
    """Adds up memory in use. now, peak: bytes of storages that came to be in this context and are not freed
    yet. known: tensors that do not count."""

    def __init__(self, known: Sequence[Tensor] = ()):
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}
        for tensor in known:
            self._note(tensor, counts=False)

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None
    ) -> Any:
        output = function(*arguments, **(named or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self._note(leaf)
        return output

    def _note(self, tensor: Tensor, counts: bool = True) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._sizes:
            return
        size = storage.nbytes() if counts else 0
        self._sizes[storage._cdata] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, storage._cdata)

    def _freed(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


def _twin(model: nn.Module) -> nn.Module:
    """Returns the same modules with parameters and buffers that have no data."""
    memo: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty(p.shape, dtype=p.dtype), p.requires_grad) for p in model.parameters()
    }
    memo |= {id(b): torch.empty(b.shape, dtype=b.dtype) for b in model.buffers()}
    twin = copy.deepcopy(model, memo)
    twin.channels_last = True  # type: ignore[assignment]  # as the crops come
    return twin


def _as_gathered(twin: nn.Module, dtype: torch.dtype) -> None:
    for module in [m for tower in towers(twin).values() for m in tower.modules()]:
        if not isinstance(module, _BatchNorm):
            for name, p in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(torch.empty(p.shape, dtype=dtype), p.requires_grad))
    for p in twin.parameters():
        p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))


def _kept_by_block(model: nn.Module, shapes: Shapes, dtype: torch.dtype) -> dict[str, int]:
    """Returns {"stage1.block0": bytes that its forward passes add}."""
    kept: dict[str, int] = {}
    with FakeTensorMode():
        twin = _twin(model).train()
        crops = [torch.empty(*shape).contiguous(memory_format=torch.channels_last) for shape in shapes]
        live = Live([*twin.parameters(), *twin.buffers(), *crops])
        found = blocks(twin)
        if not found:
            raise RequestError("parallel.remat=budget=…: this network has no stages of blocks; use parallel.remat=none")
        with _measured(found, live, kept), live, torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            twin(crops)
    return kept


@contextmanager
def _measured(parts: dict[str, nn.Module], live: Live, kept: dict[str, int]) -> Iterator[None]:
    before: dict[str, int] = {}
    hooks = []
    for name, block in parts.items():
        hooks.append(block.register_forward_pre_hook(lambda *_, n=name: before.update({n: live.now})))
        hooks.append(
            block.register_forward_hook(lambda *_, n=name: kept.update({n: kept.get(n, 0) + live.now - before[n]}))
        )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _place(block: str) -> tuple[str, int]:
    stage, _, number = block.rpartition("block")
    return stage, int(number)
