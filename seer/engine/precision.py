"""Takes a loss to an optimizer step: 16-bit arithmetic, loss scaling, clipping and non-finite numbers.

Surprising here: a step whose loss or gradient is not finite must change nothing, and the host must not wait for the
device to tell. So the update is masked where it is computed: optimizers that can (ours, and torch's with fused=true; they
say so by `_step_supports_amp_scaling`, torch's own private mark, which a test watches) get the flag as `found_inf`, a
tensor; for others the flag is read, which costs a GPU one wait a step. The flag stays up once it is up, so that weights are
those of the broken step until `numerics.Guard` has read it, one step later.

With fp16 an overflowing gradient is part of the loss scale's search and masks its own step alone; these steps are counted
on the device, and more than MOST_SKIPPED in a row are no search any more: the flag goes up. On a CPU fp16 gives the same
arithmetic for tests, and is slow.
"""

import functools
import importlib
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from seer.core.errors import RequestError
from seer.core.log import log
from seer.parallel.collectives import Group, all_reduce_sum

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BF16_FLAGS = ("avx512_bf16", "amx_bf16")  # of x86 processors that multiply bfloat16
MOST_SKIPPED = 20  # steps in a row that fp16 may skip: 65536 (torch's first scale) is below 1 after 17 halvings


def default_dtype(device: torch.device) -> str:
    """Returns bf16 where the device has instructions for it, else fp32: by emulation steps take several times as long.

    torch says of every processor with AVX-512 that it supports bfloat16, also of those that emulate it (RegNetY-400MF trained
    at 4.5 instead of 7.7 images/s on one). So an x86 processor is asked by its flags; any other one has to show it.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    if not torch.backends.mkldnn.is_available():
        return "fp32"
    flags = _x86_flags()
    quick = _quicker_in_bf16() if flags is None else not flags.isdisjoint(BF16_FLAGS)
    return "bf16" if quick else "fp32"


def _x86_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str] | None:
    """Returns what an x86 Linux says of its first processor; None anywhere else."""
    try:
        with open(cpuinfo, encoding="utf-8", errors="replace") as file:
            line = next((line for line in file if line.startswith("flags")), None)
    except OSError:
        return None
    return None if line is None else frozenset(line.partition(":")[2].split())


@functools.cache
def _quicker_in_bf16() -> bool:
    """Measures a convolution both ways, in turn: some milliseconds, once a process."""
    image, kernel = torch.randn(8, 64, 28, 28), torch.randn(64, 64, 3, 3)
    pairs = {dtype: (image.to(dtype), kernel.to(dtype)) for dtype in (torch.float32, torch.bfloat16)}
    times: dict[torch.dtype, list[float]] = {dtype: [] for dtype in pairs}
    for _ in range(6):
        for dtype, (x, w) in pairs.items():
            start = time.perf_counter()
            torch.nn.functional.conv2d(x, w, padding=1)
            times[dtype].append(time.perf_counter() - start)
    return min(times[torch.bfloat16][1:]) < min(times[torch.float32][1:])


class Precision:
    """Steps an optimizer in a precision.

    dtype  fp32, bf16, fp16 (with loss scaling), or auto: bf16 where the device has instructions for it
    clip   largest gradient norm over all parameters; null = any

    Parameters stay float32. `history`: in fp16 [MOST_SKIPPED + 1, 2] float32, loss scale and gradient norm of the last steps,
    oldest first, zeros before there were so many; else None. Raises RequestError for another dtype, or a clip that is not above 0.
    """

    def __init__(self, device: torch.device, dtype: str = "fp32", clip: float | None = None):
        if dtype == "apex_o1":
            raise RequestError(
                f"precision.dtype=apex_o1: {_apex_here()}; apex has had no amp since May 2025; precision=fp16 is torch's own, with "
                "the same casts and loss scaling, and precision=bf16 needs no scaling"
            )
        if dtype == "auto":
            dtype = default_dtype(device)
        if dtype not in DTYPES:
            raise RequestError(f"precision.dtype={dtype}: one of auto, {', '.join(DTYPES)}")
        if dtype == "fp16" and device.type == "cpu":
            log.warning(
                f"precision.dtype=fp16 on a CPU is for tests: slower than fp32; this one is quick in {default_dtype(device)}"
            )
        if dtype == "bf16" and default_dtype(device) != "bf16":
            log.warning(
                f"precision.dtype=bf16: this {'CPU' if device.type == 'cpu' else 'GPU'} has no bfloat16 instructions and takes "
                "several times as long as in fp32; precision=auto takes what the device is quick in"
            )
        if clip is not None and not clip > 0:
            raise RequestError(f"precision.clip={clip}: above 0, or null for no clipping")
        self.device, self.dtype, self.clip = device, DTYPES[dtype], clip
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == "fp16")
        self.broken = torch.zeros((), device=device)  # [] float32: 1 from the first step with a non-finite number on
        self._skipped = torch.zeros(2, device=device)  # steps that fp16 has skipped: of the run, and in a row
        scaled = self.scaler.is_enabled()
        self.history = torch.zeros(MOST_SKIPPED + 1, 2, device=device) if scaled else None

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer, loss: torch.Tensor, group: Group | None = None) -> torch.Tensor:
        """Unscales, clips, steps unless a number is not finite, and zeroes gradients. These are those of all
        ranks; loss [] of this one.

        Returns the gradient norm before clipping, [] float32, on the device. One all-reduce of [] in a group.
        """
        self.scaler.unscale_(optimizer)
        gradients = [p.grad for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if hasattr(norm, "full_tensor"):  # sharded parameters
            norm = norm.full_tensor()
        if getattr(optimizer, "gradients_shared_out", False):  # each on one rank
            norm = all_reduce_sum(norm.square(), group).sqrt()
        if self.clip is not None:
            torch._foreach_mul_(gradients, (self.clip / (norm + 1e-6)).clamp(max=1.0))
        overflow = norm.isfinite().logical_not()
        wrong = loss.detach().isfinite().logical_not()
        if not self.scaler.is_enabled():
            wrong = wrong | overflow
        else:
            wrong = wrong | self._count(overflow, norm)
        self.broken = torch.maximum(self.broken, all_reduce_sum(wrong.float(), group).clamp(max=1.0))
        self._update(optimizer, torch.maximum(self.broken, overflow.float()))
        if self.scaler.is_enabled():
            self.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def _update(self, optimizer: torch.optim.Optimizer, masked: torch.Tensor) -> None:
        """Steps the optimizer unless masked. masked: [] float32, 0 to step, 1 to leave everything as it is."""
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = masked  # type: ignore[attr-defined]
            optimizer.step()
            del optimizer.found_inf  # type: ignore[attr-defined]
        elif not masked.item():
            optimizer.step()

    def _count(self, overflow: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """Keeps the books of loss scaling; returns [] bool, whether too many steps were skipped in a row."""
        scale = self.scaler._scale  # a tensor on the device; get_scale() would wait for it
        assert scale is not None and self.history is not None
        self.history = torch.cat([self.history[1:], torch.stack([scale.reshape(()), norm.float()])[None]])
        self._skipped = torch.stack([self._skipped[0] + overflow, (self._skipped[1] + 1) * overflow])
        return self._skipped[1] > MOST_SKIPPED

    def numbers(self) -> dict[str, torch.Tensor]:
        """Returns, in fp16, of the last step: loss_scale it was taken with, skipped_steps so far,
        skipped_in_a_row; all [] float32."""
        if self.history is None:
            return {}
        values = (self.history[-1, 0], *self._skipped.unbind())
        return dict(zip(("loss_scale", "skipped_steps", "skipped_in_a_row"), values, strict=True))

    def start_at(self, scale: float) -> None:
        """Uses this loss scale for the next step (`engine.replay`)."""
        self.scaler.load_state_dict({**self.scaler.state_dict(), "scale": scale})

    def state_dict(self) -> dict[str, Any]:
        if self.history is None:
            return {}
        return {**self.scaler.state_dict(), "skipped": self._skipped, "history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Loads a state, also one of a run that kept no books of what it skipped."""
        books = {name: state[name].to(self.device) for name in ("skipped", "history") if name in state}
        self.scaler.load_state_dict({name: value for name, value in state.items() if name not in books})
        if self.history is not None and books:
            self._skipped, self.history = books["skipped"], books["history"]


def _apex_here() -> str:
    """Returns what an import says of apex and its amp."""
    for name, found in (("apex", "no apex can be imported here"), ("apex.amp", "the apex that is here has no amp")):
        try:
            importlib.import_module(name)
        except Exception as error:  # an old one may fail in many ways beside a new torch
            return f"{found} ({type(error).__name__}: {error})"
    return "there is an apex with amp here, but SEER does not drive it"
