"""Exports a `.pte` for ExecuTorch with XNNPACK, float32 or int8: what runs on phones, checked in ExecuTorch's own runtime.

Surprising:
- A file takes one image a call: XNNPACK plans its memory for shapes that are known.
- Outputs come as a list in the order of the description's `outputs`; the format holds no names.
- A detector in int8 is refused: ExecuTorch 1.5.1 lowers it to a file that its own runtime does not run (error 0x10: it takes
  the edges of the coarsest cells for 2 x 4 where it has planned for 4 x 2).
- int8 is compared by what it decides, never by a tolerance: rounding ties alone move features by 6 to 14 % of the largest one
  between two runtimes. How far it agrees is told; what that costs in accuracy is measured on labelled images.
- The runtime opens a pool of threads for all cores whatever OMP_NUM_THREADS says, and writes remarks on the processor to stderr.
- executorch and torchao (541 MB with what they bring) are the extra `[device]`, imported here when asked for: 4 s.

Legend: N images, C channels, S side, Y classes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seer.core.errors import RequestError
from seer.core.log import log
from seer.export import parity, program_file
from seer.export.int8 import check_calibration, quantized
from seer.export.optional import needs
from seer.export.program import Given, Named, Program, compared, fed, joined, traced, without_traces, worst
from seer.export.unshare import unshared
from seer.models.families.family import Network
from seer.models.head_files import StoredHead

FILE = "model.pte"
TOLERANCE = 3e-5  # of float32
MODULES = ("executorch.exir", "executorch.runtime", "torchao.quantization.pt2e.quantize_pt2e")
LOW = 0.9  # cosine of int8 and float outputs below which a warning is due: networks of random weights reach 0.92


def export(
    backbone: Network,
    card: Mapping[str, Any],
    output: Path,
    pixels: Tensor,
    given: Given = "normalized",
    *,
    heads: Mapping[str, StoredHead] | None = None,
    names: Sequence[str] | None = None,
    calibration: Tensor | None = None,
    int8: bool = False,
) -> dict[str, Any]:
    """Writes `output` (a `.pte` file, else a folder that gets `model.pte`) and its description, checked in ExecuTorch's runtime.

    Args:
        backbone: any device; read, not changed.
        card: see `seer.models.bundle.write_bundle`.
        pixels: uint8 [N, C, S, S], for the comparison.
        given, heads, names: what the program is fed with and gives, see `Program`.
        calibration: uint8 [N, C, S, S], 32 or more like those of training, for int8.
        int8: weights per channel and activations in int8.

    Returns `file`, `described` (its JSON), `outputs`, `precision`, `pictures` and of float32 `parity` and `tolerance`, of int8
    `agreement`. Raises RequestError without the libraries, for too few images to calibrate with and for a detector in int8; ValueError
    where an output differs from that in float64 by more than 3e-5 of its largest value, and for int8 whose outputs are no numbers.
    """
    file = program_file.place(Path(output), FILE)
    with _quiet():
        needs("executorch", MODULES, install="'seer-pretrain[device]'")
    program = Program(backbone, card, given, heads, names)
    calibration = _calibrating(program, calibration) if int8 else None
    arena: list[int] = []
    told: dict[str, Any] = {
        "precision": "int8" if int8 else "fp32",
        "backend": "xnnpack",
        "batch": {"least": 1, "most": 1},
        "arena_bytes": arena,
        **({} if calibration is None else {"calibration": {"images": len(calibration)}}),
    }

    def check(made: Path) -> Mapping[str, Mapping[str, float]]:
        run = runner(made, program)
        if int8:
            return _agreed(run, program, pixels)
        found = compared(run, program, pixels, exact=True, batches=(1,))
        parity.require(worst(found), tolerance=TOLERANCE, what="the file in ExecuTorch's runtime")
        return found

    described = program_file.write(
        file,
        program,
        card,
        target="executorch",
        make=lambda made: arena.extend(_write(program, made, calibration)),
        check=check,
        tolerance=None if int8 else TOLERANCE,
        versions={name: version(name) for name in ("executorch", "torchao")},
        told=told,
    )
    return program_file.result(file, described, len(pixels), card, precision=described["precision"])


def _calibrating(program: Program, pixels: Tensor | None) -> Tensor:
    """Returns the images that calibrate. Raises RequestError for what has no int8 form that runs, and as `check_calibration`."""
    wrong = [one.head for one in program.outputs if one.head is not None and program.cards[one.head].kind == "detect"]
    if wrong:
        others = list(dict.fromkeys(one.head for one in program.outputs if one.head not in wrong)) or ["features"]
        raise RequestError(
            f"int8=true: the head {wrong[0]} is of kind detect, whose int8 file ExecuTorch's runtime does not run; int8=false, or "
            f"outputs=[{','.join(map(str, others))}] without it"
        )
    return check_calibration(program, pixels)


def load(file: str | Path) -> Callable[[Tensor], Named]:
    """Returns what runs a file that `export` wrote: images [N, C, S, S] as its description says -> outputs by name, one image
    after the other. Raises as `program_file.read` does, before the runtime sees a byte, and RequestError without executorch."""
    described = program_file.read(file)
    with _quiet():
        needs("executorch", MODULES[1:2], install="'seer-pretrain[device]'")
    return _method(Path(file), [one["name"] for one in described["outputs"]])


def runner(file: Path, program: Program) -> Callable[[Tensor], Named]:
    """Returns what runs a file that is being written."""
    return _method(file, [one.name for one in program.outputs])


def _method(file: Path, names: Sequence[str]) -> Callable[[Tensor], Named]:
    with _quiet():
        from executorch.runtime import Runtime

    loaded = Runtime.get().load_program(file)
    method = loaded.load_method("forward")

    def run(images: Tensor) -> Named:
        rows = []
        for one in images.contiguous().split(1):
            found = method.execute([one])
            rows.append(
                {name: value.clone() for name, value in zip(names, found, strict=True)}
            )  # its memory is used again
        return joined(rows)

    return run


def _write(program: Program, file: Path, calibration: Tensor | None) -> list[int]:
    """Lowers the program and writes its file; returns the bytes of the memory that it plans for, a number an arena."""
    with _quiet():
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        exported = _float(program) if calibration is None else quantized(program, calibration)
        lowered = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
        with open(file, "wb") as opened:
            lowered.write_to_file(opened)
    return [int(size) for size in lowered.executorch_program.execution_plan[0].non_const_buffer_sizes]


def _float(program: Program) -> Any:
    """Returns the `torch.export.ExportedProgram` of one image, in which no two convolutions share a weight."""
    with torch.no_grad():
        module = unshared(traced(program, batch=1).module())
        return without_traces(torch.export.export(module, (program.example(1),)))


def _agreed(run: Callable[[Tensor], Named], program: Program, pixels: Tensor) -> dict[str, dict[str, float]]:
    """Returns {output: figures} by which int8 agrees with the network in float32. Raises ValueError for outputs that are no
    numbers."""
    given, normalized = fed(program, pixels)
    with torch.no_grad():
        found = joined([run(one) for one in given.split(8)])
        wanted = joined([program.truth(one) for one in normalized.split(8)])
    figures: dict[str, dict[str, float]] = {}
    for one in program.outputs:
        here, there = found[one.name], wanted[one.name]
        if not here.isfinite().all():
            raise ValueError(f"int8: the output {one.name} holds values that are no numbers; nothing was kept")
        figures[one.name] = {"cosine": _cosine(here, there)}
        if one.head is not None and program.cards[one.head].kind in ("classify", "map"):
            figures[one.name]["argmax"] = (here.argmax(1) == there.argmax(1)).double().mean().item()
        if figures[one.name]["cosine"] < LOW:
            log.warning(
                f"int8: {one.name} has a cosine of {figures[one.name]['cosine']:.3f} to float, less than {LOW}: measure its accuracy "
                "before it is used"
            )
    return figures


def _cosine(found: Tensor, wanted: Tensor) -> float:
    """Returns the mean over images of the cosine of two outputs."""
    return torch.cosine_similarity(found.double().flatten(1), wanted.double().flatten(1)).mean().item()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps remarks of the libraries on themselves from the screen."""
    talkers = [logging.getLogger(name) for name in ("torch.utils._pytree", "executorch", "torchao", "root")]
    levels = [one.level for one in talkers]
    for one in talkers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(talkers, levels, strict=True):
            one.setLevel(level)
