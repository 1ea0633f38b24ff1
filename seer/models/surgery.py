"""Changes a network before it trains: Module -> Module, named in `surgery.steps`, done in order after `weights=`.

A config may name any public function that is defined in this package and takes a module first. Parameters keep their names
and shapes unless the function is about them, so that bundles and exports still know the network.
"""

from __future__ import annotations

from typing import Self

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class Frozen(nn.Module):
    """Stays in evaluation mode, whatever mode the network is in; mixed into a class of batch norm."""

    def train(self, mode: bool = True) -> Self:
        super().train(False)
        return self


class FrozenBatchNorm2d(Frozen, nn.BatchNorm2d):
    """Normalizes with its running statistics and never moves them, whatever mode the network is in."""


def _frozen(kind: type[_BatchNorm]) -> type[_BatchNorm]:
    """Returns the class of batch norms of a kind that never move: of other libraries' as well, which do more than normalize."""
    return FrozenBatchNorm2d if kind is nn.BatchNorm2d else type(f"Frozen{kind.__name__}", (Frozen, kind), {})


def freeze_batch_norm(model: nn.Module) -> nn.Module:
    """Keeps the batch norms of a network with trained statistics as they are, affine parameters too; in place.

    For going on from trained weights with few images a step, where statistics of the batch would be noise. Tensors keep
    their names. Ranks do not share the statistics of these layers (`parallel.batch_norm_group`): there is nothing to share.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm) and not isinstance(module, Frozen):
            module.__class__ = _frozen(type(module))
            module.eval()
            module.requires_grad_(False)
    return model


def freeze(model: nn.Module) -> nn.Module:
    """Keeps a network whole as it is, its statistics too; in place. What stands on it learns alone, and no gradient is made in it."""
    model.requires_grad_(False)
    return freeze_batch_norm(model)
