"""Turns nested state into named tensors and plain values, and back, so that a checkpoint is read without pickle.

A state is dicts, lists and tuples of tensors, numbers, strings, booleans and None, as `state_dict()` gives them. Keys may be
integers (optimizers number their parameters), which JSON has no word for; so a dict whose keys are not all strings is
written as a list of pairs. A tensor leaves its name, the path to it, in its place.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

_TENSOR, _PAIRS, _TUPLE = "tensor of this checkpoint", "pairs", "tuple"


def flatten(state: Any, path: str = "") -> tuple[dict[str, torch.Tensor], Any]:
    """Returns ({"task/backbone.stem.0.weight": tensor, ...}, what json can write with names in the tensors' places).

    Raises TypeError for a value of another kind, naming its path: what cannot be saved must not be lost in silence.
    """
    tensors: dict[str, torch.Tensor] = {}

    def walk(value: Any, path: str) -> Any:
        if torch.is_tensor(value):
            tensors[path] = value
            return {_TENSOR: path}
        if isinstance(value, Mapping):
            inner = [(k, walk(v, f"{path}/{k}" if path else str(k))) for k, v in value.items()]
            if all(isinstance(k, str) for k, _ in inner) and not set(value) & {_TENSOR, _PAIRS, _TUPLE}:
                return dict(inner)
            return {_PAIRS: [[walk(k, path), v] for k, v in inner]}
        if isinstance(value, list | tuple):
            items = [walk(v, f"{path}/{i}") for i, v in enumerate(value)]
            return items if isinstance(value, list) else {_TUPLE: items}
        if value is None or type(value) in (bool, int, float, str):
            return value
        raise TypeError(f"{path} is a {type(value).__name__}; a checkpoint holds tensors and plain values")

    return tensors, walk(state, path)


def names(plain: Any) -> list[str]:
    """Returns the names of the tensors that a flattened state asks for."""
    found: list[str] = []

    def note(name: str) -> torch.Tensor:
        found.append(name)
        return torch.empty(0)

    unflatten(plain, note)
    return found


def unflatten(plain: Any, tensor: Callable[[str], torch.Tensor]) -> Any:
    """Returns the state again; tensor(name) gives the tensors."""
    if isinstance(plain, list):
        return [unflatten(v, tensor) for v in plain]
    if not isinstance(plain, dict):
        return plain
    if plain.keys() == {_TENSOR}:
        return tensor(plain[_TENSOR])
    if plain.keys() == {_PAIRS}:
        return {unflatten(k, tensor): unflatten(v, tensor) for k, v in plain[_PAIRS]}
    if plain.keys() == {_TUPLE}:
        return tuple(unflatten(v, tensor) for v in plain[_TUPLE])
    return {k: unflatten(v, tensor) for k, v in plain.items()}
