"""Refuses words that would have no effect beside the other words, since whoever typed them would believe they had.

Only what people type is asked, never what a recipe says: a recipe may hold a setting ready for a choice that is made later.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from seer.core.errors import RequestError
from seer.core.evaluations import PROBES

Config = Mapping[str, Any]


def _no_halving(config: Config) -> bool:
    return not str(config["schedule"].get("_target_", "")).endswith(".constant_halving")


def _no_probe(config: Config) -> bool:
    drawn = not config["data"]["source"] and config["data"]["drawn_test"]
    return not (config["eval"]["train"] or config["eval"]["test"] or config["holdout"] or drawn)


def _own_knn(config: Config) -> bool:
    return config["probe"]["run"] is not None


def _not_probed(name: str) -> Callable[[Config], bool]:
    return lambda config: name not in (config["probe"]["run"] or ())


def _no_queue(config: Config) -> bool:
    return config["task"].get("queue") == 0


def _own_images(config: Config) -> bool:
    return bool(config["data"]["source"])


def _stays(config: Config) -> bool:
    return any(str(step.get("_target_", "")).endswith(".freeze") for step in config["surgery"]["steps"])


# (how keys begin, when they have no effect, what the reason is and the remedy)
IDLE: tuple[tuple[str, Callable[[Config], bool], str], ...] = (
    ("plateau.", _no_halving, "only schedule=constant_halving looks for a plateau; add it, or leave this out"),
    ("eval.", _no_probe, "there are no labelled images to ask; add eval.train=… eval.test=…, or leave this out"),
    ("eval.k", _own_knn, "with probe=[…] kNN has its own settings; give probe.knn.k=…, or leave this out"),
    (
        "eval.temperature",
        _own_knn,
        "with probe=[…] kNN has its own settings; give probe.knn.temperature=…, or leave this out",
    ),
    *(
        (f"probe.{name}.", _not_probed(name), f"{name} is not among the probes; add it to probe=[…], or leave this out")
        for name in PROBES
    ),
    ("probe.", _no_probe, "there are no images to measure on; add eval.train=… eval.test=…, or leave this out"),
    ("task.queue_from", _no_queue, "there is no queue; add task.queue=…, or leave this out"),
    (
        "task.heads_first",
        _stays,
        "surgery=freeze keeps the backbone as it is all along; surgery=none trains it after that",
    ),
    ("data.drawn", _own_images, "built-in images are drawn only where there is no data.source; leave one of them out"),
)


def check_effect(config: Config, keys: Sequence[str]) -> None:
    """Raises RequestError for the first key, of those that were typed, that changes nothing in this config of a run."""
    for key in keys:
        for begin, idle, why in IDLE:
            if key.startswith(begin) and key not in ("eval.train", "eval.test") and idle(config):
                raise RequestError(f"{key} would have no effect: {why}")
