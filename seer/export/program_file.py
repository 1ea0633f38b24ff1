"""Writes a program's file with its description beside it, FILE.json, and reads the two back.

Surprising:
- The description holds the file's sha256, and nothing here opens a file whose bytes give another: a truncated download, or a
  file that was exchanged, is refused before a runtime sees it. Two files cannot be replaced in one stroke; a crash in between
  leaves two that do not fit each other, which is refused as well.
- How an image is to be cut is told, not done: the program takes squares of the right size.

FILE.json, version 1:

    {"format": "seer-program", "version": 1, "target", "file", "bytes", "sha256",
     "input": {"name", "dtype", "shape": ["batch", C, S, S], "values": "0 to 255" | "0 to 1" | "normalized", "colors"},
     "preprocessing": {"inside", "mean", "std", "resize": {"shorter_side", "interpolation"}, "crop", "ground"},
     "outputs": [{"name", "shape": ["batch", …], "dtype", "parity" | "agreement"; of a head "head", "kind", "part", "values"}] in the
         order in which the program gives them,
     "labels": {head: class names} or null, "thresholds": {head of tags: a probability a class} or null, "boxes" of detectors: the
         rule by which cells become boxes,
     "batch": {"least", "most"}, "architecture", "cost", "parity": {batch: number}, the largest of all outputs, or null where
         "agreement" is told instead, "tolerance", "precision", "versions", "provenance"}
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from seer.core.errors import BadDataError, RequestError
from seer.export.program import INPUT, MOST_BATCH, Output, Program, shorter_side
from seer.models.bundle import PROVENANCE
from seer.models.zoo import name_of

FORMAT = "seer-program"
BOXES = {"least": 0.05, "overlap": 0.6, "most": 100, "candidates": 1000}  # defaults of `models.heads.detect.boxes_of`
VERSION = 1
_VALUES = {"normalized": "normalized", "uint8": "0 to 255", "float": "0 to 1"}
_MEANING = {  # of an output, by the kind of its head and its part
    ("classify", None): "logits: their softmax is a probability a class",
    ("tags", None): "logits: a class is there where the sigmoid reaches its threshold",
    ("regress", None): "numbers",
    ("map", None): "logits of each pixel: the class is the largest over axis 1",
    ("detect", "scores"): "logits of each cell: the sigmoid is a probability a class",
    ("detect", "edges"): "left, top, right, bottom of each cell's box, in pixels of the input",
}


def place(output: Path, name: str) -> Path:
    """Returns the file that `output` means: itself when it ends like `name`, else `name` in that folder. Raises RequestError
    for a file of another ending."""
    ending = Path(name).suffix
    if output.suffix == ending:
        return output
    if output.suffix in (".onnx", ".pt2", ".pte", ".pth", ".pt", ".safetensors"):
        raise RequestError(f"output={output}: name a file that ends with {ending}, or a folder, which gets {name}")
    return output / name


def beside(file: Path) -> Path:
    """Returns where a program's description lies."""
    return file.with_name(f"{file.name}.json")


