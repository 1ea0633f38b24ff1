"""Turns words on the command line into one resolved config, or one sentence about the first wrong word.

Hydra composes the YAML files, which hold choices and differences alone. Every key with its default, type and limits stands
once: those of a verb in its schema (`cli/verbs.py`, `run/config.py`), those of a `_target_` in the signature of what it names,
read without importing it. An unknown key is answered with the nearest right one.
"""

import difflib
import importlib.util
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seer.cli.verbs import SCHEMAS
from seer.cli.words import check_once, prepared, readable
from seer.core import schema
from seer.core.build import check_targets
from seer.core.config import filled, flat, hint_of
from seer.core.errors import RequestError

ZOO = "zoo.yaml"  # in configs/model: the names of the zoo, and the node that builds them


def folder() -> Path:
    """Returns where the YAML files lie: inside the installed package, or beside it in a checkout that is not installed."""
    installed = importlib.util.find_spec("seer.configs")
    if installed is not None and installed.origin:
        return Path(installed.origin).parent
    return Path(__file__).resolve().parents[2] / "configs"


def read(verb: str, words: Sequence[str]) -> dict[str, Any]:
    """Returns the config of a verb as plain dicts and lists, every key of it. Raises RequestError."""
    check_once(words)
    words = [prepared(word) for word in words]
    groups = {p.name for p in folder().iterdir() if p.is_dir()}
    choices = [w for w in words if w.split("=", 1)[0] in groups]
    for group, _, choice in (w.partition("=") for w in choices):
        _check_choice(verb, group, choice)  # Hydra would take `optim={}`, `optim=null` and `model=../task/swav`
    base = _whole(verb, _compose(verb, choices))
    settings = [w for w in words if w not in choices]
    known = _known(base)
    for word in settings:
        _check_key(word.partition("=")[0], known, groups)
    # every key is known by now, also where no YAML names it
    full = _whole(verb, _compose(verb, [*choices, *(f"++{w}" for w in settings)], settings))
    _check_types(verb, base, full, [w.split("=", 1)[0] for w in settings])
    check_targets(full)
    missing = sorted(key for key, value in flat(full).items() if value == "???")
    if missing:
        raise RequestError(f"{verb} needs {', '.join(f'{key}=…' for key in missing)}")
    schema.read(SCHEMAS[verb], full)  # limits
    return full


def choices_of(verb: str, group: str) -> list[str]:
    """Returns what a group may be for a verb. Surprising: the probe of `pretrain`, and what `evaluate` runs, share `eval`."""
    files = [p for p in sorted((folder() / group).glob("*.yaml")) if p.name != ZOO]
    if group == "eval":
        files = [p for p in files if ("_target_" in p.read_text(encoding="utf-8")) == (verb == "evaluate")]
    return [p.stem for p in files] + (_zoo()["names"] if group == "model" else [])


def _zoo() -> dict[str, Any]:
    return yaml.safe_load((folder() / "model" / ZOO).read_text(encoding="utf-8"))


@contextmanager
def _store() -> Iterator[None]:
    """Lets Hydra find `model=NAME` for every name of the zoo, inside this context alone: the store is the whole
    process's."""
    store, zoo = ConfigStore.instance(), _zoo()
    for name in zoo["names"]:
        store.store(group="model", name=name, node={**zoo["node"], "name": name})
    try:
        yield
    finally:
        for name in zoo["names"]:
            del store.repo["model"][f"{name}.yaml"]


def _compose(verb: str, words: Sequence[str], typed: Sequence[str] = ()) -> dict[str, Any]:
    """Composes a verb's config from words. typed: the words as people may recognize them, to be named in an error."""
    GlobalHydra.instance().clear()
    try:
        with _store(), initialize_config_dir(str(folder()), version_base="1.3"):
            config = compose(verb, overrides=list(words))
    except (HydraException, OmegaConfBaseException) as error:
        raise RequestError(_explained(error, typed or words)) from error
    finally:
        GlobalHydra.instance().clear()
    assert isinstance(config, DictConfig)
    plain = OmegaConf.to_container(config, resolve=False, throw_on_missing=False)
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}


def _whole(verb: str, composed: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config with every key that the YAML files leave to schema and signatures."""
    return filled({**schema.defaults(SCHEMAS[verb], missing="???"), **composed}, SCHEMAS[verb])


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


def _check_key(key: str, known: Sequence[str], groups: set[str]) -> None:
    if key not in known:
        raise RequestError(f"unknown key {key!r}{_nearest(key, [*known, *sorted(groups)])}")


def _check_choice(verb: str, group: str, choice: str) -> None:
    there = choices_of(verb, group)
    if choice not in there:
        raise RequestError(f"{group}={choice}: no such choice{_nearest(choice, there)}; there are {', '.join(there)}")


def _nearest(word: str, known: Sequence[str]) -> str:
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
        rule = key.rpartition(".")[0]
        if rule in before and schema.fits(schema.hint_of(SCHEMAS[verb], rule), {}):  # its keys are its user's own
            key, value = rule, {k: v for k, v in after.items() if k.startswith(f"{rule}.")}
        if key not in before:
            raise RequestError(f"unknown key {key!r}{_nearest(key, sorted(before))}")
        hint = hint_of(key, full, SCHEMAS[verb])
        if hint is Any:
            hint, shown = _like(before[key]), before[key]
            if isinstance(shown, list) and isinstance(value, list) and shown and len(value) != len(shown):
                raise RequestError(f"{key}={value!r}: {len(shown)} values are expected, like {shown!r}")
        if not schema.fits(hint, value):
            nothing = ", or null" if schema.fits(hint, None) else ""
            raise RequestError(f"{key}={value!r}: {schema.described(hint)}{nothing} is expected")


def _like(shown: Any) -> Any:
    """Returns the type of what a YAML shows, where no signature tells it; anything where that shows nothing."""
    if shown is None:
        return Any
    if isinstance(shown, list):
        return list[_like(shown[0]) if shown else Any]  # type: ignore[misc]
    return int | float if isinstance(shown, float) else type(shown)
