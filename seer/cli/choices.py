"""Says what can be chosen: the groups of each verb, and the choices of each group, from the names of the YAML files.

Without Hydra, which costs as much as all else that a wrong word or a completion needs.
"""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ZOO = "zoo.yaml"  # in configs/model: the names of the zoo, and the node that builds them


def folder() -> Path:
    """Returns where the YAML files lie: inside the installed package, or beside it in a checkout that is not installed."""
    installed = importlib.util.find_spec("seer.configs")
    if installed is not None and installed.origin:
        return Path(installed.origin).parent
    return Path(__file__).resolve().parents[2] / "configs"


@cache
def groups_of(verb: str) -> list[str]:
    """Returns the groups that a verb has choices of."""
    said = [entry for node in defaults_of(verb) for entry in node.get("defaults", ())]
    return sorted(group for entry in said if isinstance(entry, dict) for group in entry)


def defaults_of(verb: str) -> list[dict[str, Any]]:
    """Returns the YAML files that a verb begins with; `plan` with those of `pretrain` and its own."""
    files = ["pretrain", "plan"] if verb == "plan" else [verb]
    return [yaml.safe_load((folder() / f"{one}.yaml").read_text(encoding="utf-8")) for one in files]


def choices_of(verb: str, group: str) -> list[str]:
    """Returns what a group may be for a verb. Surprising: the probe of `pretrain`, and what `evaluate` runs, share `eval`."""
    files = [p for p in sorted((folder() / group).glob("*.yaml")) if p.name != ZOO]
    if group == "recipe":
        files = [p for p in files if p.stem == "none" or ("# seer adapt" in p.read_text("utf-8")) == (verb == "adapt")]
    if group == "task" and verb == "adapt":
        files = [p for p in files if p.stem == "heads"]
    if group == "eval":
        files = [p for p in files if ("_target_" in p.read_text(encoding="utf-8")) == (verb == "evaluate")]
    return [p.stem for p in files] + (zoo()["names"] if group == "model" else [])


@cache
def zoo() -> dict[str, Any]:
    """Returns `names`, those of the zoo, and `node`, what builds one."""
    return yaml.safe_load((folder() / "model" / ZOO).read_text(encoding="utf-8"))
