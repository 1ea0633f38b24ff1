"""Types settings: what a key takes, its limits, its default and the sentence about it stand once, where it is declared.

A node of the config is a frozen dataclass whose fields are made by `setting`. `read` turns plain values into it and names the
first wrong one; `plain` turns it back, so that `read(type(x), plain(x)) == x`. Imports nothing heavy: words are checked
before torch is imported.
"""

import dataclasses
import difflib
import math
import types
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from seer.core.errors import RequestError

T = TypeVar("T")

Path = Annotated[str, "a path"]
Paths = Annotated[str | list[str], "a path, or a list of them"]
Duration = Annotated[int | float | str, "a duration like 20000, 600kimg, 15ep or 3%"]
Steps = Annotated[int | str, "a duration like 20000, 600kimg, 15ep or 3%"]
Rate = Annotated[int | float | str, "a rate like 0.3, 0.3@256 or 0.1%"]
Share = Annotated[int | float | str, "a share like 1% or 0.01"]
Part = Annotated[int | float | str, "a whole number, or a share like 20%"]
Word = Annotated[str, "a word"]
Level = Annotated[str | int, "black, white, gray, or a level from 0 to 255"]
Whole = Annotated[int, "a whole number"]
Number = Annotated[int | float, "a number"]
Switch = Annotated[bool, "true or false"]
Node = Annotated[dict[str, Any], "a rule like {key: value}"]
Nodes = Annotated[list[Node], "a list of rules"]


def setting(
    default: Any, words: str, *, least: float | None = None, above: float | None = None, one_of: Sequence[str] = ()
) -> Any:
    """Declares a field: its default, the sentence about it, and the least value, or the limit that it lies above, or
    the only words that it takes."""
    metadata = {"words": words, "least": least, "above": above, "one_of": tuple(one_of)}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    if default is dataclasses.MISSING:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def read(kind: type[T], values: Mapping[str, Any], prefix: str = "") -> T:
    """Makes a node of its plain values; what is left out gets its default. Raises RequestError for the first wrong key."""
    hints, known = _hints(kind), {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise RequestError(f"{prefix.rstrip('.') or 'the config'}={values!r}: keys and values are expected")
    if unknown := [key for key in values if key not in known]:
        raise RequestError(
            f"unknown key '{prefix}{unknown[0]}'; there are {', '.join(prefix + name for name in known)}"
        )
    made = {}
    for name, field in known.items():
        if name in values:
            made[name] = _value(hints[name], values[name], prefix + name, field)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise RequestError(f"{prefix}{name} is missing")
    return kind(**made)


def defaults(kind: type, missing: Any = dataclasses.MISSING) -> dict[str, Any]:
    """Returns the plain defaults of a node. missing: what stands for a key that has none; without it such keys are left out."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        hint = _hints(kind)[field.name]
        if dataclasses.is_dataclass(hint):
            found[field.name] = defaults(hint, missing)  # type: ignore[arg-type]
        elif field.default_factory is not dataclasses.MISSING:
            found[field.name] = field.default_factory()
        elif field.default is not dataclasses.MISSING:
            found[field.name] = field.default
        elif missing is not dataclasses.MISSING:
            found[field.name] = missing
    return found


def hint_of(kind: type, key: str) -> Any:
    """Returns the annotated type of a dotted key; Any for one inside a plain node, or none of the schema's."""
    for name in key.split("."):
        if not dataclasses.is_dataclass(kind) or name not in _hints(kind):
            return Any
        kind = _hints(kind)[name]
    return kind


def sentences(kind: type, prefix: str = "") -> dict[str, str]:
    """Returns what is said of every key, by its dotted name."""
    found: dict[str, str] = {}
    for field in dataclasses.fields(kind):
        hint = _hints(kind)[field.name]
        if dataclasses.is_dataclass(hint):
            found |= sentences(hint, f"{prefix}{field.name}.")  # type: ignore[arg-type]
        else:
            found[prefix + field.name] = field.metadata.get("words", "")
    return found


def limits(kind: type, prefix: str = "") -> dict[str, str]:
    """Returns what values of each key are limited to, by its dotted name, where they are."""
    found: dict[str, str] = {}
    for field in dataclasses.fields(kind):
        hint, name = _hints(kind)[field.name], prefix + field.name
        if dataclasses.is_dataclass(hint):
            found |= limits(hint, f"{name}.")  # type: ignore[arg-type]
        elif one_of := field.metadata.get("one_of"):
            found[name] = " | ".join(one_of)
        elif (least := field.metadata.get("least")) is not None:
            found[name] = f"at least {least}"
        elif (above := field.metadata.get("above")) is not None:
            found[name] = f"above {above}"
    return found


def paths(kind: type, prefix: str = "") -> dict[str, bool]:
    """Returns the keys that take a path, by their dotted names, and whether they take several."""
    found: dict[str, bool] = {}
    for field in dataclasses.fields(kind):
        hint, name = _hints(kind)[field.name], prefix + field.name
        if dataclasses.is_dataclass(hint):
            found |= paths(hint, f"{name}.")  # type: ignore[arg-type]
        elif one := [h for h in (hint, *get_args(hint)) if h in (Path, Paths)]:
            found[name] = one[0] == Paths
    return found


def plain(node: Any) -> dict[str, Any]:
    """Returns the plain values of a node: dicts, lists, words and numbers that are copies."""
    return dataclasses.asdict(node)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _value(hint: Any, value: Any, key: str, field: dataclasses.Field[Any]) -> Any:
    if dataclasses.is_dataclass(hint):
        return read(hint, value, f"{key}.")  # type: ignore[arg-type]
    if not fits(hint, value):
        null = ", or null" if fits(hint, None) else ""
        raise RequestError(f"{key}={value!r}: {described(hint)}{null} is expected")
    least, above = field.metadata.get("least"), field.metadata.get("above")
    if value is not None and least is not None and value < least:
        raise RequestError(f"{key}={value}: at least {least}")
    if value is not None and above is not None and value <= above:
        raise RequestError(f"{key}={value}: above {above}")
    if value is not None and (one_of := field.metadata.get("one_of")) and value not in one_of:
        near = difflib.get_close_matches(str(value), one_of, n=1)
        raise RequestError(
            f"{key}={value}: one of {', '.join(one_of)}" + (f"; did you mean {near[0]!r}?" if near else "")
        )
    return value


def fits(hint: Any, value: Any) -> bool:
    """Returns whether a plain value is of an annotated type. A bool is no number, and no number is infinite."""
    origin = get_origin(hint)
    if origin is Annotated:
        return fits(get_args(hint)[0], value)
    if origin in (Union, types.UnionType):
        return any(fits(one, value) for one in get_args(hint))
    if hint is Any:
        return True
    if hint in (None, type(None)):
        return value is None
    if origin in (list, dict):
        inner = get_args(hint)[-1]
        each = value if origin is list else value.values() if isinstance(value, dict) else ()
        return isinstance(value, origin) and all(fits(inner, one) for one in each)
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def described(hint: Any) -> str:
    """Returns in words what an annotated type takes."""
    if get_origin(hint) is Annotated:
        return str(get_args(hint)[1])
    parts = [described(one) for one in get_args(hint) if one is not type(None)]
    return " or ".join(parts) or getattr(hint, "__name__", str(hint))
