"""Makes parameter groups by regex rules, and does to those groups what the training step asks.

Surprising here:

- The first matching rule wins, `re.search` on the full name without the wrappers' parts (`module.`, `_orig_mod.`, …),
  so one rule serves a plain, compiled, checkpointed or DDP model. Parameters that no rule claims form the group
  "default".
- A rule that claims nothing is an error: a misspelt "prototpyes" must not silently train what should be frozen.
- Frozen is not lr = 0. Momentum gathers gradients, and AdamW decays, whatever the lr is: gradients of frozen groups are
  dropped, and every optimizer of torch leaves a parameter without gradient alone.
- Schedules are not kept in the groups, because groups are part of the optimizer's state_dict: functions do not belong
  in a checkpoint. They are passed by group name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from seer.optim.schedules import Schedule

__all__ = ["Place", "Rule", "apply_schedules", "build_groups", "drop_frozen_gradients", "split_groups"]

WRAPPERS = re.compile(r"^module\.|\b(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\.")


_TYPES: Mapping[Any, Any] = {
    **{"str": str, "int": int, "float": (int, float), "str | None": str | None, "int | None": int | None},
    **{"float | None": int | float | None, "bool | None": bool | None},
}


@dataclass(frozen=True)
class Rule:
    """Says what parameters get whose name matches `pattern` (and that have at most `max_dims` dimensions).

    name                the group's name; the pattern when left out
    lr_scale            factor on the scheduled learning rate
    weight_decay_scale  factor on the weight decay, scheduled or not; 0 decays nothing
    weight_decay        a fixed weight decay instead, which no schedule touches
    adapt               for LARS: False makes the group plain SGD; None leaves the optimizer's default
    frozen_steps        the group does not move before this step
    """

    pattern: str
    name: str | None = None
    max_dims: int | None = None
    lr_scale: float = 1.0
    weight_decay_scale: float = 1.0
    weight_decay: float | None = None
    adapt: bool | None = None
    frozen_steps: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, _TYPES[field.type]) or (isinstance(value, bool) and field.name != "adapt"):
                raise ValueError(f"rule {self.pattern!r} has {field.name} {value!r}; it is {field.type}")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is not a regular expression: {error}") from error
        if self.weight_decay is not None and self.weight_decay_scale != 1.0:
            raise ValueError(
                f"rule {self.pattern!r} has weight_decay {self.weight_decay} and weight_decay_scale "
                f"{self.weight_decay_scale}; one replaces the decay, the other multiplies it: keep one of them"
            )
        for limited in ("lr_scale", "weight_decay_scale", "weight_decay", "frozen_steps"):
            if (value := getattr(self, limited)) is not None and value < 0:
                raise ValueError(f"rule {self.pattern!r} has {limited} {value}; it is at least 0")

    def claims(self, name: str, parameter: torch.Tensor) -> bool:
        return (self.max_dims is None or parameter.dim() <= self.max_dims) and re.search(self.pattern, name) is not None


def build_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    rules: Sequence[Rule | Mapping[str, Any]] = (),
    *,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Builds parameter groups for LARS, torch.optim.SGD, AdamW, …, in the order of the rules, "default" last (if any).

    Each group: params, name, lr_scale, weight_decay, weight_decay_scale (None: fixed), frozen_steps, frozen, and adapt
    where the rule says. Names inside a group keep the model's order. ValueError for unknown keys, two groups of one
    name, and a rule that claims no parameter.
    """
    default = Rule(pattern="", name="default")
    checked = [*map(_rule, rules), default]
    claimed: list[list[nn.Parameter]] = [[] for _ in checked]
    names = []
    for name, parameter in named_parameters:
        names.append(name := WRAPPERS.sub("", name))
        index = next(i for i, rule in enumerate(checked) if rule.claims(name, parameter))  # the default claims all
        claimed[index].append(parameter)

    groups: list[dict[str, Any]] = []
    for rule, parameters in zip(checked, claimed, strict=True):
        if not parameters and rule is default:
            continue
        if not parameters:
            matched = [name for name in names if re.search(rule.pattern, name)]
            why = "earlier rules or max_dims took " if matched else "names are like "
            why += ", ".join((matched or names)[:3])
            raise ValueError(
                f"rule {rule.pattern!r} claims none of {len(names)} parameters ({why}); correct or remove it"
            )
        group = {
            "params": parameters,
            "name": rule.name or rule.pattern,
            "lr_scale": rule.lr_scale,
            "weight_decay": weight_decay * rule.weight_decay_scale if rule.weight_decay is None else rule.weight_decay,
            "weight_decay_scale": rule.weight_decay_scale if rule.weight_decay is None else None,
            "frozen_steps": rule.frozen_steps,
            "frozen": rule.frozen_steps > 0,
        }
        if rule.adapt is not None:
            group["adapt"] = rule.adapt
        if group["name"] in (other["name"] for other in groups):
            raise ValueError(f"two groups are called {group['name']!r}; give one of the rules another name")
        groups.append(group)
    return groups