def write(
    file: Path,
    program: Program,
    card: Mapping[str, Any],
    *,
    target: str,
    make: Callable[[Path], None],
    check: Callable[[Path], Mapping[str, Mapping[str, float]]],
    tolerance: float | None,
    versions: Mapping[str, str],
    told: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes the file and its description, which appear only once `check` has read the file back.

    Args:
        file: a file there is replaced.
        make: writes the program to a path.
        check: reads it from there in the library it is for -> {output: {batch: difference}}; it raises where one is too large. Where
            `tolerance` is None, as of int8, it gives {output: {figure: value}} instead, that it agrees by.
        told: more entries of the description.

    Returns the description.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    unchecked = file.parent / f".{uuid.uuid4().hex}.tmp"
    unchecked.mkdir()
    try:
        made = unchecked / file.name
        make(made)
        described = _describe(made, program, card, target) | _found(program, check(made), tolerance)
        described |= {
            **(told or {}),
            "versions": {"torch": torch.__version__, **versions},
            "provenance": {key: card.get(key) for key in PROVENANCE},
        }
        text = json.dumps(described, indent=2, allow_nan=False) + "\n"
        beside(made).write_text(text, encoding="utf-8")
        for one in (made, beside(made)):
            with open(one, "rb") as opened:
                os.fsync(opened.fileno())
        os.replace(made, file)
        os.replace(beside(made), beside(file))
    finally:
        shutil.rmtree(unchecked)
    return described


def result(
    file: Path, described: Mapping[str, Any], pictures: int, card: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    """Returns what an exporter tells of a file that `write` made. more: of its own target."""
    rows, parity = described["outputs"], described["parity"]
    figures: dict[str, Any] = (
        {"agreement": {one["name"]: one["agreement"] for one in rows}}
        if parity is None
        else {"parity": max(parity.values()), "tolerance": described["tolerance"]}
    )
    named = {"file": str(file), "described": str(beside(file)), "outputs": [one["name"] for one in rows]}
    return {**named, **more, **figures, "pictures": pictures, "card": dict(card)}


def read(file: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the description of a program's file, whose bytes are those that it was written with.

    Raises FileNotFoundError without either file, RequestError for a description that is none of ours, and BadDataError for a file
    that is not the one described.
    """
    file = Path(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: give a file that `seer export` wrote")
    if not beside(file).is_file():
        raise FileNotFoundError(f"{beside(file)} does not exist: it belongs to {file.name}; copy both")
    try:
        described = json.loads(beside(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise RequestError(f"{beside(file)} is no JSON ({error}): copy both files again") from error
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise RequestError(f"{beside(file)} describes no program of seer export: its format is not {FORMAT!r}")
    if described.get("version") != VERSION:
        raise RequestError(
            f"{beside(file)} has version {described.get('version')!r}; this program reads {VERSION}: upgrade it"
        )
    if (size := file.stat().st_size) != described.get("bytes"):
        raise BadDataError(
            f"{file} has {size:,} bytes, its description says {described.get('bytes'):,}: it is cut or another; copy both again"
        )
    if (found := sha256(file)) != described.get("sha256"):
        raise BadDataError(
            f"{file} has the sha256 {found[:12]}…, its description says {str(described.get('sha256'))[:12]}…: its bytes are not "
            "those that were written; copy both again"
        )
    return described


def sha256(file: Path) -> str:
    """Returns the hash of a file's bytes in hexadecimal digits."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _describe(made: Path, program: Program, card: Mapping[str, Any], target: str) -> dict[str, Any]:
    architecture, side, cards = program.backbone.architecture, program.side, program.cards
    return {
        "format": FORMAT,
        "version": VERSION,
        "target": target,
        "file": made.name,
        "bytes": made.stat().st_size,
        "sha256": sha256(made),
        "input": {
            "name": INPUT,
            "dtype": "uint8" if program.given == "uint8" else "float32",
            "shape": ["batch", program.channels, side, side],
            "values": _VALUES[program.given],
            "colors": {3: "RGB", 1: "gray"}.get(program.channels, f"{program.channels} channels"),
        },
        "preprocessing": {
            "inside": program.given != "normalized",
            **program.colors,
            "resize": {"shorter_side": shorter_side(side), "interpolation": "bilinear, antialiased"},
            "crop": {"center": side},
            "ground": card.get("ground") or 0,
        },
        "outputs": [_output(one, program) for one in program.outputs],
        "labels": {name: list(card.classes) for name, card in cards.items() if card.classes} or None,
        "thresholds": {name: list(card.thresholds) for name, card in cards.items() if card.thresholds} or None,
        **({"boxes": BOXES} if any(card.kind == "detect" for card in cards.values()) else {}),
        "batch": {"least": 1, "most": MOST_BATCH},
        "architecture": {"name": name_of(architecture), **architecture},
        "cost": program.cost,
        "precision": "fp32",
    }


def _output(one: Output, program: Program) -> dict[str, Any]:
    row: dict[str, Any] = {"name": one.name, "shape": ["batch", *one.shape], "dtype": "float32"}
    if one.head is None:
        return row
    kind = program.cards[one.head].kind
    return {**row, "head": one.head, "kind": kind, "part": one.part, "values": _MEANING[kind, one.part]}


def _found(program: Program, found: Mapping[str, Mapping[str, float]], tolerance: float | None) -> dict[str, Any]:
    """Returns what a description says of the comparison, of each output and of all."""
    key, rows = "agreement" if tolerance is None else "parity", []
    for one in program.outputs:
        figures = dict(found[one.name])
        rows.append({**_output(one, program), key: figures if tolerance is None else max(figures.values())})
    batches = next(iter(found.values()))
    parity = None if tolerance is None else {name: max(one[name] for one in found.values()) for name in batches}
    return {"outputs": rows, "parity": parity, "tolerance": tolerance}
