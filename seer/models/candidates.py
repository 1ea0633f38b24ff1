"""Finds the backbone in what a trainer saved: under which entries it lies, behind which prefix, and what stands beside it.

Trainers nest a state dict (`state_dict`, `model`, `student`, …) and put their own names before the network's (`backbone.`,
`module.encoder_q.`, `model.0.`): no list of these is needed, for a family's names of blocks say where they begin. A
*candidate* is all that lies in one state dict behind one prefix.

Surprising:
- Of a network and its running average (encoder_k, teacher, momentum_…, …_ema) the network itself is taken, whoever saved it;
  which one was taken, and what others are there, is told. Between two that nothing tells apart nobody guesses.
- Behind a prefix there is a network of somebody's with heads and losses around it: what lies outside is left out and counted.
  Without a prefix, what is not a name of the family's is refused, but for the heads that are listed here.
- `nn.Sequential(*list(network.children()))`, as lightly's examples have it, numbers the network's own children.
- A file is a stranger's word: it may nest for ever, or hold itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from seer.core.errors import RequestError
from seer.models.families import FAMILIES
from seer.models.families.family import Family
from seer.models.key_maps import LIBRARIES, unwrapped

DEEPEST = 5  # levels of mappings that are looked into
LONGEST = 8  # elements of a name that may stand before the network's own
# First elements of names that are of a head on a backbone, in the trainers that were looked at (MoCo's fc.0, timm's head, …).
HEADS = frozenset(
    "fc head classifier projector projection projection_head predictor prediction_head prototypes linear neck mlp "
    "mlp_head online_classifier".split()
)
_AVERAGE = re.compile(r"(^|_)(ema|momentum|teacher|target|averaged?|swa|key|k)(_|$)")
_USUAL = frozenset(
    "state_dict model_state_dict trunk model net network module backbone encoder encoder_q student online online_encoder "
    "online_network base base_model base_encoder feature_extractor features body visual vision_model resnet regnet "
    "classy_state_dict".split()
)


@dataclass(frozen=True, eq=False)
class Candidate:
    """Holds one place where a backbone may lie. entries: the keys that lead to its state dict. prefix: what stands before the
    network's names, without wrappers. state: its state dict, under the file's names. plain: file's name -> network's name.
    blocks: how many of these are of blocks. left: how many entries of the state dict are not its."""

    family: Family
    entries: tuple[str, ...]
    prefix: str
    state: Mapping[str, Any]
    plain: Mapping[str, str]
    blocks: int
    left: int

    @property
    def place(self) -> str:
        """Returns how people find it in the file: `state_dict > backbone.*`."""
        return " > ".join([*self.entries, f"{self.prefix}*"])

    @property
    def rank(self) -> int:
        """Returns 0 for a place that is usual for a network, 1 for an unknown one, 2 for a running average."""
        words = [*self.entries, *(word for word in self.prefix.split(".") if word)]
        if any(_AVERAGE.search(word) for word in words):
            return 2
        return int(any(word not in _USUAL and not word.isdecimal() for word in words))


def backbone_in(top: Mapping[Any, Any], *, what: str) -> tuple[Candidate, list[Candidate]]:
    """Returns the backbone that a file holds, and the others in it that were not taken.

    Raises RequestError where there is none of a known family, and where nothing tells which of several is meant.
    """
    found = [one for entries, state in _state_dicts(top) for one in _candidates(entries, state, what)]
    if not found:
        raise _none(top, what)
    most = max(one.blocks for one in found)
    whole = [one for one in found if 2 * one.blocks >= most]  # the rest are scraps: a queue, a head with a block's name
    best = min(one.rank for one in whole)
    first = [one for one in whole if one.rank == best]
    distinct = [one for i, one in enumerate(first) if not any(_same(one, earlier) for earlier in first[:i])]
    if len(distinct) > 1:
        places = ", ".join(repr(one.place) for one in distinct)
        raise RequestError(
            f"{what} holds {len(distinct)} backbones that may be meant, {places}: save the state dict of the one that is, "
            "alone, and give that"
        )
    return distinct[0], [one for one in whole if one not in first]


def _state_dicts(top: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """Yields (the keys that lead there, a mapping), each once, the outer ones first."""
    seen = {id(top)}
    level: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), top)]
    for _ in range(DEEPEST):
        yield from level
        inner = []
        for entries, node in level:
            for key, value in node.items():
                if isinstance(key, str) and isinstance(value, Mapping) and id(value) not in seen:
                    seen.add(id(value))
                    inner.append(((*entries, key), value))
        level = inner


def _candidates(entries: tuple[str, ...], state: Mapping[Any, Any], what: str) -> list[Candidate]:
    names = {
        key: unwrapped(key) for key, value in state.items() if isinstance(key, str) and not isinstance(value, Mapping)
    }
    blocks: dict[tuple[str, bool, str], int] = {}
    for name in names.values():
        if place := _place(name):
            blocks[place] = blocks.get(place, 0) + 1
    if blocks:
        _no_odd_keys(state, what)
    prefixes = [prefix for prefix, _, _ in blocks]
    made = []
    for (prefix, numbered, family), count in blocks.items():
        row = FAMILIES[family]
        inner = [other for other in prefixes if other != prefix and other.startswith(prefix)]
        plain = {}
        for key, name in names.items():
            if not name.startswith(prefix) or name.startswith(tuple(inner)):
                continue
            own: str | None = name[len(prefix) :]
            own = _by_name(own or "", row) if numbered else own
            if own is not None and own.partition(".")[0] not in HEADS:
                plain[key] = own
        held = {key: state[key] for key in plain}
        made.append(Candidate(row, entries, prefix, held, plain, count, len(names) - len(plain)))
    return made


def _place(name: str) -> tuple[str, bool, str] | None:
    """Returns (the prefix, whether children are numbered, the family) of a name of a block, None for other names."""
    elements = name.split(".", LONGEST + 1)
    for numbered in (False, True):
        for start in range(min(len(elements), LONGEST)):
            if numbered and not elements[start].isdecimal():
                continue
            own = ".".join(elements[start:])
            for row in FAMILIES.values():
                asked = _by_name(own, row) if numbered else own
                if asked is not None and row.claims([asked]):
                    return "".join(f"{element}." for element in elements[:start]), numbered, row.name
    return None


def _by_name(numbered: str, row: Family) -> str | None:
    """Returns `layer1.0.conv1.weight` for `4.0.conv1.weight`: the child that a Sequential calls so; None where it has none."""
    number, _, rest = numbered.partition(".")
    if not number.isdecimal() or len(number) > 2 or int(number) >= len(row.children):
        return None
    return f"{row.children[int(number)]}.{rest}"


def _same(one: Candidate, other: Candidate) -> bool:
    """Returns whether two hold the same numbers, as where a module was registered twice."""
    a, b = ({name: c.state[key] for key, name in c.plain.items()} for c in (one, other))
    if a.keys() != b.keys():
        return False
    return all(isinstance(a[k], Tensor) and isinstance(b[k], Tensor) and _equal(a[k], b[k]) for k in a)


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or any(t.is_meta or t.layout != torch.strided for t in (a, b)):
        return False
    if any(t.numel() * t.itemsize > t.untyped_storage().nbytes() for t in (a, b)):
        return False  # a shape that its numbers do not fill: comparing it could take for ever
    return (a.data_ptr() == b.data_ptr() and a.stride() == b.stride()) or torch.equal(a, b)


def _no_odd_keys(state: Mapping[Any, Any], what: str) -> None:
    odd = [key for key in state if not isinstance(key, str)]
    if odd:
        raise RequestError(f"{what} has the key {odd[0]!r}, wanted a state dict: names -> tensors. Save that alone")


def _none(top: Mapping[Any, Any], what: str) -> RequestError:
    parts = [key for key, value in top.items() if isinstance(value, Mapping)]
    tensors = {
        key: value for _, state in _state_dicts(top) for key, value in state.items() if isinstance(value, Tensor)
    }
    titles = " or ".join(row.title for row in FAMILIES.values() if not row.borrowed)
    kinds = f"{titles} in names of {', '.join(names.library for names in LIBRARIES)}"
    if not tensors:
        held = ", ".join(map(repr, list(top)[:5])) or "none"
        return RequestError(f"{what} holds no tensors; its keys: {held}. Give a state dict: names -> tensors")
    beside = f"its parts {', '.join(map(repr, parts[:5]))}; " if parts else ""
    return RequestError(
        f"{what} holds no {kinds}; {beside}first keys: {', '.join(map(repr, list(tensors)[:5]))}. "
        f"Give the weights of a {titles}, or a bundle, which says its shape"
    )
