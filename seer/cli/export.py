"""Runs `seer export`: a backbone that loads elsewhere. Every target reads back what it wrote and compares features.

Surprising: `to=all` goes on after a failing target, so that the table shows all of them, and then ends as that failure does.
"""

import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seer.core import schema
from seer.core.budget import Budget
from seer.core.errors import RequestError, StorageError
from seer.core.log import log
from seer.data import synthetic as sample
from seer.data.augment import normalize
from seer.data.decode import decode
from seer.data.shards.open import open_shards
from seer.data.shards.shard import image_of
from seer.evals.features import center
from seer.export import (
    gate,
    push,
    to_executorch,
    to_huggingface,
    to_onnx,
    to_safetensors,
    to_timm,
    to_torch_export,
    to_torchvision,
)
from seer.export.optional import NotInstalledError
from seer.export.program import Given
from seer.models.families.family import Network
from seer.run.exported_heads import heads_with, trained_on
from seer.run.weights import channels_of, pixels_of, state

# (backbone, card, output, images normalized) -> what was written
TARGETS: dict[str, Callable[..., dict[str, Any]]] = {
    "torchvision": to_torchvision.export,
    "timm": to_timm.export,
    "huggingface": to_huggingface.export,
    "safetensors": to_safetensors.export,
}
# (backbone, card, output, uint8 images, what the program is fed with, heads=, names=) -> what was written
PROGRAMS: dict[str, Callable[..., dict[str, Any]]] = {
    "torch_export": to_torch_export.export,
    "onnx": to_onnx.export,
    "executorch": to_executorch.export,
}
_SHOWN = (
    "file",
    "bundle",
    "described",
    "outputs",
    "precision",
    "timm",
    "opset",
    "parity",
    "agreement",
    "tolerance",
    "block_params",
    "resnet",
    "budget",
)


class TargetsFailedError(RuntimeError):
    """Says that some targets of `to=all` failed: the status is that of the worst of them, the result has the
    whole table."""

    def __init__(self, message: str, exit_status: int, result: dict[str, Any]):
        super().__init__(message)
        self.exit_status, self.result = exit_status, result


def run(settings: dict[str, Any], output: list[Path]) -> dict[str, Any]:
    """Returns the file and its parity for the JSON line. Raises RequestError for a target that cannot hold what is asked for."""
    to, given = settings["to"], _given(settings)
    if settings["pictures"] < 1:
        raise RequestError(f"pictures={settings['pictures']}: at least one for the parity check")
    to_hub = _destination(settings)
    weights = state(settings["weights"])
    backbone, card = weights.backbone, weights.card
    if settings["licence"]:
        card["licence"] = settings["licence"]
    pixels = _pixels(settings["source"], settings["pictures"], backbone, card)
    normalized = normalize(pixels.float().div_(255), card["mean"], card["std"])
    programs: dict[str, Any] = {"names": settings["outputs"]}
    if to in (*PROGRAMS, "all"):
        programs["heads"] = heads_with(settings["weights"], weights)
    quantized = {"int8": True, "calibration": _calibration(settings, backbone, card)} if settings["int8"] else {}

    budget = schema.read(Budget, settings["budget"], "budget.")

    def write(target: str, place: Path) -> dict[str, Any]:
        more = quantized if target == "executorch" else {}

        def export(made: Path) -> dict[str, Any]:
            if target in PROGRAMS:
                return PROGRAMS[target](backbone, card, made, pixels, given, **programs, **more)
            return TARGETS[target](backbone, card, made, normalized)

        whole = target not in PROGRAMS or not programs["heads"]  # else it may be cut to the stages that heads read
        form = "int8" if more else "float32"
        return gate.write_within(budget, place, export, backbone.architecture, card["input_size"], form, whole=whole)

    if to == "all":
        return _all(write, Path(settings["output"]), len(pixels), weights.origin)
    written = write(to, Path(settings["output"]))
    log.info(f"{written['file']}: {_parity(written)}")
    result = {"to": to, **_shown(written), "pictures": len(pixels), **weights.origin}
    return result | ({"push": _pushed(to_hub, settings, result)} if to_hub else {})


def _destination(settings: Mapping[str, Any]) -> push.Destination | None:
    """Returns where the export goes besides. Raises RequestError before anything is written, and for a word that nobody typed: what
    leaves this machine is said by a person each time, never by a file."""
    asked, private = settings["push"], settings["private"]
    if asked is None:
        if not private:
            raise RequestError("private=false is of push=USER/NAME, without which nothing leaves this machine")
        return None
    if "push" not in getattr(settings, "typed", ()):
        raise RequestError(f"push={asked} stands in a file; type it on the command line")
    if settings["to"] != "huggingface":
        raise RequestError(
            f"push={asked}: with to=huggingface; to={settings['to']} writes no folder that the hub shows"
        )
    return push.destination(asked, private)


