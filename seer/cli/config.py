"""Turns words on the command line into one resolved config, or one sentence about the first wrong word.

Hydra composes the YAML files, which hold choices and differences alone. Every key with its default, type and limits stands
once: those of a verb in its schema (`cli/verbs.py`, `run/config.py`), those of a `_target_` in the signature of what it names,
read without importing it. An unknown key is answered with the nearest right one.
"""

import copy
import difflib
import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seer.cli import recipes
from seer.cli.choices import choices_of, defaults_of, folder, groups_of, zoo
from seer.cli.idle import check_effect
from seer.cli.recipes import OWN, Recipe
from seer.cli.verbs import SCHEMAS
from seer.cli.words import check_no_sweep, check_once, in_form, like_path, prepared, readable
from seer.core import schema
from seer.core.build import check_targets
from seer.core.config import filled, flat, hint_of
from seer.core.errors import RequestError
from seer.core.evaluations import images_of
from seer.core.log import log
from seer.run.older import choice_today

IMAGES = "images"  # the choice of data that is the default, and what many folders are called
SEVERAL = "heads"  # the group of which several are chosen, in brackets
LIBRARY = re.compile(r"(timm|torchvision):[A-Za-z0-9_]+")  # model= of a network of theirs, by its name there


@dataclass
class Words:
    """Holds the words of a verb in its own form, sorted. choices: group=choice. settings: key=value. own: the recipe that is a
    file."""

    choices: list[str]
    settings: list[str]
    own: Recipe | None = None
    formed: Sequence[str] = ()  # all of them, as people would write them


class Settings(dict[str, Any]):
    """Holds the config of a verb as plain dicts and lists, every key of it. typed: the keys that words named; said: those of a
    recipe that is a file as well. chosen: the groups of which a word or such a file named the choice."""

    typed: frozenset[str] = frozenset()
    said: frozenset[str] = frozenset()
    chosen: frozenset[str] = frozenset()


def read(verb: str, words: Sequence[str], *, whole: bool = True) -> Settings:
    """Returns the config of a verb. Raises RequestError.

    whole: a key that has no value is refused; else it stays "???".
    """
    asked = _sorted(verb, words)
    composed = _compose(verb, asked.choices, asked.own)
    base = _whole(verb, composed)
    known, groups = _known(base), groups_of(verb)
    for word in asked.settings:
        if word.partition("=")[0] not in known:
            from seer.cli import foreign  # words of others, wanted by errors alone

            raise RequestError(foreign.answer(verb, asked.formed, known, groups) or _unknown(word, [*known, *groups]))
    # every key is known by now, also where no YAML names it
    full = _whole(verb, _with(composed, asked.settings)) if asked.settings else copy.deepcopy(base)
    if asked.own is not None:
        _check_own(verb, asked, full)
    typed = [w.split("=", 1)[0] for w in asked.settings]
    _check_types(verb, base, full, typed)
    check_targets(full)
    if verb == "evaluate":
        full = _images(full)
    missing = sorted(key for key, value in flat(full).items() if value == "???")
    if missing and whole:
        raise RequestError(f"{verb} needs {', '.join(f'{key}=…' for key in missing)}")
    full = _at_home(verb, full)
    if not missing:
        schema.read(SCHEMAS[verb], full)  # limits
    if verb in ("pretrain", "plan", "adapt") and not full.get("replay"):
        check_effect(full, typed)
    if asked.formed != list(words):
        log.info(f"read as: seer {verb} {shlex.join(asked.formed)}")
    found = Settings(full)
    own = asked.own or Recipe("")
    found.typed, found.said = frozenset(typed), frozenset([*typed, *flat(own.settings), *flat(own.nodes)])
    found.chosen = frozenset([*(word.partition("=")[0] for word in asked.choices), *own.choices, *own.nodes])
    return found


def _images(full: dict[str, Any]) -> dict[str, Any]:
    """Returns the config of an evaluation with null for images that it does not need and nothing names, and "???" for those that
    it does need."""
    needs, data = images_of(full["eval"]), dict(full["data"])
    for name in ("train", "test"):
        if data.get(name) in (None, "???"):
            data[name] = "???" if name in needs else None
    return {**full, "data": data}


