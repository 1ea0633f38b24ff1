"""Runs `seer evaluate`: what the features of a backbone, or the heads of a run, are worth.

Ranks share the images out, each would do the rest by itself, and the first one tells. The result says what it is
of: weights and images by their hashes, the evaluation with every argument, the command, and the code (`seer.run.environment`).
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import nn

from seer.cli.suite import SUITE
from seer.cli.suite import run as run_suite
from seer.core.build import build
from seer.core.errors import RequestError
from seer.core.evaluations import images_of
from seer.core.log import log
from seer.data.pixels import Pixels
from seer.data.shards.bad_archives import BadArchives
from seer.data.shards.open import census_of
from seer.data.shards.shard import fingerprint
from seer.engine.precision import DTYPES
from seer.evals.features import Alone, LabelledImages
from seer.evals.judged import Judged
from seer.evals.probe import held_out, labelled, unlabelled
from seer.evals.tagged_images import TaggedImages, tagged
from seer.evals.target_images import TargetImages
from seer.evals.used import counted, tell_overlap, used
from seer.parallel.world import open_world
from seer.run.environment import made_by
from seer.run.opened import open_run
from seer.run.weights import digest, pixels_of, state

Images = Mapping[str, LabelledImages | TargetImages | TaggedImages]


@dataclass(frozen=True)
class Subject:
    """Holds what is judged. task: gives `modules()`. origin: what the result says of the weights."""

    task: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    pixels: Pixels
    origin: dict[str, Any]


def run(settings: dict[str, Any], output: list[Path]) -> dict[str, Any]:
    """Returns the figures for the JSON line. Raises RequestError for weights or labels that are not there."""
    start, heads = time.monotonic(), images_of(settings["eval"]) == ("test",)
    if settings["eval"]["_target_"] == SUITE:
        return run_suite(settings, output)
    settings["weights"] = _one(settings["weights"])
    subject = _run_of(settings["weights"]) if heads else _backbone_of(settings["weights"])
    if settings["output"]:
        folder = Path(settings["output"])
        folder.mkdir(parents=True, exist_ok=True)
        output.append(folder)
    bad = BadArchives(settings["data"]["max_bad_archives"], "data.max_bad_archives")
    images = _images(settings, subject, bad)
    for name, one in images.items():
        log.info(f"data.{name}: {census_of(one.shards).line()}")
    with open_world(settings["device"]) as world:
        for one in images.values():
            if isinstance(one, LabelledImages | TargetImages):
                one.group = world.group
        evaluator = build(
            "eval",
            settings["eval"],
            *[*images.values(), None][:2],
            mean=subject.mean,
            std=subject.std,
            batch=settings["batch"],
            threads=settings["threads"] or len(os.sched_getaffinity(0)),
            dtype=DTYPES[settings["dtype"]],
        )
        network = nn.ModuleDict(subject.task.modules()).to(world.device).eval()
        judged = _judged(evaluator, subject.task)
        made = made_by(world)
    counts = _counts(images)
    log.info("  ".join(f"{name} {value:.4f}" for name, value in judged.figures.items()))
    if settings["output"] and world.rank == 0 and judged.tables:
        judged.told["files"] = judged.write(folder)
    return {
        **judged.plain(),
        "weights": str(settings["weights"]),
        "weights_sha256": digest(network if heads else network["backbone"]),
        **subject.origin,
        **counts,
        **({"bad_archives": bad.found} if bad.found else {}),
        "data": {
            name: {**census_of(one.shards).plain(), "fingerprint": fingerprint(one.shards)}
            for name, one in images.items()
        },
        "eval": settings["eval"],
        "seed": settings["eval"].get("seed"),
        **made,
        "seconds": round(time.monotonic() - start, 1),
    }


def _one(weights: str | list[str]) -> str:
    """Returns the one path of weights. Surprising: commas make a list of a path that has some. Raises RequestError for several."""
    if isinstance(weights, str):
        return weights
    if len(weights) == 1 or Path(",".join(weights)).exists():
        return ",".join(weights)
    raise RequestError(
        f"weights={weights[0]}, … ({len(weights)} of them): one is evaluated at a time; eval=suite compares several"
    )


def _backbone_of(path: str) -> Subject:
    found = state(path)
    card, backbone = found.card, found.backbone
    task = Alone(backbone)  # type: ignore[arg-type]
    pixels = pixels_of(backbone, card)
    return Subject(task, tuple(card["mean"]), tuple(card["std"]), card["input_size"], pixels, found.origin)


def _run_of(path: str) -> Subject:
    """Opens the heads of a run. Raises RequestError for what is none, or has none, or has saved nothing."""
    opened = open_run(path)
    if not opened.step:
        raise RequestError(f"weights={path} is a run that has saved nothing yet: wait for its first checkpoint")
    task: Any = opened.task
    if not getattr(task, "judged", False):
        raise RequestError(
            f"weights={path}: the run has no heads that can be judged, its task is {type(task).__name__}; task=heads makes such, "
            "and eval=knn or linear judges a backbone"
        )
    size = opened.config.eval.size or task.transform.input_size
    origin = {"weights_step": opened.step, "weights_from": "checkpoint"}
    mean, std = tuple(task.transform.mean), tuple(task.transform.std)
    return Subject(task, mean, std, size, opened.config.data.pixels, origin)


def _images(settings: dict[str, Any], subject: Subject, bad: BadArchives) -> Images:
    """Opens the images that the evaluation needs, in the order in which it takes them. bad: receives the archives that are passed
    over."""
    data, size, pixels = SimpleNamespace(**settings["data"]), subject.size, subject.pixels
    needs = images_of(settings["eval"])
    if needs == ("train",):
        return {"train": unlabelled(data, size, pixels, bad)}
    if needs == ("test",):
        data.size = data.size or size
        sides = ("test", "train") if data.train else ("test",)
        return {side: held_out(data, subject.task, pixels, side, bad) for side in sides}
    opens = tagged if settings["eval"].get("several") else labelled
    return dict(zip(("train", "test"), opens(data, size, pixels, bad), strict=True))


def _counts(images: Images) -> dict[str, Any]:
    """Returns what the result says of the images that were used, and warns where test images are train images."""
    train, test = images.get("train"), images.get("test")
    if isinstance(train, LabelledImages) and isinstance(test, LabelledImages):
        tell_overlap(train, test)
        return used(train, test)
    return counted(train) if isinstance(train, LabelledImages) else {}


def _judged(evaluator: Any, task: Any) -> Judged:
    """Returns what an evaluator finds, in full where it can tell more than figures."""
    return evaluator.judge(task) if hasattr(evaluator, "judge") else Judged(evaluator.run(task))
