"""Runs `seer evaluate eval=suite weights=[a,b,c]`: several networks by the same evaluations on the same images.

Networks come one after the other, so that one is in memory; images are read once for all that want the same size and pixels.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import nn

from seer.compare.plot import Point, svg
from seer.compare.subjects import Subject, subjects
from seer.compare.suite import Row, Suite, csv_of, lines_of, told, worth
from seer.core.build import build
from seer.core.log import log
from seer.data.pixels import Pixels
from seer.data.shards.open import census_of
from seer.data.shards.shard import fingerprint
from seer.engine.precision import DTYPES
from seer.evals.features import LabelledImages
from seer.evals.probe import labelled
from seer.evals.used import tell_overlap, used
from seer.parallel.world import World, open_world
from seer.run.environment import made_by
from seer.run.weights import digest

SUITE = "seer.compare.suite.Suite"
Pair = tuple[LabelledImages, LabelledImages]


def run(settings: dict[str, Any], output: list[Path]) -> dict[str, Any]:
    """Returns the comparison for the JSON line. Raises RequestError for weights or labels that are not there."""
    start, suite = time.monotonic(), build("eval", settings["eval"])
    assert isinstance(suite, Suite)
    weights = [settings["weights"]] if isinstance(settings["weights"], str) else settings["weights"]
    folder = Path(settings["output"]) if settings["output"] else None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        output.append(folder)
    images: dict[tuple[int, Pixels], Pair] = {}
    with open_world(settings["device"]) as world:
        rows = []
        for subject in subjects(weights, suite.scratch, suite.seed, settings["data"]["size"]):
            pair = _images(settings["data"], subject, world, images)
            rows.append(_row(suite, subject, pair, settings, world))
            log.info(
                f"{subject.name}: " + "  ".join(f"{k} {v:.4f}" for k, v in rows[-1].figures.items() if "top1" in k)
            )
        made = made_by(world)
    pair = next(iter(images.values()))
    tell_overlap(*pair)
    figure, differences = suite.figure(rows), worth(rows, sum(pair[1].used().values()))
    files = _written(folder, rows, figure) if folder is not None and world.rank == 0 else []
    for words in [*lines_of(rows), *(one["says"] for one in differences)]:
        log.info(words)
    sides = dict(zip(("train", "test"), pair, strict=True))
    return {
        "rows": told(rows),
        "worth": differences,
        "weights": weights,
        **used(*pair),
        "data": {
            name: {**census_of(one.shards).plain(), "fingerprint": fingerprint(one.shards)}
            for name, one in sides.items()
        },
        "eval": settings["eval"],
        "seed": suite.seed,
        **made,
        **({"files": files} if files else {}),
        "seconds": round(time.monotonic() - start, 1),
    }


def _images(data: Mapping[str, Any], subject: Subject, world: World, known: dict[tuple[int, Pixels], Pair]) -> Pair:
    """Returns train and test images as a network takes them, opened once for all that take the same."""
    wanted = subject.size, subject.pixels
    if wanted not in known:
        known[wanted] = labelled(SimpleNamespace(**data), *wanted)
        for one in known[wanted]:
            one.group = world.group
    return known[wanted]


def _row(suite: Suite, subject: Subject, pair: Pair, settings: Mapping[str, Any], world: World) -> Row:
    network = nn.ModuleDict({"backbone": subject.backbone}).to(world.device).eval()  # type: ignore[dict-item]
    options = {
        "batch": settings["batch"],
        "threads": settings["threads"] or len(os.sched_getaffinity(0)),
        "dtype": DTYPES[settings["dtype"]],
    }
    row = suite.judged(subject, *pair, **options)
    return Row({**row.subject, "weights_sha256": digest(network["backbone"])}, row.figures, row.intervals, row.draws)


def _written(folder: Path, rows: list[Row], figure: str) -> list[str]:
    """Writes the table and the plot, and returns their names."""
    points = []
    for row in rows:
        about, value = row.subject, row.figures[figure]
        low, high = row.intervals.get(figure, (value, value))
        points.append(Point(about["name"], about["kind"], about["parameters"], about["images_seen"], value, low, high))
    texts = {"suite.csv": csv_of(rows), "suite.svg": svg(points, figure)}
    for name, text in texts.items():
        temporary = folder / f".{name}.writing"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / name)
    return sorted(texts)
