"""Recomputes activations in the backward pass instead of keeping them for it, which trades time for memory.

    none        everything is kept
    block       of each block only its input is kept
    stage       of each stage but the last only its input is kept, and of the last but one only its first half is made again:
                the backward pass begins behind it, and has let that go before there is an earlier stage to make
    selective   of each block the outputs of its convolutions are kept; batch norm, ReLU and squeeze-and-excitation are made again
    budget=GB   as few blocks as bring a step down to so much (`parallel/memory.py` chooses their names)
    [names]     these are made again, as wholes: "stage2", "stage3.block4", or consecutive blocks "stage3.block0-8"

of every tower of the model; blocks of a second one have its name in front, "text.stage1.block0" (`parallel/blocks.py`).

Surprising:
- Batch norm would count a batch twice. In the second pass momentum is 0 and the counter is put back, so running statistics are
  those of a run without recompute, to the last bit. (`track_running_stats=False` there makes torch raise.)
- Nothing is wrapped: a stage changes its class, so that names of parameters and `forward_stages` stay.
- Only in training with gradients; a probe in between sees the plain network.

SEER's 10B was trained with ["stage1", "stage2", "stage3.block0-8", "stage3.block9-16"] (`facts/seer.md` 6.3).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from seer.core.errors import RequestError
from seer.parallel.allocator import trim_heap
from seer.parallel.blocks import stages_by_tower, stages_of

POLICIES = ("none", "block", "stage", "selective")
_ITEM = re.compile(r"(?:(?P<stage>[\w.]+)\.)?block(?P<first>\d+)(?:-(?P<last>\d+))?|(?P<whole>[\w.]+)")


def remat(model: nn.Module, policy: str | Sequence[str]) -> nn.Module:
    """Makes the stages of all towers (`parallel/blocks.py`) of a model recompute by the policy; returns the
    same object.

    Raises RequestError for an unknown policy or block, for blocks named twice, and for a stage that is no `nn.Sequential`.
    """
    groups = chosen(model, policy)
    for name, blocks in stages_of(model).items() if groups else ():
        if groups[name]:
            stage = _sequential(model, name, blocks)
            stage.__class__ = _Recomputed
            stage.groups, stage.selective = groups[name], policy == "selective"  # type: ignore[assignment]
    return model


def chosen(model: nn.Module, policy: str | Sequence[str]) -> dict[str, list[tuple[int, int]]]:
    """Returns the runs of blocks of each stage, from first to behind the last, that a policy makes again.
    Raises RequestError."""
    if policy == "none":
        return {}
    stages = stages_of(model)
    if not stages:
        raise RequestError(f"parallel.remat: {type(model).__name__} has no stages of blocks; use parallel.remat=none")
    if not isinstance(policy, str):
        return _named(policy, stages)
    if policy == "fairscale":
        raise RequestError(
            "parallel.remat=fairscale: its checkpoint wrapper counts batch statistics twice, and DDP stops at it (a network that "
            "runs once for each crop size marks its weights ready twice); parallel.remat=block keeps as little, with the "
            "statistics of a plain step"
        )
    if policy not in POLICIES:
        raise RequestError(
            f"parallel.remat={policy}: one of {', '.join(POLICIES)}, budget=GB, or a list of names like stage3.block0-8"
        )
    if policy == "stage":
        return {name: spans for tower in stages_by_tower(model) for name, spans in _by_stage(tower).items()}
    return {name: [(i, i + 1) for i in range(len(blocks))] for name, blocks in stages.items()}


def _by_stage(stages: Mapping[str, Sequence[nn.Module]]) -> dict[str, list[tuple[int, int]]]:
    """Returns the spans of policy `stage` in one tower, since the backward pass of each tower begins at its own end."""
    *earlier, last = stages
    groups = {**{name: [(0, len(stages[name]))] for name in earlier}, last: []}
    if earlier:
        groups[earlier[-1]] = [(0, (len(stages[earlier[-1]]) + 1) // 2)]
    return groups


def _named(items: Sequence[str], stages: Mapping[str, Sequence[nn.Module]]) -> dict[str, list[tuple[int, int]]]:
    groups: dict[str, list[tuple[int, int]]] = {name: [] for name in stages}
    for item in items:
        found = _ITEM.fullmatch(str(item))
        stage = (found["whole"] or found["stage"] or "") if found else None
        if not found or stage is None or stage not in stages:
            raise RequestError(
                f"parallel.remat names {item!r}; there are {', '.join(stages)} and their blocks, {next(iter(stages))}.block0"
            )
        first = int(found["first"] or 0)
        end = len(stages[stage]) if found["first"] is None else int(found["last"] or first) + 1
        if not first < end <= len(stages[stage]):
            raise RequestError(f"parallel.remat names {item!r}; {stage} has blocks 0 to {len(stages[stage]) - 1}")
        groups[stage].append((first, end))
    for name, spans in groups.items():
        spans.sort()
        for (_, end), (start, _) in pairwise(spans):
            if start < end:
                raise RequestError(f"parallel.remat names block {start} of {name} twice")
    return groups


def _sequential(model: nn.Module, name: str, blocks: Sequence[nn.Module]) -> nn.Sequential:
    """Returns the module that runs exactly these blocks, one after the other. Raises RequestError where there
    is none."""
    for module in model.modules():
        if isinstance(module, nn.Sequential) and list(map(id, module)) == list(map(id, blocks)):
            return module
    raise RequestError(
        f"parallel.remat: no nn.Sequential holds the {len(blocks)} blocks of {name} and nothing else, so they cannot be made "
        "again; use parallel.remat=none"
    )


class _Recomputed(nn.Sequential):
    """Runs a stage of which some runs of blocks are made again in the backward pass."""

    groups: list[tuple[int, int]]
    selective: bool

    def forward(self, x: Tensor) -> Tensor:
        blocks = list(self)
        if not (self.training and torch.is_grad_enabled()):
            return _run(blocks, x)
        done = 0
        for first, end in self.groups:
            x = _run(blocks[done:first], x)
            part = blocks[first:end]
            contexts = partial(
                _contexts,
                [m for b in part for m in b.modules() if isinstance(m, _BatchNorm)],
                self.selective,
                trim=(first, end) == self.groups[-1] and x.device.type == "cpu",
            )
            with _casts_anew() if self.selective else nullcontext():
                x = checkpoint(_run, part, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
            done = end
        return _run(blocks[done:], x)


def _run(blocks: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


def _contexts(
    norms: list[_BatchNorm], selective: bool, trim: bool
) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Returns the contexts around the first pass and around the second. trim: this is the first of its stage to
    be made again, and what earlier ones have left is of other sizes."""
    again = _both(_trimmed(), _counted_already(norms)) if trim else _counted_already(norms)
    if not selective:
        return nullcontext(), again
    first, second = create_selective_checkpoint_contexts(_policy)
    return first, _both(again, second)