def chosen(verb: str, words: Sequence[str]) -> dict[str, str]:
    """Returns the choice of each group that these words make, those of their recipe among them."""
    asked, found = _sorted(verb, words), {}
    own = asked.own.composed() if asked.own else {}
    recipe = next((w.partition("=")[2] for w in asked.choices if w.startswith("recipe=")), "none")
    said = [*defaults_of(verb), own]
    if not own and "recipe" in groups_of(verb):
        said.append(yaml.safe_load((folder() / "recipe" / f"{recipe}.yaml").read_text(encoding="utf-8")))
    for entry in (one for node in said for one in node.get("defaults", ()) if isinstance(one, dict)):
        found.update({str(group).removeprefix("override /"): choice for group, choice in entry.items()})
    found.update(dict(word.split("=", 1) for word in asked.choices))
    if isinstance(found.get(SEVERAL), list):
        found[SEVERAL] = f"[{','.join(found[SEVERAL])}]"
    if asked.own is not None:
        found = {group: asked.own.file if choice == OWN else choice for group, choice in found.items()}
    return found


def _sorted(verb: str, words: Sequence[str]) -> Words:
    """Returns the words of people in our form. Raises RequestError for what is none, and for a choice that is not there."""
    paths, groups = schema.paths(SCHEMAS[verb]), groups_of(verb)
    formed = in_form(verb, words, paths)
    formed = [_placed(verb, word, formed) for word in formed]
    check_once(formed, paths)
    ready = {word: prepared(word, paths) for word in formed}
    asked = Words([], [], formed=formed)
    for word in formed:
        group, _, choice = word.partition("=")
        if group not in groups:
            check_no_sweep(verb, ready[word])
            asked.settings.append(ready[word])
            continue
        there = choices_of(verb, group)
        file = recipes.file_of(choice, there) if group == "recipe" else None
        if file is None:
            _check_choice(verb, group, choice)  # Hydra would take `optim={}`, `optim=null` and `model=../task/swav`
        else:
            asked.own = recipes.load(file, set(groups), folder() / "recipe", there)
            for inner, one in asked.own.choices.items():
                _check_choice(verb, inner, one, f"{file}: ")
        asked.choices.append(f"recipe={OWN}" if file else word)
    return asked


def _placed(verb: str, word: str, others: Sequence[str]) -> str:
    """Returns `data.source=PATH` for `data=PATH`, which is no choice of data, and a choice by its name of today. Of `adapt`:
    `data.train` is its data, too, and `heads.NAME.key` is the task's. Of `export`: heads are among its outputs.

    Surprising: `data=images` is a choice, and where something is called so here and no other word is the source, that.
    """
    group, _, value = word.partition("=")
    if verb == "adapt" and group == "data.train":
        return f"data.source={value}"
    if verb == "adapt" and group == SEVERAL:
        return word if value[:1] == "[" else f"{SEVERAL}=[{value}]"
    if verb == "adapt" and group.startswith(f"{SEVERAL}."):
        return f"task.{word}"
    if verb == "export" and group in (SEVERAL, "outputs") and value != "null":
        return f"outputs={value}" if value[:1] == "[" else f"outputs=[{value}]"
    if group == "probe" and verb in ("pretrain", "plan", "adapt"):
        return f"probe.run={value if value[:1] == '[' or value == 'null' else f'[{value}]'}"
    if group not in groups_of(verb) or "=" not in word:
        return word
    name = choice_today(group, value)
    given = {one.partition("=")[0] for one in others}
    meant = value == IMAGES and os.path.exists(value) and given.isdisjoint({"data.source", "data.train"})
    named = name in choices_of(verb, group) and not meant
    if group == "data" and not named and (like_path(value) or value[:1] == "["):
        return f"data.source={value}"
    return f"{group}={name}"