def _pushed(to: push.Destination, settings: Mapping[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """Pushes what was written, and returns what the result says. An error carries what was written here."""
    folder = Path(result["file"]).parent
    words = [settings["weights"], settings["output"], settings["source"]]
    names = [str(one) for word in words if word for one in (word if isinstance(word, list) else [word])]
    try:
        return push.push(to, [folder / name for name in to_huggingface.FILES], names)
    except (RequestError, StorageError) as error:
        error.result = result  # type: ignore[union-attr]
        raise


def _given(settings: dict[str, Any]) -> Given:
    """Returns what programs are fed with. Raises RequestError where a target has no such thing."""
    if settings["int8"] and settings["to"] not in ("executorch", "all"):
        raise RequestError(f"int8=true: to={settings['to']} stays in float32; to=executorch is written in int8")
    if settings["outputs"] is not None and settings["to"] not in (*PROGRAMS, "all"):
        raise RequestError(
            f"outputs={','.join(settings['outputs'])}: to={settings['to']} holds the backbone's weights alone; programs hold heads: "
            f"to={', to='.join(PROGRAMS)}"
        )
    if settings["preprocessing"] == "outside":
        return "normalized"
    if settings["to"] not in (*PROGRAMS, "all"):
        raise RequestError(
            f"preprocessing=inside: to={settings['to']} writes weights, which another library's code runs; the programs are "
            f"to={' and to='.join(PROGRAMS)}"
        )
    return "uint8" if settings["pixels"] == "uint8" else "float"


def _all(
    write: Callable[[str, Path], dict[str, Any]], folder: Path, pictures: int, weights: dict[str, Any]
) -> dict[str, Any]:
    """Exports every target into a folder of its own name in `folder`. weights: what is told of them in the result.

    A library that is not installed is told, and no failure: nobody has all of them."""
    rows: dict[str, dict[str, Any]] = {}
    statuses: list[int] = []
    for name in (*TARGETS, *PROGRAMS):
        try:
            rows[name] = _shown(write(name, folder / name))
        except NotInstalledError as error:
            rows[name] = {"not_installed": str(error)}
        except Exception as error:  # told in the table and in the exit status, whatever it is
            statuses.append(getattr(error, "exit_status", 78 if isinstance(error, ValueError) else 70))
            rows[name] = {"error": str(error) or type(error).__name__}
            if statuses[-1] == 70:
                traceback.print_exc()
    for name, row in rows.items():
        print(f"{name:<14}{_line_of(row)}", file=sys.stderr)
    result = {"to": "all", "targets": rows, "pictures": pictures, **weights}
    failed = [f"{name}: {row['error']}" for name, row in rows.items() if "error" in row]
    if failed:
        message = f"{len(failed)} of {len(rows)} targets failed. {' | '.join(failed)}"
        raise TargetsFailedError(message, min(statuses), result)  # 70, a defect, before 74 and 78
    return result


def _line_of(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"FAILED: {row['error']}"
    return f"not written: {row['not_installed']}" if "not_installed" in row else _parity(row)


def _shown(written: dict[str, Any]) -> dict[str, Any]:
    return {key: written[key] for key in _SHOWN if key in written}


def _parity(written: dict[str, Any]) -> str:
    if "agreement" in written:
        said = [f"{name} {key} {value:.4f}" for name, row in written["agreement"].items() for key, value in row.items()]
        return f"int8 agrees with float32: {', '.join(said)}"
    what = ", ".join(written.get("outputs", ("features",)))
    return f"{what} differ by {written['parity']:.1e} at most (allowed {written['tolerance']:.0e})"


def _calibration(settings: dict[str, Any], backbone: Network, card: dict[str, Any]) -> torch.Tensor:
    """Returns uint8 [N, C, S, S], spread over the source. Raises RequestError where there is none."""
    source = settings["calibration"] or trained_on(card)
    if not source:
        raise RequestError(
            "int8=true wants images like those of training, and what these weights were trained on is not here: give calibration="
        )
    shards, size, count = open_shards(source), card["input_size"], settings["calibration_images"]
    rows = [(s, r) for s, shard in enumerate(shards) for r in range(len(shard))]
    count = min(count, len(rows))
    chosen = [rows[i * len(rows) // count] for i in range(count)]  # folders lie class by class
    log.info(f"int8 is calibrated on {count} of {len(rows)} images of {source}")
    images = [decode(image_of(shards[s].read(s, r)), None, pixels_of(backbone, card)) for s, r in chosen]
    return torch.stack([center(p, size, size) for p in images])


def _pixels(source: str | None, count: int, backbone: Network, card: dict[str, Any]) -> torch.Tensor:
    """Returns uint8 [count, C, S, S], levels 0 to 255: from a source, or the built-in ones."""
    size = card["input_size"]
    if source:
        shards = open_shards(source)
        rows = [(s, r) for s, shard in enumerate(shards) for r in range(min(len(shard), count))][:count]
        images = [decode(image_of(shards[s].read(s, r)), None, pixels_of(backbone, card)) for s, r in rows]
    else:
        drawn = [sample.draw(i % len(sample.SHAPE_CLASSES), i) for i in range(count)]
        channels = np.arange(channels_of(backbone)) % 3  # features are compared, so any pixels do
        images = [np.ascontiguousarray(one[..., channels]) for one in drawn]
    return torch.stack([center(p, size, size) for p in images])
