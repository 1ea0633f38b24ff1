"""Shares the statistics of batch norm over a group of ranks, a statistics group.

On a GPU torch's own SyncBatchNorm does it. That refuses CPU tensors, so here the same arithmetic stands in a few lines
over a differentiable collective: gloo tests then cover the real model. torch.compile takes these on a GPU, too, in one graph:
SyncBatchNorm drops the rows of empty ranks, a shape that depends on data, and breaks the graph at each norm. Means and
variances of the ranks are joined by the parallel formula (variance of means plus mean of variances), not by sums of
squares, which cancel in float32.

Groups that differ hold running statistics of their own. Who wants one network of them (evaluation, a bundle, another
number of groups) takes the mean over the groups: `mean_statistics`.

Legend: N rows or images, C channels, R ranks of the group, G groups.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from seer.parallel.collectives import Group, all_gather_stack

_NATIVE = (torch.float32, torch.bfloat16, torch.float16)  # what the kernels of torch's batch norm take without a copy
_PART = 2048  # pixels that are added up at a time
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # how names of running statistics end


class _Normalize(torch.autograd.Function):
    """Normalizes x -> y of its dtype; mean and biased variance float32 [C]. Differentiable once.

    On a CPU what adds up over rows is done by the kernels of torch's own batch norm: for channels_last torch.var_mean takes 10 to 15
    times as long, going through memory once for every few channels. torch.compile makes its own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
        group: Group | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        each = all_gather_stack(torch.stack(_moments(x)), group)  # [R, 2, C]
        mean = each[:, 0].mean(0)
        variance = each[:, 1].mean(0) + (each[:, 0] - mean).square().mean(0)
        inverse = torch.rsqrt(variance + eps)
        y = (x.float() - _wide(mean, x)) * _wide(inverse if weight is None else inverse * weight.float(), x)
        if bias is not None:
            y = y + _wide(bias.float(), x)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.group, ctx.bias = group, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(mean, variance)
        return y.to(x.dtype), mean, variance

    @staticmethod
    def backward(
        ctx: Any, slope: torch.Tensor, *_: None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, None, None]:
        x, weight, mean, inverse = ctx.saved_tensors
        own = torch.stack(_sums(slope, x, mean, inverse))  # [2, C]: of the slope, and of it times what was normalized
        each = all_gather_stack(own, ctx.group)
        level, tilt = each.sum(0) / (len(each) * x.numel() // x.shape[1])
        scale = inverse if weight is None else inverse * weight.float()
        normal = (x.float() - _wide(mean, x)) * _wide(inverse, x)
        by_x = (slope.float() - _wide(level, x) - normal * _wide(tilt, x)) * _wide(scale, x)
        by_weight = None if weight is None else own[1].to(weight.dtype)
        by_bias = None if ctx.bias is None else own[0].to(ctx.bias)
        return by_x.to(x.dtype), by_weight, by_bias, None, None


def _wide(channels: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Returns [C] as [1, C] or [1, C, 1, 1], like x."""
    return channels.view([1, -1] + [1] * (x.ndim - 2))


def _moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns mean and biased variance of this rank, float32 [C] each."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return _native_moments(x if x.dtype in _NATIVE else x.float())
    variance, mean = torch.var_mean(x.float(), _rows(x), correction=0)
    return mean, variance


def _sums(
    slope: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, inverse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the sums of the slope, and of the slope times normalized x, over the rows of this rank: float32
    [C] each."""
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return _native_sums(*((slope, x) if x.dtype in _NATIVE else (slope.float(), x.float())), mean, inverse)
    slope = slope.float()
    normal = (x.float() - _wide(mean, x)) * _wide(inverse, x)
    return slope.sum(_rows(x)), (slope * normal).sum(_rows(x))


def _native_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    kept = x.new_zeros(x.shape[1], dtype=torch.float32)  # its dtype asks for float32 results; the values do not matter
    parts = _parts(x)
    each = torch.stack(
        [torch.stack(torch.batch_norm_update_stats(part, kept, kept, 0.0)) for part in parts]
    )  # [P, 2, C]
    share = torch.tensor([len(part) for part in parts], dtype=torch.float32).view(-1, 1) / len(x)
    mean = (each[:, 0] * share).sum(0)
    return mean, ((each[:, 1] + (each[:, 0] - mean).square()) * share).sum(0)


def _native_sums(
    slope: torch.Tensor, x: torch.Tensor, mean: torch.Tensor, inverse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    mask = [False, True, True]  # not by x, which depends on the other ranks
    each = [
        torch.ops.aten.native_batch_norm_backward(g, part, inverse, None, None, mean, inverse, True, 0.0, mask)[1:]
        for g, part in zip(_parts(slope, like=x), _parts(x), strict=True)
    ]
    tilt, level = (torch.stack(sums).sum(0) for sums in zip(*each, strict=True))
    return level, tilt


def _parts(tensor: torch.Tensor, like: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """Returns the images of [N, C] or [N, C, h, w] some at a time: they stay in the cache until they have been
    read twice, and float32 errs less in sums of sums. In one layout: where those of slope and x differ, torch
    adds up in 16 bits."""
    like = tensor if like is None else like
    last = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last)
    tensor = tensor.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    return tensor.split(max(1, _PART // max(1, tensor[0, 0].numel())))


def _rows(x: torch.Tensor) -> list[int]:
    return [axis for axis in range(x.ndim) if axis != 1]


class _GroupStatistics(_BatchNorm):
    """Normalizes, in training, with the statistics of the joined batch of the group; mixed into a BatchNorm class."""

    group: Group | None  # None: this process alone

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, C] or [N, C, h, w]
        if not self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            y, mean, variance = _Normalize.apply(x, self.weight, self.bias, self.eps, self.group)
        ranks = 1 if self.group is None else self.group.size()
        self._track(mean, variance, ranks * x.numel() // x.shape[1])
        return y

    @torch.no_grad()
    def _track(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        # momentum None is torch's word for a plain mean over all batches
        weight = 1.0 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = variance * (count / max(count - 1, 1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), weight)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), weight)


class GroupBatchNorm1d(_GroupStatistics, nn.BatchNorm1d):
    """Is nn.BatchNorm1d over the joined batch of a group."""


class GroupBatchNorm2d(_GroupStatistics, nn.BatchNorm2d):
    """Is nn.BatchNorm2d over the joined batch of a group."""


def group_batchnorm(
    model: nn.Module, group: Group | None, device: torch.device, *, compiled: bool = False
) -> nn.Module:
    """Makes every batch norm of a model share its statistics over `group`, in place; None leaves the model alone.

    Parameters, buffers and their names stay; frozen ones (`models/surgery.py`) have no statistics to share. Every rank of
    the group must have the same number of images. compiled: torch.compile will read it.
    """
    if group is None:
        return model
    if device.type == "cuda" and not compiled:
        for module in list(model.modules()):
            for name, child in module.named_children():
                if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d):
                    setattr(module, name, nn.SyncBatchNorm.convert_sync_batchnorm(child, group))
        return model
    for module in model.modules():
        for plain, grouped in ((nn.BatchNorm1d, GroupBatchNorm1d), (nn.BatchNorm2d, GroupBatchNorm2d)):
            if type(module) is plain:
                module.__class__ = grouped
                module.group = group  # type: ignore[assignment]
    return model


def mean_of_sets(sets: torch.Tensor) -> torch.Tensor:
    """Returns, of a running statistic [G, ..] of G groups, the one [..] that stands for all."""
    return sets.double().mean(0).to(sets.dtype)


@torch.no_grad()
def mean_statistics(tensors: Mapping[str, torch.Tensor], world: Group | None, groups: int) -> dict[str, torch.Tensor]:
    """Returns the running statistics among a model's tensors, as the mean over `groups` groups of neighbouring
    ranks; {} for one group, which holds the same everywhere. The same on all ranks; one gather of all of them."""
    own = {name: t for name, t in tensors.items() if name.endswith(STATISTICS)}
    if world is None or groups == 1 or not own:
        return {}
    line = torch.cat([t.double().flatten() for t in own.values()])  # [n], exact for counters, too
    sets = all_gather_stack(line, world)[:: world.size() // groups]  # [G, n]
    parts = sets.split([t.numel() for t in own.values()], dim=1)
    return {
        name: mean_of_sets(part.view(groups, *t.shape).to(t.dtype))
        for (name, t), part in zip(own.items(), parts, strict=True)
    }


@contextmanager
def averaged(model: nn.Module, world: Group | None, groups: int) -> Iterator[None]:
    """Gives a model its `mean_statistics` inside this context; afterwards its own again, to the last bit."""
    buffers = dict(model.named_buffers())
    means = mean_statistics(buffers, world, groups)
    own = {name: buffers[name].clone() for name in means}
    with torch.no_grad():
        for name, mean in means.items():
            buffers[name].copy_(mean)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in own.items():
                buffers[name].copy_(value)
