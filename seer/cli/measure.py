"""Runs `seer measure`: what an exported program is on this machine: bytes, milliseconds, memory, and how often it is right.

Surprising:
- Images are read and cut here, by the code of `seer evaluate` and by the rule in the JSON beside the file; the levels go to the process
  that holds the runtime, which normalizes them with numpy where the program does not. So a difference to `eval=head` is the program's.
- A budget that is not kept is told and ends with 0: measuring has succeeded. `seer export budget=` refuses.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from seer.core import budget as limits
from seer.core import schema
from seer.core.budget import Budget
from seer.core.errors import RequestError
from seer.core.log import log
from seer.data.pixels import Pixels
from seer.data.shards.open import census_of, open_shards
from seer.data.shards.shard import fingerprint
from seer.evals.figures import Z95
from seer.evals.heads import Heads
from seer.evals.judged import Judged
from seer.evals.probe import words_of
from seer.evals.target_images import TargetImages
from seer.export import gate, program_file
from seer.export.measure import Running, machine, measure
from seer.models.heads.detect import Cells
from seer.run.environment import processor
from seer.tasks.heads import KINDS, Spec

TARGETS = ("onnx", "torch_export", "executorch")
SHOWN = {
    "file_mb": "MB of the file",
    "load_ms": "ms to load",
    "first_ms": "ms, first run",
    "median_ms": "ms, median",
    "p90_ms": "ms, p90",
    "cores_used": "cores kept busy",
    "rss_mb": "MB resident, over the idle runtime",
    "rss_peak_mb": "MB at the highest",
    "arena_mb": "MB of the arena",
    "idle_mb": "MB of the idle runtime",
}


class FileTask:
    """Holds a program in a file as an evaluator takes a task. right: of each head of classes, whether each image was."""

    def __init__(self, program: Running):
        self.program, self.specs, self._outputs = program, _specs(program.described), program.described["outputs"]
        self.targets = tuple(dict.fromkeys(KINDS[spec.kind].targets[0] for spec in self.specs.values()))
        self.classes = next((tuple(s.classes or ()) for s in self.specs.values() if s.kind in ("classify", "tags")), ())
        self.values = next((s.outputs for s in self.specs.values() if s.kind == "regress"), 0)
        self.right: dict[str, list[np.ndarray]] = {}

    def modules(self) -> dict[str, Any]:
        """Returns none: the network is in another process."""
        return {}

    def answer(self, fields: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Returns what each head says of a batch."""
        found = self.program.run(fields["pixels"].contiguous().numpy())
        said: dict[str, Any] = {}
        for name, spec in self.specs.items():
            rows = {
                row.get("part"): torch.from_numpy(found[row["name"]].copy()) for row in _of_head(self._outputs, name)
            }
            nothing = torch.zeros(0)
            said[name] = Cells(rows["scores"], rows["edges"], nothing, nothing) if spec.kind == "detect" else rows[None]
            if spec.kind == "classify":
                right = said[name].argmax(1) == fields["label"]
                self.right.setdefault(name, []).append(right.numpy())
        return said


def run(settings: dict[str, Any], output: list[Path]) -> dict[str, Any]:
    """Returns the figures for the JSON line. Raises RequestError, and BadDataError for a file that is not the one described."""
    asked = schema.read(Budget, settings["budget"], "budget.")
    threads, runs = settings["threads"], settings["runs"]
    files = [_opened(settings[word]) for word in ("file", "against") if settings[word]]
    _check_data(settings, files)
    if settings["output"]:
        folder = Path(settings["output"])
        folder.mkdir(parents=True, exist_ok=True)
        output.append(folder)
    before = machine()
    with ExitStack() as stack:
        programs, rows = measure(files, threads, runs, stack)
        after = machine()["load"]
        found = _judged_each(settings, programs) if settings["data"]["test"] else {}
    own, *others = rows
    told: dict[str, Any] = {"threads": threads, "runs": runs, "batch": 1, **own, **found}
    told["machine"] = {"processor": processor(), **before, "load_after": after}
    del told["times_the_first"]
    if others:
        told["against"] = {**others[0], **found.get("against", {})}
        told["times_as_fast"] = told["against"].pop("times_the_first")
    values = _values(told, asked.metric)
    kept = limits.check(asked, values)
    if kept:
        told["budget"] = limits.plain(asked, kept)
    _show(told, kept)
    return told


def _opened(word: str) -> tuple[Path, dict[str, Any]]:
    """Returns a program's file and its description. Raises as `program_file.read` does, and RequestError for no program."""
    file = Path(word)
    if file.is_dir():
        there = sorted(one for one in file.iterdir() if one.suffix in (".onnx", ".pt2", ".pte"))
        if len(there) != 1:
            raise RequestError(f"file={file}: a folder with {len(there)} programs; name the file (.onnx, .pt2, .pte)")
        file = there[0]
    described = program_file.read(file)
    if described.get("target") not in TARGETS:
        raise RequestError(
            f"file={file}: it is for {described.get('target')}; a program is for one of {', '.join(TARGETS)}"
        )
    return file, described


