"""Steps by LARS as SEER trained: layer-wise rates on top of SGD with momentum.

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
- No number of a GPU visits the host. With |g| = 0, g is all zeros, so a ratio of 0 gives g' = g; with |p| = 0 the decay
  adds nothing, so a ratio of 1 does: two `where` on the vector of norms and no branch.
- m and p are updated by torch's fused SGD, in one traversal. On a CPU, where reading a number costs nothing, 1 - ratio is
  its dampening, tensor by tensor; on a GPU one call takes all tensors, whose gradients are first turned into g' in place.
- `found_inf`, a [] float32 tensor that somebody has set on the optimizer (as torch's GradScaler does for fused ones),
  masks the whole step where it is computed: at 1, parameters and momentum stay as they are.
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

_NO_MOMENTUM = torch.finfo(torch.float32).tiny  # at 0 the kernel takes no buffers, and forgets the dampening


class LARS(torch.optim.Optimizer):
    """Scales rates layer by layer (arXiv 1708.03888, in apex's variant, see above).

    params             tensors or parameter groups; a group may override each argument below, and `adapt`
    lr                 learning rate, outside the momentum; SEER: 0.3 per 256 images
    momentum           share of the last update that is kept
    weight_decay       multiplied into g' by the ratio too; SEER: 1e-5
    trust_coefficient  eta: the length of an update over that of the weights, at rate 1
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
        self._step_supports_amp_scaling = True  # torch's mark of optimizers that heed found_inf
        self.ratios: list[Tensor] = []  # of the last step's adapted tensors: each [N], on their device

    def metrics(self) -> dict[str, Tensor]:
        """Returns {"trust/smallest", "trust/median", "trust/largest": [] float32} over the last step's adapted tensors, on their
        device; {} where nothing was adapted. Tensors without a gradient of any size (ratio 0) do not count."""
        if not self.ratios:
            return {}
        ratios = torch.cat([r.float() for r in self.ratios])  # [all N]
        counted = torch.where(ratios > 0, ratios, torch.nan)
        smallest = torch.where(ratios > 0, ratios, torch.inf).amin()
        return {"trust/smallest": smallest, "trust/median": counted.nanmedian(), "trust/largest": ratios.amax()}

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Makes one update from the gradients, which a GPU's update overwrites. `closure` as in torch.optim;
        its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found = getattr(self, "found_inf", None)
        self.ratios = []
        for group in self.param_groups:
            for parameters in _alike(group["params"]):
                for p in parameters:
                    if "momentum_buffer" not in self.state[p]:  # zeros, so that the first step gives m = g'
                        self.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                update = _on_cpu if parameters[0].device.type == "cpu" else _on_device
                ratios = _ratios(parameters, group)  # [N]
                if group["adapt"]:
                    self.ratios.append(ratios)
                update(parameters, [self.state[p]["momentum_buffer"] for p in parameters], ratios, group, found)
        return loss


def _on_cpu(
    parameters: list[Tensor], buffers: list[Tensor], ratios: Tensor, group: dict[str, Any], found: Tensor | None
) -> None:
    if found is not None and found.item():
        return
    for p, buffer, ratio in zip(parameters, buffers, ratios.tolist(), strict=True):
        options = {"weight_decay": group["weight_decay"], "dampening": 1.0 - ratio}
        _fused([_local(p)], [_local(p.grad)], [_local(buffer)], group, **options)  # type: ignore[arg-type]


def _on_device(
    parameters: list[Tensor], buffers: list[Tensor], ratios: Tensor, group: dict[str, Any], found: Tensor | None
) -> None:
    weights = [_local(p) for p in parameters]
    gradients = [_local(p.grad) for p in parameters]  # type: ignore[arg-type]
    torch._foreach_mul_(gradients, list(ratios.unbind()))
    if group["weight_decay"]:
        torch._foreach_addcmul_(gradients, weights, list((ratios * group["weight_decay"]).unbind()))
    found = None if found is None else found.to(weights[0].device)
    _fused(weights, gradients, [_local(b) for b in buffers], group, weight_decay=0.0, dampening=0.0, found_inf=found)


def _fused(
    weights: list[Tensor], gradients: list[Tensor], buffers: list[Tensor], group: dict[str, Any], **options: Any
) -> None:
    """Updates by m = momentum m + (1 - dampening) (g + weight_decay p), p = p - lr m. The kernel wants equal
    strides of the three; they differ for a momentum that was saved in another memory format, and where a side
    has length 1."""
    alike = [
        [t if t.stride() == w.stride() else torch.empty_like(w).copy_(t) for t, w in zip(tensors, weights, strict=True)]
        for tensors in (gradients, buffers)
    ]
    torch._fused_sgd_(
        weights,
        *alike,
        momentum=group["momentum"] or _NO_MOMENTUM,
        lr=group["lr"],
        nesterov=False,
        maximize=False,
        is_first_step=False,
        **options,
    )
    for buffer, used in zip(buffers, alike[1], strict=True):
        if used is not buffer:
            buffer.copy_(used)


def _ratios(parameters: list[Tensor], group: dict[str, Any]) -> Tensor:
    """Returns what multiplies g + wd p, for N tensors -> [N] in their dtype: the trust ratios, 1 where nothing
    is to be adapted."""
    if not group["adapt"]:
        return torch.ones(len(parameters), dtype=parameters[0].dtype, device=parameters[0].device)
    return _trust_ratios(parameters, group["weight_decay"], group["trust_coefficient"], group["eps"])


def _trust_ratios(parameters: list[Tensor], decay: float, trust_coefficient: float, eps: float) -> Tensor:
    """Returns eta |p| / (|g| + decay |p| + eps) for N tensors -> [N] in their dtype; 1 where |p| = 0, 0 where
    |g| = 0."""
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
    """Returns the parameters that have gradients, in lists that one _foreach call can take."""
    alike: dict[Any, list[Tensor]] = {}
    for p in parameters:
        if p.grad is not None:
            sharding = (getattr(p, "device_mesh", None), getattr(p, "placements", None))
            alike.setdefault((p.device, p.dtype, *sharding), []).append(p)
    return alike.values()


def _local(tensor: Tensor) -> Tensor:
    """Returns the shard that this rank holds of a DTensor, as a view; any other tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