@dataclass(frozen=True)
class Place:
    """Says where in the network a parameter lies, and what that does to its group. name: of the place, for people."""

    name: str = ""
    lr_scale: float = 1.0
    frozen_steps: int = 0


def split_groups(groups: Sequence[Mapping[str, Any]], places: Mapping[nn.Parameter, Place]) -> list[dict[str, Any]]:
    """Splits groups by the places of their parameters, in the order in which these come; others keep their group.

    A part is called GROUP/PLACE and keeps the group's name as `rule`, by which `apply_schedules` finds its schedule.
    """
    found: list[dict[str, Any]] = []
    for group in groups:
        parts: dict[Place, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            parts.setdefault(places.get(parameter, Place()), []).append(parameter)
        for place, parameters in parts.items():
            frozen = max(group["frozen_steps"], place.frozen_steps)
            name = f"{group['name']}/{place.name}" if place.name else group["name"]
            own = {
                "params": parameters,
                "name": name,
                "rule": group["name"],
                "frozen_steps": frozen,
                "frozen": frozen > 0,
            }
            found.append({**group, **own, "lr_scale": group["lr_scale"] * place.lr_scale})
    return found


def apply_schedules(
    optimizer: torch.optim.Optimizer,
    step: int,
    lr: Schedule,
    weight_decay: Schedule | None = None,
    by_group: Mapping[str, Schedule] | None = None,
) -> None:
    """Sets lr, weight decay and "frozen" of every group for this step; call it before the forward.

    lr            step -> rate, multiplied by each group's lr_scale; None freezes the group for this step
    weight_decay  step -> decay, multiplied by weight_decay_scale; left out: the decay stays as built. None from it
                  keeps the last
    by_group      group name -> the lr schedule that replaces `lr` for that group

    Groups made without build_groups count as lr_scale 1, weight_decay_scale 1, never frozen by themselves. A frozen
    group has lr 0 and frozen True. ValueError for a name in `by_group` that no group has.
    """
    by_group = by_group or {}
    if unknown := set(by_group) - {_rule_of(group) for group in optimizer.param_groups}:
        known = sorted(str(_rule_of(group)) for group in optimizer.param_groups)
        raise ValueError(f"schedules for {sorted(unknown)}, but the groups are {known}; use those names")
    decay = None if weight_decay is None else weight_decay(step)
    for group in optimizer.param_groups:
        rate = by_group.get(_rule_of(group) or "", lr)(step)
        group["frozen"] = rate is None or step < group.get("frozen_steps", 0)
        group["lr"] = 0.0 if group["frozen"] else rate * group.get("lr_scale", 1.0)
        if decay is not None and (scale := group.get("weight_decay_scale", 1.0)) is not None:
            group["weight_decay"] = decay * scale


def _rule_of(group: Mapping[str, Any]) -> str | None:
    """Returns the name of the rule that made a group, whatever part of it this is."""
    return group.get("rule", group.get("name"))


def drop_frozen_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Forgets the gradients of frozen groups, between backward and step: no momentum, no decay, no part in clipping."""
    for group in optimizer.param_groups:
        if group.get("frozen", False):
            for parameter in group["params"]:
                parameter.grad = None


def _rule(rule: Rule | Mapping[str, Any]) -> Rule:
    if isinstance(rule, Rule):
        return rule
    known = [field.name for field in fields(Rule)]
    if unknown := [key for key in rule if key not in known]:
        raise ValueError(f"rule {dict(rule)} has unknown keys {unknown}; a rule takes {', '.join(known)}")
    if "pattern" not in rule:
        raise ValueError(f"rule {dict(rule)} has no pattern; it says which parameter names the rule is for")
    return Rule(**rule)
