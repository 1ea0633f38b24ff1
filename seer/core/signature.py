"""Reads what a `_target_` takes from its source without importing it: torch costs seconds, and a wrong word should not.

Surprising: the source is parsed, not run. A name that a module merely imports is followed to where it is defined, so a class
that moved is found by its old path as well. Annotations are those of the standard library's types; of any other, a value may
be of any kind, and the constructor says what is wrong with it.
"""

import ast
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

_NAMES = {
    **{
        "int": int,
        "float": int | float,
        "bool": bool,
        "str": str,
        "None": None,
        "Any": Any,
        "dict": dict,
        "list": list,
    },
    **{"Sequence": list, "tuple": list, "Mapping": dict},
}
MISSING = object()


@dataclass(frozen=True)
class Signature:
    """Holds a signature. parameters: name -> (annotated type, default or MISSING). durations: those that people
    write as durations. meanings: name -> what the docstring's table says of it."""

    parameters: Mapping[str, tuple[Any, Any]]
    durations: tuple[str, ...] = ()
    meanings: Mapping[str, str] = field(default_factory=dict)


@cache
def signature(target: str) -> Signature | None:
    """Returns the signature of a class or function by its dotted path; None where its source tells none."""
    module, _, name = target.rpartition(".")
    node = _definition(module, name) if module else None
    if isinstance(node, ast.FunctionDef):
        return Signature(_parameters(node), meanings=_meanings(node))
    if not isinstance(node, ast.ClassDef):
        return None
    made = next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"), None)
    durations: tuple[str, ...] = ()
    for one in node.body:
        if isinstance(one, ast.Assign) and [ast.unparse(t) for t in one.targets] == ["durations"]:
            durations = tuple(ast.literal_eval(one.value))
    return Signature(_parameters(made), durations, _meanings(node)) if made else None


def _meanings(node: ast.ClassDef | ast.FunctionDef) -> dict[str, str]:
    """Returns the table of a docstring: a line `name  what it means`, two spaces or more between, and deeper lines that go on."""
    found: dict[str, str] = {}
    name = ""
    for line in (ast.get_docstring(node) or "").splitlines():
        if row := re.match(r"(\w+)  +(\S.*)$", line):
            name = row[1]
            found[name] = row[2]
        elif name and re.match(r"   +\S", line):
            found[name] += f" {line.strip()}"
        else:
            name = ""
    return found


def _definition(module: str, name: str, hops: int = 5) -> ast.stmt | None:
    source = _source(module)
    if source is None or not hops:
        return None
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _definition(node.module, alias.name, hops - 1)
    return None


def _source(module: str) -> str | None:
    """Returns a module's source; only the package at the top is looked for, since finding an inner one imports the outer."""
    top, *rest = module.split(".")
    found = importlib.util.find_spec(top)
    if found is None or not found.submodule_search_locations:
        return None
    for folder in found.submodule_search_locations:
        path = Path(folder, *rest)
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file.read_text(encoding="utf-8")
    return None


def _parameters(function: ast.FunctionDef) -> dict[str, tuple[Any, Any]]:
    given = function.args
    plain = [*given.posonlyargs, *given.args]
    defaults = [MISSING] * (len(plain) - len(given.defaults)) + [_literal(node) for node in given.defaults]
    pairs = [*zip(plain, defaults, strict=True)]
    pairs += [
        (a, MISSING if d is None else _literal(d)) for a, d in zip(given.kwonlyargs, given.kw_defaults, strict=True)
    ]
    return {a.arg: (_hint(a.annotation), default) for a, default in pairs if a.arg != "self"}


def _literal(node: ast.expr) -> Any:
    """Returns the value of a default: a constant, a list of such, or a quotient like 3 / 4."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return _literal(node.left) / _literal(node.right)
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(one) for one in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError:
        return MISSING


def _hint(node: ast.expr | None) -> Any:
    """Returns an annotation as a type that `schema.fits` understands; Any for what is none of the standard library's."""
    if node is None:
        return Any
    if isinstance(node, ast.Constant):
        return None if node.value is None else Any
    if isinstance(node, ast.Name):
        return _NAMES.get(node.id, Any)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        parts: Sequence[Any] = (_hint(node.left), _hint(node.right))
        return Any if Any in parts else parts[0] | parts[1]
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in ("Mapping", "dict"):
        return dict
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in ("Sequence", "list"):
        return list[_hint(node.slice)]  # type: ignore[misc]
    return Any
