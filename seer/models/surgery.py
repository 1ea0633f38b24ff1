"""Changes a network before it trains: Module -> Module, named in `surgery.steps`, done in order after `weights=`.

A config may name any public function that is defined in this package and takes a module first. Parameters keep their names
and shapes unless the function is about them, so that bundles and exports still know the network.
"""

from __future__ import annotations

from torch import nn


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Normalizes with its running statistics and never moves them, whatever mode the network is in."""

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        super().train(False)
        return self


def freeze_batch_norm(model: nn.Module) -> nn.Module:
    """Keeps the batch norms of a network with trained statistics as they are, affine parameters too; in place.

    For going on from trained weights with few images a step, where statistics of the batch would be noise. Tensors keep
    their names. Ranks do not share the statistics of these layers (`parallel.batch_norm_group`): there is nothing to share.
    """
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = FrozenBatchNorm2d
            module.eval()
            module.requires_grad_(False)
    return model


def freeze(model: nn.Module) -> nn.Module:
    """Keeps a network whole as it is, its statistics too; in place. What stands on it learns alone, and no gradient is made in it."""
    model.requires_grad_(False)
    return freeze_batch_norm(model)
