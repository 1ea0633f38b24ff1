"""Runs `seer evaluate`: what the features of a backbone are worth."""

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from seer.core.build import build
from seer.core.log import log
from seer.data.shards.open import census_of
from seer.engine.precision import DTYPES
from seer.evals.features import Alone
from seer.evals.probe import labelled
from seer.evals.used import tell_overlap, used
from seer.parallel.world import open_world
from seer.run.weights import pixels_of, state


def run(settings: dict[str, Any], output: list[Path]) -> dict[str, Any]:
    """Returns the figures for the JSON line. Raises RequestError for weights or labels that are not there."""
    start = time.monotonic()
    weights = state(settings["weights"])
    backbone, card = weights.backbone, weights.card
    if settings["output"]:
        folder = Path(settings["output"])
        folder.mkdir(parents=True, exist_ok=True)
        output.append(folder)
    train, test = labelled(SimpleNamespace(**settings["data"]), card["input_size"], pixels_of(backbone, card))
    found = {"train": census_of(train.shards), "test": census_of(test.shards)}
    for name, census in found.items():
        log.info(f"data.{name}: {census.line()}")
    threads = settings["threads"] or len(os.sched_getaffinity(0))
    with open_world(settings["device"]) as world:
        evaluator = build(
            "eval",
            settings["eval"],
            train,
            test,
            mean=tuple(card["mean"]),
            std=tuple(card["std"]),
            batch=settings["batch"],
            threads=threads,
            dtype=DTYPES[settings["dtype"]],
        )
        values = evaluator.run(Alone(backbone.to(world.device).eval()))  # type: ignore[arg-type]
    tell_overlap(train, test)
    log.info("  ".join(f"{name} {value:.4f}" for name, value in values.items()))
    return {
        **values,
        "weights": str(settings["weights"]),
        **weights.origin,
        **used(train, test),
        "data": {name: census.plain() for name, census in found.items()},
        "seconds": round(time.monotonic() - start, 1),
    }