def _check_own(verb: str, asked: Words, full: dict[str, Any]) -> None:
    """Raises RequestError for a key of a file that is none of the verb's, or whose value is of another kind."""
    assert asked.own is not None
    own = asked.own
    bare = _whole(verb, _compose(verb, asked.choices, own.bare()))
    known = _known(bare)
    given = {w.partition("=")[0] for w in asked.settings}
    replaced = {w.partition("=")[0] for w in asked.choices}
    said = {**own.settings, **{group: node for group, node in own.nodes.items() if group not in replaced}}
    leaves = [key for key in flat(said) if key not in given]
    try:
        for key in leaves:
            if not any(key == one or key.startswith(f"{one}.") for one in known):
                raise RequestError(_unknown(f"{key}=", known))
        _check_types(verb, bare, full, [key for key in leaves if not key.endswith("._target_")])
    except RequestError as error:
        raise RequestError(f"{own.file}: {error}") from None


def _at_home(verb: str, full: dict[str, Any]) -> dict[str, Any]:
    """Returns the config with the home folder in place of a leading ~ of every path: shells expand it in few words."""
    made = copy.deepcopy(full)
    for key in schema.paths(SCHEMAS[verb]):
        *above, name = key.split(".")
        node = made
        for part in above:
            node = node[part]
        value = node[name]
        if isinstance(value, str):
            node[name] = os.path.expanduser(value)
        elif isinstance(value, list):
            node[name] = [os.path.expanduser(one) if isinstance(one, str) else one for one in value]
    return made


@contextmanager
def _store(choices: Sequence[str], own: Recipe | None) -> Iterator[None]:
    """Lets Hydra find `model=NAME` for every name of the zoo and for those of libraries among the choices, and a recipe that is a
    file, inside this context alone: the store is the whole process's. Hydra's own choices (loggers, launchers, help), which have
    no effect here, are left out meanwhile: composing them costs an eighth of the time of `seer pretrain --help`."""
    store, of_zoo = ConfigStore.instance(), zoo()
    given = [word.partition("=")[2] for word in choices] + list(own.choices.values() if own else ())
    borrowed = dict.fromkeys(name for name in given if LIBRARY.fullmatch(str(name)))
    names: list[tuple[str, str, dict[str, Any], str | None]] = [
        ("model", name, {**of_zoo["node"], "name": name}, None) for name in [*of_zoo["names"], *borrowed]
    ]
    if own is not None:
        names += [(group, OWN, node, None) for group, node in own.nodes.items()]
        names += [("recipe", OWN, own.composed(), "_global_")]
    for group, name, node, package in names:
        store.store(group=group, name=name, node=node, package=package)
    own_of_hydra = store.repo["hydra"]["config.yaml"].node
    choices, own_of_hydra.defaults = list(own_of_hydra.defaults), []  # assigning empties the node
    try:
        yield
    finally:
        own_of_hydra.defaults = choices
        for group, name, _, _ in names:
            del store.repo[group][f"{name}.yaml"]


def _compose(verb: str, choices: Sequence[str], own: Recipe | None) -> dict[str, Any]:
    """Returns what the choices of a verb make, without what words set besides. Raises RequestError."""
    try:
        if own is None:
            return copy.deepcopy(_of_choices(str(folder()), verb, tuple(choices)))
        return _by_hydra(str(folder()), verb, choices, own)
    except (HydraException, OmegaConfBaseException) as error:
        raise RequestError(_explained(error, choices)) from error


@cache
def _of_choices(files: str, verb: str, choices: tuple[str, ...]) -> dict[str, Any]:
    """Returns what packaged choices alone make: the same each time, and Hydra takes 50 to 100 ms for it."""
    return _by_hydra(files, verb, choices, None)


def _by_hydra(files: str, verb: str, choices: Sequence[str], own: Recipe | None) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    try:
        with _store(choices, own), initialize_config_dir(files, version_base="1.3"):
            config = compose(verb, overrides=list(choices))
    finally:
        GlobalHydra.instance().clear()
    return _plain(config)