@contextmanager
def _trimmed() -> Iterator[None]:
    trim_heap()
    yield


def _policy(context: Any, operation: Any, *arguments: Any, **_: Any) -> CheckpointPolicy:
    # convolutions with a bias are those of squeeze-and-excitation: small, and ReLU works in place on their outputs
    kept = operation == torch.ops.aten.convolution.default and arguments[2] is None
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


@contextmanager
def _casts_anew() -> Iterator[None]:
    """Switches autocast's cache off, inside this context. It keeps narrow weights for the next crop size; then
    the second pass would cast where the first did not, which a selective checkpoint takes for another
    computation."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


@contextmanager
def _both(*contexts: AbstractContextManager) -> Iterator[None]:
    with ExitStack() as stack:
        for one in contexts:
            stack.enter_context(one)
        yield


@contextmanager
def _counted_already(norms: list[_BatchNorm]) -> Iterator[None]:
    before = [(m.momentum, m.running_mean, m.running_var, m.num_batches_tracked) for m in norms]
    for m in norms:
        m.momentum = 0.0
        if m.num_batches_tracked is not None:
            m.num_batches_tracked = m.num_batches_tracked.clone()  # the copy counts, and is thrown away
    try:
        yield
    finally:
        for m, (momentum, _, _, count) in zip(norms, before, strict=True):
            m.momentum, m.num_batches_tracked = momentum, count
