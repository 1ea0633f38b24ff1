"""Reads a config as plain dicts, lists and values: what keys it has, and what each takes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from seer.core import schema
from seer.core.evaluations import PROBES
from seer.core.schema import Duration, Rate
from seer.core.signature import MISSING, signature

# Arguments that the program gives: no config sets them.
GIVEN: dict[str, tuple[str, ...]] = {
    "model": ("device", "in_channels"),
    "task": ("backbone", "transform", "group"),
    "optim": ("params", "lr"),  # the rate comes from the schedule, before every step
    "schedule": ("step", "total"),
    "precision": ("device",),
    "augment": ("label", "labels", "pixels"),
    "eval": ("train", "test", "known", "mean", "std", "batch", "threads", "dtype"),
}
# What people write as a rate or a duration in a schedule, whose own arguments are numbers.
SCHEDULE = {
    "peak": Rate,
    "start": Rate,
    "final": Rate,
    "warmup": Duration,
    "halved_at": list[Duration],
    "lowered_at": list[Duration],
}


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Returns {"a.b": value}; lists are leaves."""
    if not isinstance(config, dict):
        return {prefix: config}
    return {
        k: v for name, value in config.items() for k, v in flat(value, f"{prefix}.{name}" if prefix else name).items()
    }


def filled(config: Mapping[str, Any], kind: type, missing: Any = dataclasses.MISSING) -> dict[str, Any]:
    """Returns the config with every key: those of the schema, and those of the signatures that its targets name.

    missing: what stands for a key of the schema that has no default; without it such keys are left out.
    Signatures of other libraries are left alone: a key that a new version brings is not one of ours.
    """
    whole = _joined(schema.defaults(kind, missing), config)
    for group in GIVEN:
        node = whole.get(group)
        if isinstance(node, dict) and str(node.get("_target_", "")).startswith("seer."):
            own = _arguments(node["_target_"], group)
            whole[group] = {**node, **{name: value for name, value in own.items() if name not in node}}
    if isinstance(probe := whole.get("probe"), dict):
        own = {name: {**_arguments(PROBES[name], "eval"), **probe[name]} for name in PROBES if name in probe}
        whole["probe"] = {**probe, **own}
    return whole


def _arguments(target: str, group: str) -> dict[str, Any]:
    """Returns the arguments of a target of ours that have a default, without those that the program gives."""
    known = signature(target)
    found = {} if known is None else {n: d for n, (_, d) in known.parameters.items() if d is not MISSING}
    return {name: value for name, value in found.items() if name not in GIVEN[group]}


def hint_of(key: str, config: Mapping[str, Any], kind: type) -> Any:
    """Returns the type of what a key takes; Any where neither the schema nor a signature tells."""
    group, _, name = key.partition(".")
    if group == "probe" and "." in name:
        probe, _, name = name.partition(".")
        known = signature(PROBES[probe]) if probe in PROBES else None
        return known.parameters[name][0] if known is not None and name in known.parameters else Any
    node = config.get(group)
    if not (isinstance(node, Mapping) and "_target_" in node and name):
        return schema.hint_of(kind, key)
    if name == "_target_":
        return str
    if group == "schedule" and name in SCHEDULE:
        return SCHEDULE[name]
    known = signature(str(node["_target_"]))
    if known is None or name not in known.parameters:
        return Any
    return Duration if name in known.durations else known.parameters[name][0]


def _joined(defaults: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns both, the second winning; nodes are joined key by key, those with a `_target_` are not."""
    made = {**defaults, **config}
    for name, value in config.items():
        default = defaults.get(name)
        if isinstance(value, Mapping) and isinstance(default, Mapping) and "_target_" not in value:
            made[name] = _joined(default, value)
    return made