def _of_head(outputs: Sequence[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    return [row for row in outputs if row.get("head") == name]


def _specs(described: Mapping[str, Any]) -> dict[str, Spec]:
    """Returns what each head of a program is, by its description."""
    labels, found = described.get("labels") or {}, {}
    for row in described["outputs"]:
        if "head" in row and row["head"] not in found:
            outputs = int(np.prod(row["shape"][1:])) if row["kind"] == "regress" else 1
            found[row["head"]] = Spec(row["kind"], classes=labels.get(row["head"]), outputs=outputs)
    return found


def _check_data(settings: Mapping[str, Any], files: Sequence[tuple[Path, Mapping[str, Any]]]) -> None:
    """Raises RequestError where images are given that a program cannot be judged by."""
    for file, described in files if settings["data"]["test"] else ():
        if not _specs(described):
            raise RequestError(
                f"data.test={settings['data']['test']}: {file} has no head, its outputs are "
                f"{', '.join(row['name'] for row in described['outputs'])}; export a run of seer adapt, or judge features by "
                "seer evaluate eval=knn"
            )


def _judged_each(settings: Mapping[str, Any], programs: Sequence[Running]) -> dict[str, Any]:
    """Returns what the files are worth on `data.test`: of the first, and of the other one under `against`, with the difference."""
    each = [_judged(settings, program) for program in programs]
    (_, judged, images), *others = each
    names = {"data": {**census_of(images.shards).plain(), "fingerprint": fingerprint(images.shards)}}
    found = {"accuracy": judged.plain(), **names}
    for task, other, _ in others:
        found["against"] = {"accuracy": other.plain()}
        found["drop"] = _drops(each[0][0], judged, task, other)
    return found


def _judged(settings: Mapping[str, Any], program: Running) -> tuple[FileTask, Judged, TargetImages]:
    task, described = FileTask(program), program.described
    asked, rule = SimpleNamespace(**settings["data"]), described["preprocessing"]
    _, channels, size, _ = described["input"]["shape"]
    images = TargetImages(
        open_shards(asked.test),
        task.targets,
        word=words_of(asked.labels)[1],
        classes=task.classes,
        values=task.values,
        size=size,
        resize=rule["resize"]["shorter_side"],
        most=asked.most,
        pixels=Pixels(ground=rule["ground"], channels=channels),
    )
    images.check(f"data.test={asked.test}")
    evaluator = Heads(images, None, mean=tuple(rule["mean"]), std=tuple(rule["std"]))
    return task, evaluator.judge(task), images


def _drops(own: FileTask, judged: Judged, other: FileTask, theirs: Judged) -> dict[str, Any]:
    """Returns how much lower each figure is than that of the program compared with, and of top1 the interval of that over pairs of
    answers to the same images."""
    found: dict[str, Any] = {}
    for name, value in judged.figures.items():
        if name in theirs.figures and not math.isnan(value) and not name.endswith(("/calibration", "/error")):
            found[name] = {"drop": theirs.figures[name] - value}
    for head in own.right.keys() & other.right.keys():
        before, after = (np.concatenate(one.right[head]).astype(np.float64) for one in (other, own))
        if len(before) == len(after) and f"{head}/top1" in found:
            pairs = before - after
            half = Z95 * float(pairs.std(ddof=1)) / math.sqrt(len(pairs)) if len(pairs) > 1 else math.inf
            found[f"{head}/top1"]["interval95"] = [float(pairs.mean()) - half, float(pairs.mean()) + half]
    return found


def _values(told: Mapping[str, Any], metric: str) -> dict[str, float | None]:
    """Returns what a budget limits. Memory counts at its highest; of several heads the largest drop does."""
    drops = [row["drop"] for name, row in told.get("drop", {}).items() if name.rpartition("/")[2] == metric]
    return {
        "file_mb": told["file_mb"],
        **gate.program_costs(told["cost"]),
        "arena_mb": told["arena_mb"],
        "rss_mb": told["rss_mb"] if told["rss_peak_mb"] is None else told["rss_peak_mb"],
        "latency_ms": told["median_ms"],
        "drop": max(drops) if drops else None,
    }


def _show(told: Mapping[str, Any], kept: Sequence[limits.Row]) -> None:
    """Tells people, in a table."""
    here, other = told["machine"], told.get("against", {})
    log.info(
        f"{here['processor']} ({', '.join(here['instructions']) or 'no instructions known'}), {here['cores']} cores, load "
        f"{here['load']} before and {here['load_after']} after; {told['threads']} thread(s), batch 1, {told['runs']} runs"
    )
    for row in filter(None, (told, other)):
        log.info(f"{'' if row is told else 'against '}{row['file']}: {row['precision']}, {row['runtime']}")
    for key, words in SHOWN.items():
        cells = [row.get(key) for row in (told, other) if row]
        if any(cell is not None for cell in cells):
            print(f"  {words:<36}" + "".join(f"{'?' if c is None else f'{c:.4g}':>12}" for c in cells), file=sys.stderr)
    if other:
        log.info(f"times as fast as the other, median of pairs: {told['times_as_fast']:.2f}")
    for row in filter(None, (told, other)):
        for name, value in row.get("accuracy", {}).items():
            if "/" in name and isinstance(value, float):
                low, high = row["accuracy"].get("interval95", {}).get(name, (None, None))
                between = "" if low is None else f" (95 %: {low:.4f} to {high:.4f})"
                log.info(f"{'' if row is told else 'against: '}{name} {value:.4f}{between}")
    for limit in kept:
        log.info(f"budget: {limits.line(limit)}")
    if here["load"] > 0.5 * here["cores"]:
        log.warning(f"others were at work (load {here['load']}): trust ratios of two programs more than milliseconds")
