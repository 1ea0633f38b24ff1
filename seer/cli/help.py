"""Says what the program and its verbs take: `seer --help`, `seer VERB --help [GROUP]`, `--print-config`, `--version`.

The help of a verb is made of its composed config, so that it shows what these words would do: `seer pretrain recipe=cifar --help`
shows the recipe's values. What a key means comes from the schema, from the docstring of what a `_target_` names, or from the
remark behind it in its YAML; nothing is imported for it. Surprising: what is known is all told, so it is long; essentials first.
"""

import re
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from seer.cli import config
from seer.cli.recipes import OWN
from seer.cli.verbs import SCHEMAS
from seer.core import schema
from seer.core.build import PLACES
from seer.core.config import flat, hint_of
from seer.core.errors import RequestError
from seer.core.evaluations import PROBES
from seer.core.signature import signature

ESSENTIAL = {
    "pretrain": (
        *(
            "data.source",
            "output",
            "recipe",
            "model",
            "weights",
            "steps",
            "batch",
            "schedule.peak",
            "precision",
            "task",
            "augment",
        ),
        *("eval.train", "eval.test", "seed", "parallel.device"),
    ),
    "adapt": (
        *("weights", "heads", "data.source", "output", "recipe", "surgery", "model", "steps", "batch", "schedule.peak"),
        *("augment.size", "data.labels", "eval.train", "eval.test", "seed", "parallel.device"),
    ),
    "plan": (
        "recipe",
        "model",
        "batch",
        "gpus",
        "gpu_memory",
        "parallel.mode",
        "parallel.remat",
        "precision",
        "parallel.device",
        "budget",
    ),
    "evaluate": ("weights", "eval", "data.train", "data.test", "data.labels", "output", "device"),
    "export": ("weights", "to", "output", "outputs", "preprocessing", "int8", "budget", "licence", "push"),
    "measure": ("file", "against", "data.test", "budget", "threads", "output"),
    "shard": ("source", "output", "labels", "holdout", "max_side", "per_shard"),
}
USAGE = {
    "pretrain": "seer pretrain [recipe=NAME] data.source=IMAGES output=RUN [group=choice] [key=value] …",
    "adapt": "seer adapt weights=RUN heads=[NAME,NAME] data.source=LABELLED output=RUN [heads.NAME.key=value] …",
    "plan": "seer plan [recipe=NAME] [words of seer pretrain] gpus=8 gpu_memory=80",
    "evaluate": "seer evaluate eval=alignment|head|knn|linear|lowshot|rankme|suite|uniformity weights=RUN data.train=IMAGES "
    "data.test=LABELLED",
    "export": "seer export weights=RUN to=torchvision|timm|huggingface|safetensors|torch_export|onnx|executorch|all "
    "output=PATH",
    "measure": "seer measure file=FILE [against=FILE] [data.test=LABELLED] [budget=NAME]",
    "shard": "seer shard source=IMAGES output=SHARDS",
}
OF_A_GROUP = {
    "recipe": "what the other keys begin with",
    "model": "the backbone; timm:NAME and torchvision:NAME take a network of theirs",
    "data": "what is trained on",
    "heads": "what stands on the backbone, several in brackets",
    "eval": "what is measured",
    "parallel": "where it runs",
    "log": "where numbers go",
    "budget": "what a program may cost at most",
}
TARGET = "what is called; chosen by the group's choice"
INDENT = 30


def print_config(verb: str, words: Sequence[str]) -> str:
    """Returns the composed config as YAML, which `recipe=FILE` takes back. Raises RequestError."""
    return yaml.safe_dump(dict(config.read(verb, words, whole=False)), sort_keys=False, allow_unicode=True).rstrip()


def of_verb(verb: str, about: str, words: Sequence[str], asked: Sequence[str] = ()) -> str:
    """Returns the help of a verb as these words make it. about: a sentence on the verb. asked: groups or keys, when not all is
    wanted. Raises RequestError for wrong words, and for what is neither."""
    full, chosen = config.read(verb, words, whole=False), config.chosen(verb, words)
    keys = {**{group: config.choices_of(verb, group) for group in chosen}, **flat(full)}
    meant = meanings(verb, full, chosen)
    if asked:
        return "\n\n".join(_part(verb, one, keys, chosen, meant) for one in asked)
    essential = [_entry(verb, key, keys, chosen, meant) for key in ESSENTIAL[verb] if key in keys]
    parts = [f"seer {verb}: {about}", f"usage: {USAGE[verb]}", "\n".join(["the first to know:", *essential])]
    alone = [
        key for key in keys if "." not in key and key not in chosen and isinstance(full.get(key), Mapping) is False
    ]
    if alone:
        parts.append("\n".join(["every key:", *(_entry(verb, key, keys, chosen, meant) for key in alone)]))
    heads = dict.fromkeys([*chosen, *(key.partition(".")[0] for key in keys if "." in key)])
    parts += [_section(verb, head, keys, chosen, meant) for head in heads]
    parts.append(
        (f"`seer {verb} --help GROUP` shows one of {', '.join(heads)}. " if heads else "")
        + "Any word may stand before --help; --print-config instead of it prints the config that the words make"
        + (", and recipe=FILE takes that back." if "recipe" in chosen else ".")
    )
    return "\n\n".join(parts)


