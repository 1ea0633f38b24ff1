"""Counts what a network costs before it is built: parameters, multiply-adds, bytes of its weights, of the files that programs of
it will be, and of what one image keeps alive.

Surprising:
- The network is built and run on the meta device, where nothing is computed, so the largest one takes a second.
- A multiply-add (MAC) counts one, as papers on networks do, where torch's counter says two operations. Convolutions and matrix
  products alone are counted; batch norm, ReLU and sums are left out, as in those papers.
- Files are predicted for programs whose batch norms are folded, as exporters do: four files of ExecuTorch 1.5.1 (RegNetY-200MF and
  400MF, fp32 and int8 per channel, of 11.19, 15.63, 3.05 and 4.23 MB) are met within 1 %; an ONNX file is 3 % larger than the fp32 one.
- Live bytes are those of the order in which the network runs, in float32: a runtime may lay tensors out better, or keep more.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from seer.models import zoo

LAYER_BYTES = 850  # of a float layer in a file, besides its numbers: the graph around it
INT8_LAYER_BYTES = 2400  # with its quantization
INT8_CHANNEL_BYTES = 8  # of an output of an int8 layer: its scale and its bias, float32


def of(architecture: Mapping[str, Any], side: int) -> dict[str, int]:
    """Returns what an architecture costs.

    `parameters`; `macs` of one image of `side` pixels; `weight_bytes` in float32; `fp32_file_bytes` and `int8_file_bytes`, predicted;
    `live_bytes`: the most that lives at once of one image's activations, its pixels among them, in float32.
    """
    return dict(_counted(json.dumps(architecture, sort_keys=True), side))


@cache  # an export asks several times, and 400MF takes 0.4 s
def _counted(architecture: str, side: int) -> dict[str, int]:
    shape = json.loads(architecture)
    network = zoo.of(shape, device="meta").eval()
    images = torch.empty(1, shape.get("in_channels", 3), side, side, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images)
    state = network.state_dict().values()
    numbers = sum(tensor.numel() for tensor in state if tensor.is_floating_point())
    return {
        "parameters": numbers - _statistics(network),
        "macs": counter.get_total_flops() // 2,
        "weight_bytes": 4 * numbers,
        **_files(network),
        "live_bytes": _live(network, images),
    }


def _statistics(network: Any) -> int:
    return sum(buffer.numel() for buffer in network.buffers() if buffer.is_floating_point())


def _files(network: Any) -> dict[str, int]:
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    weights, outputs = sum(layer.weight.numel() for layer in layers), sum(len(layer.weight) for layer in layers)
    return {
        "fp32_file_bytes": 4 * (weights + outputs) + LAYER_BYTES * len(layers),
        "int8_file_bytes": weights + INT8_CHANNEL_BYTES * outputs + INT8_LAYER_BYTES * len(layers),
    }


class _Alive(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside it and still held. A storage counts once, whoever looks at it."""

    def __init__(self, *held: Tensor):
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()
        for one in held:
            self._count(one)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, Tensor):
                self._count(one)
        return made

    def _count(self, one: Tensor) -> None:
        storage = one.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _live(network: Any, images: Tensor) -> int:
    """Returns the most that lives at once in one pass. Changes the network: batch norms are folded and ReLUs done in place, as a
    program's are."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.Identity())
            elif isinstance(child, nn.ReLU):
                child.inplace = True
    with torch.no_grad(), _Alive(images) as alive:
        network(images)
    return alive.most
