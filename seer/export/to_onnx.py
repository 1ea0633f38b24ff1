"""Exports an ONNX file: one file, any batch, checked in onnxruntime.

Surprising:
- Batch norm is folded into the convolutions on the way, so features differ from torch's in the last digits (1e-5 of the largest);
  they are compared with those of the network in float64, since torch's own are as far from these.
- An ONNX file ends at 2 GB, since it is one protobuf message. Larger networks are refused: `to=torch_export` takes them.
- onnx, onnxruntime and onnxscript (what torch writes ONNX with) are the extra `[onnx]`, imported here when asked for.

Legend: N images, C channels, S side.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seer.core.errors import RequestError
from seer.export import parity, program_file
from seer.export.optional import needs
from seer.export.program import INPUT, Given, Program, compared, traced, worst
from seer.models import cost
from seer.models.families.family import Network
from seer.models.head_files import StoredHead

FILE = "model.onnx"
TOLERANCE = 3e-5
MOST_BYTES = 2**31 - 2**24  # of a protobuf message, less room for the graph
MODULES = ("onnx", "onnxruntime", "onnxscript")


def export(
    backbone: Network,
    card: Mapping[str, Any],
    output: Path,
    pixels: Tensor,
    given: Given = "normalized",
    *,
    heads: Mapping[str, StoredHead] | None = None,
    names: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Writes `output` (an `.onnx` file, else a folder that gets `model.onnx`) and its description, checked in onnxruntime.

    Args:
        backbone: any device; read, not changed.
        card: see `seer.models.bundle.write_bundle`.
        pixels: uint8 [N, C, S, S], for the comparison at batches of 1, 3 and 8.
        given, heads, names: what the program is fed with and gives, see `Program`.

    Returns `file`, `described` (its JSON), `outputs`, `opset`, `parity`, `tolerance`, `pictures`. Raises RequestError without the
    libraries or for a network of 2 GB or more, ValueError where an output differs from that in float64 by more than 3e-5 of its
    largest value.
    """
    file = program_file.place(Path(output), FILE)
    size = cost.of(backbone.architecture, card.get("input_size") or 224)["weight_bytes"]
    if size > MOST_BYTES:
        raise RequestError(
            f"to=onnx: these weights take {size / 1e9:.1f} GB, an ONNX file holds 2.1; to=torch_export and to=safetensors hold them"
        )
    needs("onnx", MODULES, install="'seer-pretrain[onnx]'")
    import onnx
    import onnxruntime
    import onnxscript

    program = Program(backbone, card, given, heads, names)
    opset: list[int] = []

    def check(made: Path) -> dict[str, dict[str, float]]:
        onnx.checker.check_model(str(made))
        opset.append(next(row.version for row in onnx.load(str(made)).opset_import if not row.domain))
        found = compared(_runner(made, program), program, pixels, exact=True)
        parity.require(worst(found), tolerance=TOLERANCE, what="the ONNX file in onnxruntime")
        return found

    described = program_file.write(
        file,
        program,
        card,
        target="onnx",
        make=lambda made: _write(program, made),
        check=check,
        tolerance=TOLERANCE,
        versions={one.__name__: one.__version__ for one in (onnx, onnxruntime, onnxscript)},
    )
    return program_file.result(file, described, len(pixels), card, opset=opset[0])


def session(file: str | Path) -> Any:
    """Returns onnxruntime's session on the CPU of a file that `export` wrote. Raises as `program_file.read` does, before the
    runtime sees a byte."""
    program_file.read(file)
    return _session(Path(file))


def _session(file: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of processors that it cannot name
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _runner(file: Path, program: Program) -> Any:
    loaded, names = _session(file), [one.name for one in program.outputs]

    def run(images: Tensor) -> dict[str, Tensor]:
        found = loaded.run(names, {INPUT: images.contiguous().numpy()})
        return {name: torch.from_numpy(one) for name, one in zip(names, found, strict=True)}

    return run


def _write(program: Program, file: Path) -> None:
    """Translates the program and writes it in one file."""
    with _quiet():
        translated = torch.onnx.export(
            traced(program),
            (),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[one.name for one in program.outputs],
        )
        assert translated is not None  # it is with dynamo=True
        translated.save(str(file), external_data=False)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the translator's remarks on operators that nobody asked for from the screen."""
    talker = logging.getLogger("torch.onnx")
    level = talker.level
    talker.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        talker.setLevel(level)
