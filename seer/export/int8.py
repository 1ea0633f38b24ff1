"""Quantizes a program to int8 for XNNPACK: weights per channel, activations by the range that images of the training data give.

Surprising:
- Per channel always: with one scale a tensor, depthwise and grouped convolutions lose whole channels (public figures: 69.0 per
  channel, 14.3 per tensor).
- Images that calibrate are to be like those of training, and never those that judge the program.
- What XNNPACK's quantizer does not know, such as the division by std, stays in float32.
- torchao and executorch are the extra `[device]`, imported here when asked for.

Legend: N images, C channels, S side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seer.core.errors import RequestError
from seer.export.program import Program, traced, without_traces
from seer.export.unshare import unshared

LEAST = 32  # images that ranges are taken from; fewer leave out the tails


def check_calibration(program: Program, pixels: Tensor | None) -> Tensor:
    """Returns the images that calibrate. Raises RequestError where they are too few, or of other sides or channels."""
    wanted = [program.channels, program.side, program.side]
    found = 0 if pixels is None else len(pixels)
    if pixels is None or found < LEAST:
        raise RequestError(
            f"int8=true: {found} images to calibrate with, at least {LEAST} are wanted; give calibration= images like those of training"
        )
    if list(pixels.shape[1:]) != wanted:
        raise RequestError(f"int8=true: images of {list(pixels.shape[1:])} where the program takes {wanted}")
    return pixels


def quantized(program: Program, pixels: Tensor) -> Any:
    """Returns the `torch.export.ExportedProgram` of one image with int8 inside and the program's own input and outputs.

    pixels: uint8 [N, C, S, S], that calibrate. About 20 s of processor time for a small network, 260 s for RegNetY-400MF,
    lowering included.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    given = program.feed(check_calibration(program, pixels))
    with torch.no_grad():
        observed = prepare_pt2e(unshared(traced(program, batch=1).module()), quantizer)
        for one in given.split(1):
            observed(one)
        converted = convert_pt2e(observed)
        return without_traces(torch.export.export(converted, (program.example(1),)))
