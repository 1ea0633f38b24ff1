"""LARS as SEER trained: layer-wise rates on top of SGD with momentum.

This is the arithmetic of apex's LARC with `clip=False`, in one optimizer (a wrapper around another optimizer is what
broke loss scaling and resume). For each tensor p with gradient g, decay wd, rate eta (the trust coefficient):

    ratio = eta |p| / (|g| + wd |p| + eps)        g' = ratio (g + wd p)        but g' = g when |p| = 0 or |g| = 0
    m = momentum m + g'                           p = p - lr m

Surprising here:

- When a norm is zero there is neither ratio nor decay: a bias that starts at 0 takes its first step at the full lr.
- Nothing is excluded by itself: SEER trusts and decays batch-norm weights and biases too. A parameter group with
  `adapt=False` is plain SGD (g' = g + wd p).
- lr stays outside the momentum buffer (the LARS paper puts it inside): lr may change without the buffer going stale.
- Gradients must be unscaled; torch.amp.GradScaler.step does that by itself.
- No number visits the host. With |g| = 0, g is all zeros, so a ratio of 0 gives g' = g; with |p| = 0 the decay adds
  nothing, so a ratio of 1 does: two `where` on the vector of norms and no branch.
- Sharded parameters (DTensor): the norms are of the whole tensors, through one all-reduce for all of them; the rest is
  elementwise and runs on the local shards. Every rank must have the same parameters with gradients.

Letters: N tensors of one parameter group that have gradients and share device, dtype and sharding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor

__all__ = ["LARS"]


class LARS(torch.optim.Optimizer):
    """Layer-wise adaptive rate scaling (arXiv 1708.03888, in apex's variant, see above).

    params             tensors or parameter groups; a group may override each argument below, and `adapt`
    lr                 learning rate, outside the momentum; SEER: 0.3 per 256 images
    momentum           0.9
    weight_decay       multiplied into g' by the ratio too; SEER: 1e-5
    trust_coefficient  eta
    eps                added to the denominator of the ratio
    adapt (group key)  True; False makes the group plain SGD

    Parameters whose grad is None are left alone: no decay, no momentum. ValueError for negative arguments.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        eps: float = 1e-8,
    ) -> None:
        given = dict(lr=lr, momentum=momentum, weight_decay=weight_decay, trust_coefficient=trust_coefficient, eps=eps)
        for name, value in given.items():
            if not value >= 0:
                raise ValueError(f"{name} is {value}; LARS takes nothing below 0")
        if momentum >= 1:
            raise ValueError(f"momentum is {momentum}; from 1 on the buffer never forgets, stay below (SEER: 0.9)")
        super().__init__(params, {**given, "adapt": True})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update from the gradients, which stay as they are. `closure` as in torch.optim; its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameters in _alike(group["params"]):
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:  # zeros, so that the first step gives m = g'
                self.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        decay = group["weight_decay"]
        weights = [_local(p) for p in parameters]
        gradients = [_local(p.grad) for p in parameters if p.grad is not None]
        buffers = [_local(self.state[p]["momentum_buffer"]) for p in parameters]

        torch._foreach_mul_(buffers, group["momentum"])
        if group["adapt"]:
            ratios = _trust_ratios(parameters, decay, group["trust_coefficient"], group["eps"])  # [N]
            torch._foreach_addcmul_(buffers, gradients, list(ratios.unbind()))
            if decay:
                torch._foreach_addcmul_(buffers, weights, list((ratios * decay).unbind()))
        else:
            torch._foreach_add_(buffers, gradients)
            if decay:
                torch._foreach_add_(buffers, weights, alpha=decay)
        torch._foreach_add_(weights, buffers, alpha=-group["lr"])


def _trust_ratios(parameters: list[Tensor], decay: float, trust_coefficient: float, eps: float) -> Tensor:
    """eta |p| / (|g| + decay |p| + eps) for N tensors -> [N] in their dtype; 1 where |p| = 0, 0 where |g| = 0."""
    norms = torch.stack(torch._foreach_norm(parameters + [p.grad for p in parameters if p.grad is not None]))  # [2N]
    if hasattr(norms, "full_tensor"):
        norms = norms.full_tensor()
    if norms.dtype in (torch.float16, torch.bfloat16):
        norms = norms.float()
    weight, gradient = norms.chunk(2)  # [N], [N]
    ratios = trust_coefficient * weight / (gradient + decay * weight + eps)
    ratios = torch.where(weight == 0, 1.0, ratios)
    return torch.where(gradient == 0, 0.0, ratios).to(parameters[0].dtype)


def _alike(parameters: list[Tensor]) -> Iterable[list[Tensor]]:
    """The parameters that have gradients, in lists that one _foreach call can take."""
    alike: dict[Any, list[Tensor]] = {}
    for p in parameters:
        if p.grad is not None:
            sharding = (getattr(p, "device_mesh", None), getattr(p, "placements", None))
            alike.setdefault((p.device, p.dtype, *sharding), []).append(p)
    return alike.values()


def _local(tensor: Tensor) -> Tensor:
    """The shard that this rank holds of a DTensor, as a view; any other tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