def _with(composed: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Returns a composed config with what words set in it, by the grammar and the rules of Hydra, which does the same last of
    all: to let it compose once more for this takes ten times as long. Raises RequestError."""
    config = OmegaConf.create(dict(composed))
    try:
        for override in OverridesParser.create().parse_overrides([f"++{word}" for word in settings]):
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True, force_add=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise RequestError(_explained(error, settings)) from error
    return _plain(config)


def _plain(config: Any) -> dict[str, Any]:
    assert isinstance(config, DictConfig)
    plain = OmegaConf.to_container(config, resolve=False, throw_on_missing=False)
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}


def _whole(verb: str, composed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config with every key that the YAML files leave to schema and signatures."""
    return filled(composed, SCHEMAS[verb], missing="???")


def _explained(error: Exception, words: Sequence[str]) -> str:
    for word in words:
        if not readable(word):
            return (
                f"{word!r} cannot be read: inside a list or a rule, text with other signs than letters, digits and /._- goes in "
                "quotes of its own, like \"groups=[{pattern: '^head', frozen_steps: 1ep}]\""
            )
    return str(error).strip().splitlines()[0].replace("++", "")


def _known(base: Mapping[str, Any]) -> list[str]:
    leaves = flat(dict(base))
    return sorted(set(leaves) | {key.rsplit(".", 1)[0] for key in leaves if "." in key})


def _unknown(word: str, known: Sequence[str]) -> str:
    key = word.partition("=")[0]
    return f"unknown key {key!r}{nearest(key, known)}"


def _check_choice(verb: str, group: str, choice: str, where: str = "") -> None:
    there = choices_of(verb, group)
    if group == SEVERAL and choice[:1] == "[" and choice[-1:] == "]":
        several = [one.strip() for one in choice[1:-1].split(",")] if choice != "[]" else []
        if len(set(several)) < len(several):
            raise RequestError(f"{where}{group}={choice}: each once")
        for one in several:
            _check_choice(verb, group, one, where)
        return
    if group == "model" and LIBRARY.fullmatch(choice):
        return
    if choice not in there:
        from seer.cli import foreign  # see `read`

        told = foreign.choice_told(group, choice) or f"no such choice{nearest(choice, there)}"
        own = {"recipe": ", or a file: recipe=./mine.yaml", "model": ", or timm:NAME, torchvision:NAME"}.get(group, "")
        raise RequestError(f"{where}{group}={choice}: {told}; there are {', '.join(there)}{own}")


def nearest(word: str, known: Sequence[str]) -> str:
    """Returns the question whether the nearest of what is known was meant."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.0)
    best_by_tail = [k for k in known if k.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]]
    choice = best_by_tail[0] if best_by_tail else (close[0] if close else None)
    return f"; did you mean {choice!r}?" if choice else ""


def _check_types(verb: str, base: dict[str, Any], full: dict[str, Any], keys: Sequence[str]) -> None:
    before, after = flat(base), flat(full)
    for key, value in after.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RequestError(f"{key}={value} is not a finite number")
        if not any(key == k or key.startswith(k + ".") for k in keys):
            continue
        if rule := _own_keys(key, before, full, SCHEMAS[verb]):
            key, value = rule, {k: v for k, v in after.items() if k.startswith(f"{rule}.")}
        if key not in before:
            raise RequestError(f"unknown key {key!r}{nearest(key, sorted(before))}")
        hint = hint_of(key, full, SCHEMAS[verb])
        if hint is Any:
            hint, shown = _like(before[key]), before[key]
            if isinstance(shown, list) and isinstance(value, list) and shown and len(value) != len(shown):
                raise RequestError(f"{key}={value!r}: {len(shown)} values are expected, like {shown!r}")
        if not schema.fits(hint, value):
            nothing = ", or null" if schema.fits(hint, None) else ""
            raise RequestError(f"{key}={value!r}: {schema.described(hint)}{nothing} is expected")


def _own_keys(key: str, before: Mapping[str, Any], full: Mapping[str, Any], kind: type) -> str | None:
    """Returns the key above this one whose keys are its user's own, like `data.fields` and `task.heads`; None where there is none."""
    parts = key.split(".")
    for end in range(1, len(parts)):
        rule = ".".join(parts[:end])
        hint = hint_of(rule, full, kind)
        if rule in before and hint is not Any and schema.fits(hint, {}):
            return rule
    return None


def _like(shown: Any) -> Any:
    """Returns the type of what a YAML shows, where no signature tells it; anything where that shows nothing."""
    if shown is None:
        return Any
    if isinstance(shown, list):
        return list[_like(shown[0]) if shown else Any]  # type: ignore[misc]
    return int | float if isinstance(shown, float) else type(shown)
