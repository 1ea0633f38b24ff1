"""Makes words on the command line, key=value, ready for Hydra's grammar, or refuses them in a sentence.

Values of path words are quoted before the grammar sees them, since it refuses many real paths; `+`, `++` and `~` are refused,
since every key is there; a key given twice is refused, since the last would win in silence.
"""

import re
from collections import Counter
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from seer.core.errors import RequestError

PATH_WORD = re.compile(r"(^|\.)(source|train|test|exclude)$|^(output|weights|run|replay)$")


def check_once(words: Sequence[str]) -> None:
    """Raises RequestError for a key given twice: the last would win, and a shell makes eleven words of `source={000..010}.tar`."""
    keys = [word.partition("=")[0] for word in words if "=" in word]
    for key, times in Counter(keys).items():
        if times > 1:
            given = [word for word in words if word.partition("=")[0] == key]
            remedy = "give it once"
            if PATH_WORD.search(key):
                remedy += f", several paths separated by commas; braces in quotes, or the shell makes words of them: '{key}={{…}}'"
            raise RequestError(f"{key} is given {times} times ({given[0]} … {given[-1]}); {remedy}")


def prepared(word: str) -> str:
    key, equals, value = word.partition("=")
    if not equals or not key:
        raise RequestError(f"{word!r} is not understood; words are key=value or group=choice")
    if key[0] in "+~":
        raise RequestError(f"{word!r}: keys are never added or removed here; write {key.lstrip('+~')}=…")
    if re.match(r"hydra\b", key):
        raise RequestError(f"unknown key {key!r}: Hydra's own settings have no effect here")
    if "@" in key or ":" in key:
        raise RequestError(f"{word!r}: packages cannot be moved; write group=choice")
    if "=" in value and value[0] not in "[{'\"" and not PATH_WORD.search(key):
        return f"{key}={_quoted(value)}"  # parallel.remat=budget=8
    if (
        not PATH_WORD.search(key)
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
    """Returns a path in Hydra's quotes, where a backslash means itself, unless a quote follows the row of them."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), path) + "'"


def readable(word: str) -> bool:
    """Returns whether Hydra's grammar takes a word by itself."""
    try:
        OverridesParser.create().parse_override(word)
    except HydraException:  # OverrideParseException, or what its lexer raises
        return False
    return True
