"""Config nodes with a `_target_` -> objects.

What a target finds must be a public class or function that is *defined* (by `__module__`) in `seer.` or `torch.optim.`;
a path that walks through an imported module, like `torch.optim.optimizer.torch.os.mkdir`, is refused. So a config
cannot run strangers' code.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from seer.core.errors import RequestError

_HOMES = ("seer.", "torch.optim.")


def find(target: str) -> Callable[..., Any]:
    """The class or function that a `_target_` names. Raises RequestError."""
    module_name, _, name = str(target).rpartition(".")
    refusal = RequestError(
        f"_target_ {target!r} is refused: only public classes and functions defined in {' or '.join(_HOMES)}* may be named"
    )
    if not (module_name + ".").startswith(_HOMES) or any(part.startswith("_") for part in target.split(".")):
        raise refusal
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError):
        raise refusal from None
    if not (inspect.isclass(found) or inspect.isfunction(found)) or not (found.__module__ + ".").startswith(_HOMES):
        raise refusal
    return found


def build(node: Mapping[str, Any], *given: Any, **named: Any) -> Any:
    """Call a node's target with its arguments; `named` replaces what the YAML leaves to the program."""
    arguments = {k: v for k, v in node.items() if k != "_target_"} | named
    if "_target_" not in node:
        raise RequestError(f"{dict(node)} names no _target_, the class or function to call")
    target = find(node["_target_"])
    try:
        inspect.signature(target).bind(*given, **arguments)
    except TypeError as error:
        raise RequestError(f"{node['_target_']}: {error}") from None
    return target(*given, **arguments)
