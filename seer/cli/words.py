"""Makes words on the command line, key=value, ready for Hydra's grammar, or refuses them in a sentence.

Other habits are read as key=value where they can mean one thing only: `--key value`, a path without a key, `data=PATH`. Values
of path words are quoted before the grammar sees them, since it refuses many real paths; `+`, `++` and `~` are refused, since
every key is there; a key given twice is refused, since the last would win in silence, and so is a sweep, which would run once.
"""

import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from seer.core.errors import RequestError

# the key that a path without one is meant for, and the key of a second path, which is not guessed but told
PLACES = {
    "pretrain": ("data.source", None),
    "adapt": ("data.source", None),
    "plan": ("data.source", None),
    "shard": ("source", "output"),
    "evaluate": ("weights", None),
    "export": ("weights", "output"),
    "measure": ("file", "against"),
}
KEY = re.compile(r"[A-Za-z_][\w.@:/-]*=")


def in_form(verb: str, words: Sequence[str], paths: Mapping[str, bool]) -> list[str]:
    """Returns words that are all key=value, but for those that are not understood at all. paths: the path words, and whether
    they take several. Raises RequestError."""
    found: list[str] = []
    loose: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.lstrip("-").partition("=")
        if word in ("-m", "--multirun"):
            raise RequestError(_no_sweep(word, verb, "seed", ("0", "1", "2")))
        if re.match(r"--?[A-Za-z]", word):
            if not equals:
                value = left.pop(0) if left and not re.match(r"--?[A-Za-z]", left[0]) and not KEY.match(left[0]) else ""
            found.append(f"{name.replace('-', '_')}={value if value or equals else 'true'}")
        elif like_path(word) and not KEY.match(word):
            loose.append(word)
        else:
            found.append(word)
    return [*_placed(verb, loose, found, paths), *found] if loose else found


def like_path(word: str) -> bool:
    """Returns whether a word that is no choice can only be a path: it has a slash, or something is called so here."""
    return bool(word) and (word[:2] == "~/" or word in ("~", ".", "..") or os.sep in word or os.path.exists(word))


def _placed(verb: str, loose: Sequence[str], others: Sequence[str], paths: Mapping[str, bool]) -> list[str]:
    """Returns the word that paths without a key are meant for. Raises RequestError where that is not certain."""
    key, second = PLACES[verb]
    if len(loose) == 2 and second and not any(word.startswith(f"{second}=") for word in others):
        line = shlex.join([f"{key}={loose[0]}", f"{second}={loose[1]}", *others])
        raise RequestError(f"{loose[0]} and {loose[1]} need their words: seer {verb} {line}")
    if len(loose) > 1 and not paths[key]:
        raise RequestError(
            f"{key} takes one path, and {len(loose)} have no word of their own ({loose[0]} … {loose[-1]})"
        )
    if len(loose) == 1:
        return [f"{key}={_quoted(loose[0]) if ',' in loose[0] and os.path.exists(loose[0]) else loose[0]}"]
    return [f"{key}=[{','.join(map(_quoted, loose))}]"]  # what a shell makes of *.tar and {000..010}.tar


def check_once(words: Sequence[str], paths: Mapping[str, bool]) -> None:
    """Raises RequestError for a key given twice: the last would win, and a shell makes eleven words of `source={000..010}.tar`."""
    keys = [word.partition("=")[0] for word in words if "=" in word]
    for key, times in Counter(keys).items():
        if times > 1:
            given = [word for word in words if word.partition("=")[0] == key]
            remedy = "give it once"
            if paths.get(key):
                remedy += f", several paths separated by commas; braces in quotes, or the shell makes words of them: '{key}={{…}}'"
            raise RequestError(f"{key} is given {times} times ({given[0]} … {given[-1]}); {remedy}")


def prepared(word: str, paths: Mapping[str, bool]) -> str:
    """Returns a word as Hydra's grammar takes it. paths: the path words, and whether they take several. Raises RequestError."""
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise RequestError(f"{word!r} is not understood; words are key=value or group=choice")
    if key[0] in "+~":
        raise RequestError(f"{word!r}: keys are never added or removed here; write {key.lstrip('+~')}=…")
    if re.match(r"hydra\b", key):
        raise RequestError(f"unknown key {key!r}: Hydra's own settings have no effect here")
    if "@" in key or ":" in key:
        raise RequestError(f"{word!r}: packages cannot be moved; write group=choice")
    if "=" in value and value[0] not in "[{'\"" and key not in paths:
        return f"{key}={_quoted(value)}"  # parallel.remat=budget=8
    if key not in paths or value in ("null", "") or value[0] in "\"'" or (value[0] == "[" and value[-1] == "]"):
        return word if value else f"{key}=''"
    parts = re.split(r",(?![^{]*\})", value) if paths[key] else [value]
    quoted = [_quoted(part) if _odd(part) else part for part in parts]
    return f"{key}={quoted[0]}" if len(parts) == 1 else f"{key}=[{','.join(quoted)}]"


def check_no_sweep(verb: str, word: str) -> None:
    """Raises RequestError for several values of one key, `seed=0,1,2`, with the loop that runs them."""
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:  # told later, by who composes
        return
    if override.is_sweep_override():
        key, _, value = word.partition("=")
        values = tuple(value.split(",")) if re.fullmatch(r"[\w.,+-]+", value) else ("…",)
        raise RequestError(_no_sweep(word, verb, key, values))


def _no_sweep(word: str, verb: str, key: str, values: Sequence[str]) -> str:
    short = key.rpartition(".")[2]
    ours = f"seer {verb} … {key}=$x output=…/{short}-$x" if verb != "plan" else f"seer plan … {key}=$x"
    return (
        f"{word}: a command is one run; for several, a loop of the shell: for x in {' '.join(values)}; do {ours}; done"
    )


def _odd(path: str) -> bool:
    return not re.fullmatch(r"(?!(?i:true|false|null|nan|inf)$)[A-Za-z_/][\w/.\-]*", path, re.ASCII)


def _quoted(path: str) -> str:
    """Returns a path in Hydra's quotes, where a backslash means itself, unless a quote follows the row of them."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), path) + "'"


def readable(word: str) -> bool:
    """Returns whether Hydra's grammar takes a word by itself."""
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:  # OverrideParseException, or what its lexer raises
        return False
    return True
