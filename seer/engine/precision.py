"""16-bit arithmetic, loss scaling, clipping and non-finite numbers: what stands between a loss and an optimizer step.

Surprising here: a step whose loss or gradient is not finite must change nothing, and the host must not wait for the
device to tell. So the update is masked where it is computed: optimizers that can (ours, and torch's with fused=true; they
say so by `_step_supports_amp_scaling`, torch's own private mark, which a test watches) get the flag as `found_inf`, a
tensor; for others the flag is read, which costs a GPU one wait a step. The flag stays up once it is up, so that weights are
those of the broken step until `numerics.Guard` has read it, one step later. With fp16 an overflowing gradient is part of
the loss scale's search and masks its own step alone.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch

from seer.core.errors import RequestError
from seer.parallel.collectives import Group, all_reduce_sum

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """dtype: fp32, bf16, or fp16 (with loss scaling, GPU only). clip: largest gradient norm over all parameters, or None.

    Parameters stay float32. Raises RequestError for another dtype, or a clip that is not above 0.
    """

    def __init__(self, device: torch.device, dtype: str = "fp32", clip: float | None = None):
        if dtype not in DTYPES:
            raise RequestError(f"precision.dtype={dtype}: one of {', '.join(DTYPES)}")
        if dtype == "fp16" and device.type == "cpu":
            raise RequestError("precision.dtype=fp16 needs a GPU; use bf16 or fp32 on a CPU")
        if clip is not None and not clip > 0:
            raise RequestError(f"precision.clip={clip}: above 0, or null for no clipping")
        self.device, self.dtype, self.clip = device, DTYPES[dtype], clip
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == "fp16")
        self.broken = torch.zeros((), device=device)  # [] float32: 1 from the first step with a non-finite number on

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer, loss: torch.Tensor, group: Group | None = None) -> torch.Tensor:
        """Unscale, clip, step unless a number is not finite, zero. Gradients are those of all ranks; loss [] of this one.

        Returns the gradient norm before clipping, [] float32, on the device. One all-reduce of [] in a group.
        """
        self.scaler.unscale_(optimizer)
        gradients = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if hasattr(norm, "full_tensor"):  # sharded parameters
            norm = norm.full_tensor()
        if self.clip is not None:
            torch._foreach_mul_(gradients, (self.clip / (norm + 1e-6)).clamp(max=1.0))
        overflow = norm.isfinite().logical_not()
        wrong = loss.detach().isfinite().logical_not()
        if not self.scaler.is_enabled():
            wrong = wrong | overflow
        self.broken = torch.maximum(self.broken, all_reduce_sum(wrong.float(), group).clamp(max=1.0))
        self._update(optimizer, torch.maximum(self.broken, overflow.float()))
        if self.scaler.is_enabled():
            self.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def _update(self, optimizer: torch.optim.Optimizer, masked: torch.Tensor) -> None:
        """masked: [] float32, 0 to step, 1 to leave everything as it is."""
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = masked  # type: ignore[attr-defined]
            optimizer.step()
            del optimizer.found_inf  # type: ignore[attr-defined]
        elif not masked.item():
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scaler.load_state_dict(state)
