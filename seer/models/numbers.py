"""Checks that weights are numbers, in one place for warm starts, evaluation and export: the same words for the same fault.

Surprising: every value is read once, which a weights file is anyway when it is copied.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from seer.core.errors import RequestError


class UnusableNumbersError(RequestError):
    """Says that tensors of the right names and shapes hold nothing to compute with: exit 78."""


def check_numbers(weights: Mapping[str, Any], *, what: str) -> None:
    """Raises UnusableNumbersError that names the first tensors without usable numbers, by their fault."""
    found: dict[str, list[str]] = {}
    for name, value in weights.items():
        if fault := fault_of(value):
            found.setdefault(fault, []).append(name)
    if found:
        count = sum(map(len, found.values()))
        told = [f"{_first(names)}: {fault}" for fault, names in found.items()]
        more = f"; and {len(told) - 5} faults more" if len(told) > 5 else ""
        raise UnusableNumbersError(
            f"{what} cannot be used, {count} of {len(weights)} tensors hold no usable numbers: {'; '.join(told[:5])}{more}. "
            "Give weights of finite floating-point numbers"
        )


def _first(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def fault_of(value: Any) -> str | None:
    """Returns what is wrong with the numbers of a tensor, or None."""
    if not isinstance(value, Tensor):
        return f"no tensor but a {type(value).__name__}"
    if value.is_meta:
        return "on the meta device, which keeps shapes and no numbers"
    if not value.numel():
        return f"empty, {list(value.shape)}"
    if not value.is_floating_point():
        return None  # a counter; that a weight is one is told where dtypes are compared
    held = value.detach()
    held = held if held.itemsize >= 2 else held.float()  # not all operations know 8-bit floats
    # a sum of anything not finite is not finite, and costs a fifth; one that is not may also have overflowed
    if math.isfinite(held.sum(dtype=torch.promote_types(held.dtype, torch.float32)).item()):
        return None
    finite = torch.isfinite(held)
    if bool(finite.all()):
        return None
    nan = int(torch.isnan(held).sum())
    infinite = int((~finite).sum()) - nan
    counts = [f"{count} {name}" for count, name in ((nan, "NaN"), (infinite, "infinite")) if count]
    return f"{' and '.join(counts)} of {value.numel()} values"
