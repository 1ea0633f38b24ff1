"""Reads a recipe of one's own, `recipe=./mine.yaml`, or the request of a run, `recipe=RUN/config.yaml`.

Such a file may set what words may set, and nothing else: its keys are those of the verb, its choices are those of the groups,
its types are checked like those of words, and a `_target_` lies in the places of its group (`core/build.py`) or is refused
before anything is composed. Relative paths in it mean what they mean as words: they start from the current folder.

    recipe: cifar                  # optional: what it starts from, packaged or a file
    task: swav_small               # a choice
    batch: 64                      # a key
    schedule: {peak: 0.002}        # keys of a group, or schedule.peak: 0.002

Surprising: a copy of a packaged recipe works, with its `defaults:` list; and a group with a `_target_`, as a run's config.yaml has
them, replaces the choice of that group as a whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seer.core.build import PLACES, check_targets
from seer.core.config import GIVEN
from seer.core.errors import RequestError
from seer.core.signature import MISSING, signature
from seer.run.older import choice_today, renewed

OWN = "_own"  # the name under which Hydra finds what was read
MOST_BYTES = 1_000_000  # a recipe has some thousand; a file of weights by mistake should not be parsed
MOST_BASES = 8  # recipes that start from one another
WHOLE = ("model", "task", "augment", "optim", "schedule", "precision")  # groups of which a run's config has the targets


@dataclass
class Recipe:
    """Holds what a file asks for. choices: group -> choice. settings: nested keys. nodes: group -> node with a `_target_`."""

    file: str
    choices: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def bare(self) -> "Recipe":
        """Returns the same with every key at its default, to be told what keys there are and what they take."""
        return Recipe(self.file, self.choices, {}, {group: _bare(group, node) for group, node in self.nodes.items()})

    def composed(self) -> dict[str, Any]:
        """Returns the YAML that Hydra composes as a packaged recipe."""
        chosen = {**self.choices, **dict.fromkeys(self.nodes, OWN)}
        said = {f"override /{group}": _listed(choice) for group, choice in chosen.items()}
        return {"defaults": [{group: choice} for group, choice in said.items()], **self.settings}


def _listed(choice: str) -> str | list[str]:
    """Returns the list that `[a, b]` means, of a group of which several are chosen; else what was given."""
    if choice[:1] != "[" or choice[-1:] != "]":
        return choice
    return [one.strip() for one in choice[1:-1].split(",") if one.strip()]


def file_of(value: str, packaged: list[str]) -> Path | None:
    """Returns the file that `recipe=` names, config.yaml of a run folder; None for a packaged recipe, or the name of none."""
    path = Path(value).expanduser()
    run = (path / "config.yaml").is_file()
    if value in packaged or not (path.suffix in (".yaml", ".yml") or "/" in value or path.is_file() or run):
        return None
    return path / "config.yaml" if path.is_dir() else path


def load(file: Path, groups: set[str], folder: Path, packaged: list[str], depth: int = 0) -> Recipe:
    """Returns what a recipe asks for, with all that it starts from. folder: of the packaged recipes. Raises RequestError."""
    if depth > MOST_BASES:
        raise RequestError(
            f"recipe={file}: more than {MOST_BASES} recipes start from one another; do they name themselves?"
        )
    asked = _read(file)
    if all(isinstance(asked.get(group), Mapping) and "_target_" in asked[group] for group in WHOLE):
        asked = renewed(asked)
    choices, settings, nodes = _parts(file, asked, groups)
    check_targets({**settings, **nodes})  # whoever wrote it
    base = choices.pop("recipe", None)
    if base is None:
        return Recipe(str(file), choices, settings, nodes)
    other = file_of(base, packaged) or folder / f"{base}.yaml"
    if base not in packaged and other.parent == folder:
        raise RequestError(f"{file}: recipe: {base} is no recipe; there are {', '.join(packaged)}, and files")
    below = load(other, groups, folder, packaged, depth + 1)
    kept = {group: node for group, node in below.nodes.items() if group not in choices}
    return Recipe(str(file), {**below.choices, **choices}, _joined(below.settings, settings), {**kept, **nodes})


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            text = opened.read(MOST_BYTES + 1).decode("utf-8-sig")
        if len(text) > MOST_BYTES:
            raise RequestError(f"recipe={file} is larger than {MOST_BYTES} bytes; a recipe is a short YAML file")
        found = OmegaConf.to_container(OmegaConf.create(text), resolve=False) if text.strip() else {}
    except FileNotFoundError:
        raise RequestError(f"recipe={file}: there is no such file; check the path") from None
    except OSError as error:
        raise RequestError(f"recipe={file} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException, AssertionError) as error:
        said = " ".join(str(error).split())
        raise RequestError(f"recipe={file} is no YAML that holds keys and values: {said}") from error
    if not isinstance(found, dict):
        raise RequestError(f"recipe={file} holds no keys and values")
    if odd := [key for key in found if not isinstance(key, str)]:
        raise RequestError(f"recipe={file}: {odd[0]!r} is no key")
    return {str(key): value for key, value in found.items()}


def _parts(
    file: Path, asked: Mapping[str, Any], groups: set[str]
) -> tuple[dict[str, str], dict[str, Any], dict[str, dict[str, Any]]]:
    """Returns choices, settings and nodes with a `_target_` of what a file says. Raises RequestError."""
    choices: dict[str, str] = {}
    settings: dict[str, Any] = {}
    nodes: dict[str, dict[str, Any]] = {}
    for entry in asked.get("defaults") or ():
        if entry == "_self_":
            continue
        if not isinstance(entry, dict) or len(entry) != 1:
            raise RequestError(f"{file}: defaults: {entry!r} is not understood; write - override /GROUP: CHOICE")
        ((name, choice),) = entry.items()
        group = str(name).removeprefix("override ").strip().removeprefix("/")
        if isinstance(choice, list):
            choice = f"[{', '.join(map(str, choice))}]"
        if group not in groups or not isinstance(choice, str):
            raise RequestError(
                f"{file}: defaults: {name}: {choice} is no group with a choice; groups: {', '.join(groups)}"
            )
        choices[group] = choice_today(group, choice)
    for key, value in asked.items():
        if key == "defaults":
            continue
        if key in groups and isinstance(value, list):
            value = f"[{', '.join(map(str, value))}]"
        if key in groups and isinstance(value, str):
            choices[key] = choice_today(key, value)
        elif key in PLACES and isinstance(value, dict) and "_target_" in value:
            nodes[key] = value
        else:
            settings = _joined(settings, _nested(key, value))
    return choices, settings, nodes


def _nested(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def _joined(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = {key: _joined(below[key], above[key]) for key in below if key in above and _nodes(below[key], above[key])}
    return {**below, **above, **both}


def _nodes(*values: Any) -> bool:
    return all(isinstance(value, Mapping) for value in values)


def _bare(group: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a node with the arguments of its target at their defaults; those without one are what the file says."""
    known = signature(str(node["_target_"]))
    if known is None:
        return dict(node)
    made = {"_target_": node["_target_"]}
    for name, (hint, default) in known.parameters.items():
        if hint is Any and type(default) is int:  # torch: `weight_decay: float | Tensor = 0`
            default = float(default)
        if name not in GIVEN.get(group, ()) and (default is not MISSING or name in node):
            made[name] = node[name] if default is MISSING else default
    return made
