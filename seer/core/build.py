"""Makes objects of config nodes with a `_target_`.

Each group of the config names the places where its targets may lie (`PLACES`), and what a target finds must be a public
class or function that is *defined* there (by `__module__`): a path that walks through an imported module, like
`torch.optim.optimizer.torch.os.mkdir`, is refused, and so is a writer of ours, like `seer.cli.export.run`. So a config,
whoever wrote it, cannot run strangers' code and cannot make ours write. `check_targets` refuses before anything is imported.

Surprising: only code can admit another place (`allow`), for a task or a model that lies outside SEER; no word and no file can.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from seer.core.errors import RequestError

PLACES: dict[str, tuple[str, ...]] = {
    "model": ("seer.models.zoo", "seer.models.regnet", "seer.models.resnet"),
    "surgery": ("seer.models.surgery",),
    "task": ("seer.tasks",),
    "augment": ("seer.data.multicrop", "seer.data.transforms"),
    "optim": ("seer.optim", "torch.optim"),
    "schedule": ("seer.optim.schedules",),
    "precision": ("seer.engine.precision",),
    "eval": ("seer.evals", "seer.compare.suite"),
}
_allowed: dict[str, tuple[str, ...]] = {}


def allow(group: str, module: str) -> None:
    """Admits targets of a group that lie in `module` or below, for this process. To be called by code, never by a config."""
    if group not in PLACES:
        raise ValueError(f"group {group!r} has no targets; those that have: {', '.join(PLACES)}")
    _allowed[group] = (*_allowed.get(group, ()), module)


def places(group: str) -> tuple[str, ...]:
    """Returns the modules in and below which the targets of a group may lie."""
    return PLACES.get(group, ()) + _allowed.get(group, ())


def check_targets(config: Mapping[str, Any]) -> None:
    """Raises RequestError for the first `_target_` of a config that lies in no place of its group. Imports nothing."""
    for group, node in config.items():
        steps = node.get("steps") if group == "surgery" and isinstance(node, Mapping) else None
        for one in steps if isinstance(steps, list) else [node]:
            _check_node(group, one, top=group in PLACES)


def _check_node(group: str, node: Any, top: bool) -> None:
    inner = node.values() if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else ()
    if isinstance(node, Mapping) and "_target_" in node:
        if not top:
            raise RequestError(f"{group}: a _target_ ({node['_target_']!r}) is not expected here; leave it out")
        _check_place(group, node["_target_"])
    for value in inner:
        _check_node(group, value, top=False)


def _refusal(group: str, target: Any) -> RequestError:
    allowed = places(group)
    where = f"defined in {' or '.join(allowed)}" if allowed else "of the groups that have targets"
    return RequestError(
        f"{group}: _target_ {target!r} is refused: only public classes and functions {where} may be named"
    )


def _check_place(group: str, target: Any) -> None:
    module, _, name = str(target).rpartition(".")
    parts = str(target).split(".")
    if not name or any(not part or part.startswith("_") for part in parts) or not _within(module, places(group)):
        raise _refusal(group, target)


def _within(module: str, allowed: tuple[str, ...]) -> bool:
    return any(module == place or module.startswith(place + ".") for place in allowed)


def find(group: str, target: str) -> Callable[..., Any]:
    """Returns the class or function that a `_target_` of a group names. Raises RequestError."""
    _check_place(group, target)
    module, _, name = str(target).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise _refusal(group, target) from None
    if not (inspect.isclass(found) or inspect.isfunction(found)) or not _within(found.__module__, places(group)):
        raise _refusal(group, target)
    return found


def build(group: str, node: Mapping[str, Any], *given: Any, **named: Any) -> Any:
    """Calls the target of a group's node with its arguments; `named` replaces what the YAML leaves to the program."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise RequestError(f"{group}: {node!r} names no _target_, the class or function to call")
    arguments = {k: v for k, v in node.items() if k != "_target_"} | named
    target = find(group, node["_target_"])
    try:
        inspect.signature(target).bind(*given, **arguments)
    except TypeError as error:
        raise RequestError(f"{node['_target_']}: {error}") from None
    return target(*given, **arguments)