def meanings(verb: str, full: Mapping[str, Any], chosen: Mapping[str, str]) -> dict[str, str]:
    """Returns what every key of a config means, and every group."""
    kind = SCHEMAS[verb]
    found, limits = schema.sentences(kind), schema.limits(kind)
    for key, limit in limits.items():
        found[key] += f" ({limit})"
    for group, node in full.items():
        if group in PLACES and isinstance(node, Mapping) and "_target_" in node:
            known = signature(str(node["_target_"]))
            said = {**_remarks(group, chosen.get(group, "")), **(known.meanings if known else {})}
            found |= {f"{group}.{name}": said.get(name, "") for name in node}
            found[f"{group}._target_"] = TARGET
    for name, target in PROBES.items() if "probe" in full else ():
        known = signature(target)
        found |= {f"probe.{name}.{key}": known.meanings.get(key, "") for key in full["probe"][name]} if known else {}
    found["surgery.steps"] = found.get("surgery", "")
    for head in (full.get("task", {}).get(config.SEVERAL) or {}) if config.SEVERAL in chosen else ():
        said = _remarks(config.SEVERAL, head)
        found |= {f"task.{config.SEVERAL}.{head}.{name}": one for name, one in said.items()}
    for group in chosen:
        found[group] = found.get(group) or OF_A_GROUP[group]
    for key, value in flat(full).items():
        hint = hint_of(key, full, kind)
        if value in (None, "???") and hint is not Any and key not in limits:
            found[key] = f"{found.get(key, '')} ({schema.described(hint)})"
    return found


def _remarks(group: str, choice: str) -> dict[str, str]:
    """Returns what stands behind the keys of a choice's YAML: of targets of other libraries, which are listed there whole."""
    file = config.folder() / group / f"{choice}.yaml"
    if choice == OWN or not file.is_file():
        return {}
    found = re.findall(r"^ *(\w+):[^#\n]*# *(.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return dict(found)


def _part(verb: str, one: str, keys: Mapping[str, Any], chosen: Mapping[str, str], meant: Mapping[str, str]) -> str:
    """Returns the help on a group or on a key."""
    if one in chosen or any(key.startswith(f"{one}.") for key in keys):
        return _section(verb, one, keys, chosen, meant, choices=True)
    if one in keys:
        return _entry(verb, one, keys, chosen, meant)
    raise RequestError(f"--help {one}: no group and no key of {verb}{config.nearest(one, list(keys))}")


def _section(
    verb: str,
    head: str,
    keys: Mapping[str, Any],
    chosen: Mapping[str, str],
    meant: Mapping[str, str],
    choices: bool = False,
) -> str:
    lines = [_entry(verb, head, keys, chosen, meant)] if head in chosen else [f"{head}:"]
    if choices and head in chosen:
        lines += [
            _wrapped(f"    {head}={choice}", _head_of(head, choice)) for choice in keys[head] if _head_of(head, choice)
        ]
    lines += [_entry(verb, key, keys, chosen, meant) for key in keys if key.startswith(f"{head}.")]
    return "\n".join(lines)


def _head_of(group: str, choice: str) -> str:
    """Returns the remarks at the head of a choice's file, as one text."""
    file = config.folder() / group / f"{choice}.yaml"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return " ".join(line.removeprefix("# ") for line in lines if line.startswith("# ") and "@package" not in line)


def _entry(verb: str, key: str, keys: Mapping[str, Any], chosen: Mapping[str, str], meant: Mapping[str, str]) -> str:
    if key in chosen:
        there = " | ".join(keys[key]) + (" | FILE.yaml | RUN/config.yaml" if key == "recipe" else "")
        return _wrapped(f"  {key}={chosen[key]}", f"{meant.get(key, '')}: {there}")
    return _wrapped(f"  {key}={shown(keys[key])}", meant.get(key, ""))


def shown(value: Any) -> str:
    """Returns a value as people would type it."""
    if value == "???":
        return "…"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}: {shown(one)}' for key, one in value.items())}}}"
    return str(value)


def _wrapped(word: str, text: str) -> str:
    width = max(60, min(shutil.get_terminal_size((110, 24)).columns, 140))
    pad = " " * INDENT
    lines = textwrap.wrap(text, width - INDENT, break_long_words=False, break_on_hyphens=False) or [""]
    first = [word.ljust(INDENT - 1) + " " + lines[0]] if len(word) < INDENT else [word, pad + lines[0]]
    return "\n".join([*(line.rstrip() for line in first), *(pad + line for line in lines[1:])])
