"""16-bit arithmetic, loss scaling and clipping: what stands between a loss and an optimizer step."""

from contextlib import AbstractContextManager
from typing import Any

import torch

from seer.core.errors import RequestError

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

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        """Unscale, clip, step, zero. Returns the gradient norm before clipping, [] float32, on the device."""
        self.scaler.unscale_(optimizer)
        gradients = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if self.clip is not None:
            torch._foreach_mul_(gradients, (self.clip / (norm + 1e-6)).clamp(max=1.0))
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> dict[str, Any]:
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.scaler.load_state_dict(state)
