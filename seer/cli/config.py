"""Words on the command line -> one resolved config, or one sentence about the first wrong word.

Hydra composes; this file stands around it. Values of path words are quoted before Hydra's grammar sees them, since it
refuses many real paths; `+`, `++` and `~` are refused, since every YAML lists every key; an unknown key is answered with
the nearest right one; and a value must be of the type that the YAML shows, or of its kind in `KINDS` where the YAML cannot show it.
"""

import difflib
import importlib.util
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seer.core.build import check_targets
from seer.core.config import flat
from seer.core.errors import RequestError

_PATH_WORD = re.compile(r"(^|\.)(source|train|test|exclude)$|^(output|weights|run|replay)$")


@dataclass(frozen=True)
class Kind:
    """What a key takes, in words and as types. each, length: of a list. null: or nothing."""

    words: str
    types: tuple[type, ...]
    each: "Kind | None" = None
    length: int | None = None
    null: bool = False


_TEXT, _NODE = Kind("a word", (str,)), Kind("a rule like {key: value}", (dict,))
_PATH, _WHOLE = Kind("a path", (str,)), Kind("a whole number", (int,))
_PATHS = Kind("a path, or a list of them", (str, list), _PATH)
_DURATION = Kind("a duration like 20000, 600kimg, 15ep or 3%", (int, float, str))
_RATE = Kind("a rate like 0.3, 0.3@256 or 0.1%", (int, float, str))
_GIVEN = Kind("the program gives it", (), null=True)
# What keys take whose YAML shows null or ???, or but one of several types (recipes set some of them).
KINDS = {
    **dict.fromkeys(("data.lanes", "data.threads", "eval.size", "eval.resize"), replace(_WHOLE, null=True)),
    **dict.fromkeys(("max_side", "quality", "processes", "threads"), replace(_WHOLE, null=True)),
    **dict.fromkeys(("data.size", "data.resize"), replace(_WHOLE, null=True)),
    **dict.fromkeys(("optim.foreach", "optim.fused"), Kind("true or false", (bool,), null=True)),
    **dict.fromkeys(("weights", "replay", "output"), replace(_PATH, null=True)),
    **dict.fromkeys(("data.source", "data.exclude", "eval.train", "eval.test", "source"), replace(_PATHS, null=True)),
    **dict.fromkeys(("data.train", "data.test"), _PATHS),
    **dict.fromkeys(("labels", "licence", "data.image", "image"), replace(_TEXT, null=True)),
    **dict.fromkeys(("data.fields", "fields"), Kind("a rule like {mask: png}", (dict,), _TEXT, null=True)),
    **dict.fromkeys(("schedule.total", "model.device"), _GIVEN),
    **dict.fromkeys(
        ("every.log", "every.evaluate", "every.checkpoint", "every.compare", "every.keep_steps"),
        replace(_DURATION, types=(int, str)),
    ),
    **dict.fromkeys(("steps", "schedule.warmup", "task.hard_until", "task.queue_from", "plateau.patience"), _DURATION),
    **dict.fromkeys(("schedule.peak", "schedule.start", "schedule.final"), _RATE),
    **dict.fromkeys(("every.minutes", "every.keep_hours"), Kind("a number", (int, float))),
    "schedule.halved_at": Kind("a list of durations", (list,), _DURATION),
    "precision.clip": Kind("a number", (int, float), null=True),
    "data.max_bad": Kind("a share like 1% or 0.01", (int, float, str)),
    "max_bad": Kind("a share like 1% or 0.01", (int, float, str)),
    "parallel.remat": Kind("a word, or a list of them", (str, list), _TEXT),
    "surgery.steps": Kind("a list of targets", (list,), Kind("a target like {_target_: …}", (dict,))),
    "to": _TEXT,
}
REQUIRED = {"pretrain": ("output",), "plan": ("output",), "shard": ("source", "output")}  # null elsewhere
REQUIRED |= {"evaluate": ("weights",), "export": ("weights", "output")}


def folder() -> Path:
    """Where the YAML files lie: inside the installed package, or beside it in a checkout that is not installed."""
    installed = importlib.util.find_spec("seer.configs")
    if installed is not None and installed.origin:
        return Path(installed.origin).parent
    return Path(__file__).resolve().parents[2] / "configs"


def read(verb: str, words: Sequence[str]) -> dict[str, Any]:
    """The config of a verb as plain dicts and lists. Raises RequestError."""
    _check_once(words)
    words = [_prepared(word) for word in words]
    groups = {p.name for p in folder().iterdir() if p.is_dir()}
    choices = [w for w in words if w.split("=", 1)[0] in groups]
    for group, _, choice in (w.partition("=") for w in choices):
        _check_choice(verb, group, choice)  # Hydra would take `optim={}`, `optim=null` and `model=../task/swav`
    base = _compose(verb, choices, groups, known=None)
    full = _compose(verb, words, groups, known=base)
    _check_types(verb, base, full, [w.split("=", 1)[0] for w in words])
    check_targets(full)
    missing = sorted(key for key, value in flat(full).items() if value == "???")
    if missing:
        raise RequestError(f"{verb} needs {', '.join(f'{key}=…' for key in missing)}")
    return full


