"""Counts what a network costs before it is built: parameters, multiply-adds, bytes of its weights.

Surprising:
- The network is built and run on the meta device, where nothing is computed, so the largest one takes a second.
- A multiply-add (MAC) counts one, as papers on networks do, where torch's counter says two operations. Convolutions and matrix
  products alone are counted; batch norm, ReLU and sums are left out, as in those papers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from seer.models import zoo


def of(architecture: Mapping[str, Any], side: int) -> dict[str, int]:
    """Returns `parameters`, `macs` of one image of `side` pixels, and `weight_bytes` in float32, of an architecture."""
    network = zoo.of(architecture, device="meta").eval()
    images = torch.empty(1, architecture.get("in_channels", 3), side, side, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images)
    state = network.state_dict().values()
    return {
        "parameters": sum(tensor.numel() for tensor in state if tensor.is_floating_point()) - _statistics(network),
        "macs": counter.get_total_flops() // 2,
        "weight_bytes": sum(4 * tensor.numel() for tensor in state if tensor.is_floating_point()),
    }


def _statistics(network: Any) -> int:
    return sum(buffer.numel() for buffer in network.buffers() if buffer.is_floating_point())
