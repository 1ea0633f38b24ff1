"""Batch norm whose statistics are those of a group of ranks.

On a GPU torch's own SyncBatchNorm does it. That refuses CPU tensors, so here the same arithmetic stands in a few lines
over differentiable collectives: gloo tests then cover the real model. torch.compile takes these on a GPU, too, in one graph:
SyncBatchNorm drops the rows of empty ranks, a shape that depends on data, and breaks the graph at each norm. Means and
variances of the ranks are joined by the parallel formula (variance of means plus mean of variances), not by sums of
squares, which cancel in float32.

Groups that differ hold running statistics of their own. Who wants one network of them (evaluation, a bundle, another
number of groups) takes the mean over the groups: `mean_statistics`.

Legend: N rows or images, C channels, R ranks of the group, G groups.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from seer.parallel.collectives import Group, all_gather_stack

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # how names of running statistics end


class _GroupStatistics(_BatchNorm):
    """Mixed into a BatchNorm class: in training, normalises with the statistics of the joined batch of the group."""

    group: Group

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # [N, C] or [N, C, h, w]
        if not self.training:
            return super().forward(x)
        axes = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        with torch.autocast(x.device.type, enabled=False):
            wide = x.float()
            variance, mean = torch.var_mean(wide, axes, correction=0)  # [C] each
            both = all_gather_stack(torch.stack([mean, variance]), self.group)  # [R, 2, C]
            mean = both[:, 0].mean(0)
            variance = both[:, 1].mean(0) + (both[:, 0] - mean).square().mean(0)
            self._track(mean.detach(), variance.detach(), len(both) * x.numel() // x.shape[1])
            scale = torch.rsqrt(variance + self.eps)
            if self.weight is not None:
                scale = scale * self.weight.float()
            y = (wide - mean.view(shape)) * scale.view(shape)
            if self.bias is not None:
                y = y + self.bias.float().view(shape)
        return y.to(x.dtype)

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
    """nn.BatchNorm1d over the joined batch of a group."""


class GroupBatchNorm2d(_GroupStatistics, nn.BatchNorm2d):
    """nn.BatchNorm2d over the joined batch of a group."""


def group_batchnorm(
    model: nn.Module, group: Group | None, device: torch.device, *, compiled: bool = False
) -> nn.Module:
    """Make every batch norm of a model share its statistics over `group`, in place; None leaves the model alone.

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
    """A running statistic [G, ..] of G groups -> the one [..] that stands for all."""
    return sets.double().mean(0).to(sets.dtype)


@torch.no_grad()
def mean_statistics(tensors: Mapping[str, torch.Tensor], world: Group | None, groups: int) -> dict[str, torch.Tensor]:
    """The running statistics among a model's tensors, as the mean over `groups` groups of neighbouring ranks; {} for one
    group, which holds the same everywhere. The same on all ranks; one gather of all of them."""
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
    """Inside, a model has `mean_statistics`; afterwards its own again, to the last bit."""
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