def _check_once(words: Sequence[str]) -> None:
    """Raises RequestError for a key given twice: the last would win, and a shell makes eleven words of `source={000..010}.tar`."""
    keys = [word.partition("=")[0] for word in words if "=" in word]
    for key, times in Counter(keys).items():
        if times > 1:
            given = [word for word in words if word.partition("=")[0] == key]
            remedy = "give it once"
            if _PATH_WORD.search(key):
                remedy += f", several paths separated by commas; braces in quotes, or the shell makes words of them: '{key}={{…}}'"
            raise RequestError(f"{key} is given {times} times ({given[0]} … {given[-1]}); {remedy}")


def _prepared(word: str) -> str:
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise RequestError(f"{word!r} is not understood; words are key=value or group=choice")
    if key[0] in "+~":
        raise RequestError(f"{word!r}: keys are never added or removed here; write {key.lstrip('+~')}=…")
    if re.match(r"hydra\b", key):
        raise RequestError(f"unknown key {key!r}: Hydra's own settings have no effect here")
    if "@" in key or ":" in key:
        raise RequestError(f"{word!r}: packages cannot be moved; write group=choice")
    if "=" in value and value[0] not in "[{'\"" and not _PATH_WORD.search(key):
        return f"{key}={_quoted(value)}"  # parallel.remat=budget=8
    if (
        not _PATH_WORD.search(key)
        or value in ("null", "")
        or value[0] in "\"'"
        or (value[0] == "[" and value[-1] == "]")
    ):
        return word if value else f"{key}=''"
    parts = re.split(r",(?![^{]*\})", value)
    quoted = [_quoted(part) if _odd(part) else part for part in parts]
    return f"{key}={quoted[0]}" if len(parts) == 1 else f"{key}=[{','.join(quoted)}]"


def _odd(path: str) -> bool:
    return not re.fullmatch(r"(?!(?i:true|false|null|nan|inf)$)[A-Za-z_/][\w/.\-]*", path, re.ASCII)


def _quoted(path: str) -> str:
    """In Hydra's quotes a backslash means itself, unless a quote follows the row of them."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), path) + "'"


def _compose(verb: str, words: Sequence[str], groups: set[str], known: dict[str, Any] | None) -> dict[str, Any]:
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(folder()), version_base="1.3"):
            config = compose(verb, overrides=list(words))
    except (HydraException, OmegaConfBaseException) as error:
        raise RequestError(_explained(error, words, groups, known)) from error
    finally:
        GlobalHydra.instance().clear()
    assert isinstance(config, DictConfig)
    plain = OmegaConf.to_container(config, resolve=False, throw_on_missing=False)
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}


def _explained(error: Exception, words: Sequence[str], groups: set[str], known: dict[str, Any] | None) -> str:
    for word in words:
        key = word.partition("=")[0]
        if key not in groups and known is not None:
            keys = sorted(set(flat(known)) | {k.rsplit(".", 1)[0] for k in flat(known) if "." in k})
            if key not in keys:
                return f"unknown key {key!r}{_nearest(key, keys + sorted(groups))}"
        if not _readable(word):
            return (
                f"{word!r} cannot be read: inside a list or a rule, text with other signs than letters, digits and /._- goes in "
                "quotes of its own, like \"groups=[{pattern: '^head', frozen_steps: 1ep}]\""
            )
    return str(error).strip().splitlines()[0]


def _readable(word: str) -> bool:
    """Whether Hydra's grammar takes a word by itself."""
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:  # OverrideParseException, or what its lexer raises
        return False
    return True


def choices_of(verb: str, group: str) -> list[str]:
    """Returns what a group may be for a verb. Surprising: the probe of `pretrain`, and what `evaluate` runs, share `eval`."""
    files = sorted((folder() / group).glob("*.yaml"))
    if group == "eval":
        files = [p for p in files if ("_target_" in p.read_text(encoding="utf-8")) == (verb == "evaluate")]
    return [p.stem for p in files]


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
        rule = KINDS.get(key.rpartition(".")[0])  # whose keys are its user's own
        if key not in before and (rule is None or dict not in rule.types or rule.each is None):
            raise RequestError(f"unknown key {key!r}{_nearest(key, sorted(before))}")
        kind = KINDS.get(key) or (_like(before[key]) if key in before else rule.each)  # type: ignore[union-attr]
        assert kind is not None
        if key in REQUIRED.get(verb, ()):
            kind = replace(kind, null=False)
        if not _is(value, kind):
            nothing = ", or null" if kind.null else ""
            raise RequestError(f"{key}={value!r}: {kind.words}{nothing} is expected")


def _like(shown: Any) -> Kind:
    """The kind of what the YAML shows. A list of fractions keeps its length."""
    if isinstance(shown, list):
        each = _like(shown[0]) if shown else _NODE
        return Kind(f"a list like {shown!r}", (list,), each, length=len(shown) if float in each.types else None)
    types = (int, float) if isinstance(shown, float) else (type(shown),)
    return Kind(f"a value like {shown!r} ({type(shown).__name__})", types)


def _is(value: Any, kind: Kind) -> bool:
    if value is None:
        return kind.null
    if not isinstance(value, kind.types) or (isinstance(value, bool) and bool not in kind.types):
        return False
    if isinstance(value, float) and not math.isfinite(value):
        return False
    if not isinstance(value, list) or kind.each is None:
        return True
    return kind.length in (None, len(value)) and all(_is(one, kind.each) for one in value)
