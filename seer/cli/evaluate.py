"""Runs `seer evaluate`: what the features of a backbone, or the heads of a run, are worth.

Ranks have no part in it: each of several would do the whole, and the first one tells. The result says what it is of: weights and
images by their hashes, the evaluation with every argument, the command, and the code (`seer.run.environment`).
"""

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from seer.cli.verbs import images_of
from seer.core.build import build
from seer.core.log import log
from seer.data.shards.open import census_of
from seer.data.shards.shard import fingerprint
from seer.engine.precision import DTYPES
from seer.evals.features import Alone, LabelledImages
from seer.evals.judged import Judged
from seer.evals.probe import labelled, unlabelled
from seer.evals.used import counted, tell_overlap, used
from seer.parallel.world import open_world
from seer.run.environment import made_by
from seer.run.weights import digest, pixels_of, state


def run(settings: dict[str, Any], output: list[Path]) -> dict[str, Any]:
    """Returns the figures for the JSON line. Raises RequestError for weights or labels that are not there."""
    start = time.monotonic()
    weights = state(settings["weights"])
    backbone, card = weights.backbone, weights.card
    if settings["output"]:
        folder = Path(settings["output"])
        folder.mkdir(parents=True, exist_ok=True)
        output.append(folder)
    images = _images(settings, card["input_size"], pixels_of(backbone, card))
    for name, one in images.items():
        log.info(f"data.{name}: {census_of(one.shards).line()}")
    with open_world(settings["device"]) as world:
        evaluator = build(
            "eval",
            settings["eval"],
            *images.values(),
            mean=tuple(card["mean"]),
            std=tuple(card["std"]),
            batch=settings["batch"],
            threads=settings["threads"] or len(os.sched_getaffinity(0)),
            dtype=DTYPES[settings["dtype"]],
        )
        judged = _judged(evaluator, Alone(backbone.to(world.device).eval()))
        made = made_by(world)
    if len(images) == 2:
        tell_overlap(*images.values())
    log.info("  ".join(f"{name} {value:.4f}" for name, value in judged.figures.items()))
    if settings["output"] and world.rank == 0 and judged.tables:
        judged.told["files"] = judged.write(folder)
    return {
        **judged.plain(),
        "weights": str(settings["weights"]),
        "weights_sha256": digest(backbone),
        **weights.origin,
        **(used(*images.values()) if len(images) == 2 else counted(images["train"])),
        "data": {
            name: {**census_of(one.shards).plain(), "fingerprint": fingerprint(one.shards)}
            for name, one in images.items()
        },
        "eval": settings["eval"],
        "seed": settings["eval"].get("seed"),
        **made,
        "seconds": round(time.monotonic() - start, 1),
    }


def _images(settings: dict[str, Any], size: int, pixels: Any) -> dict[str, LabelledImages]:
    """Opens the images that the evaluation needs."""
    data = SimpleNamespace(**settings["data"])
    if images_of(settings["eval"]) == ("train",):
        return {"train": unlabelled(data, size, pixels)}
    return dict(zip(("train", "test"), labelled(data, size, pixels), strict=True))


def _judged(evaluator: Any, task: Any) -> Judged:
    """Returns what an evaluator finds, in full where it can tell more than figures."""
    return evaluator.judge(task) if hasattr(evaluator, "judge") else Judged(evaluator.run(task))
