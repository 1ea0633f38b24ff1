"""Makes the script by which bash or zsh completes words with the Tab key: verbs, keys, choices of groups, files.

    eval "$(seer --completion bash)"     # in ~/.bashrc; of zsh: eval "$(seer --completion zsh)" in ~/.zshrc

The script holds all words, so that a key press starts no program; it is that of the installed version. Neither torch nor Hydra is
imported: keys come from the schema, and from the signatures of what the choices of a group name, of all choices together.
Surprising: bash takes = for the end of a word, where nobody told it otherwise, so the word is read from the line.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from seer import __version__
from seer.cli.choices import choices_of, folder, groups_of, zoo
from seer.cli.verbs import SCHEMAS
from seer.core import schema
from seer.core.config import GIVEN, flat
from seer.core.errors import RequestError
from seer.core.evaluations import PROBES
from seer.core.signature import signature

SEVERAL = "heads"  # the group whose choices are nodes by their own names
SWITCH = ("true", "false")
Values = dict[str, tuple[str, ...]]  # by key: what it takes, () for anything

BASH = r"""
_seer() {
    local cur=${COMP_LINE:0:COMP_POINT} verb=${COMP_WORDS[1]} key value
    cur=${cur##*[[:space:]]}
    COMPREPLY=()
    if ((COMP_CWORD == 1)); then
        COMPREPLY=($(compgen -W "$(_seer_verbs)" -- "$cur"))
        COMPREPLY=("${COMPREPLY[@]/%/ }")
    elif [[ $cur == [/.~]* ]]; then
        compopt -o filenames 2> /dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    elif [[ $cur != *=* ]]; then
        COMPREPLY=($(compgen -W "$(_seer_keys "$verb") --help --print-config" -- "$cur"))
    else
        key=${cur%%=*} value=${cur#*=}
        case $(_seer_kind "$verb" "$key") in
        path)
            compopt -o filenames 2> /dev/null
            mapfile -t COMPREPLY < <(compgen -f -- "$value")
            ;;
        words)
            COMPREPLY=($(compgen -W "$(_seer_values "$verb" "$key")" -- "$value"))
            COMPREPLY=("${COMPREPLY[@]/%/ }")
            ;;
        esac
        [[ $COMP_WORDBREAKS == *=* ]] || COMPREPLY=("${COMPREPLY[@]/#/$key=}")
    fi
}
complete -o nospace -F _seer seer
"""
ZSH = r"""
_seer() {
    local cur=$words[CURRENT] verb=$words[2] key
    if ((CURRENT == 2)); then
        compadd -- ${=$(_seer_verbs)}
    elif [[ $cur == [/.~]* ]]; then
        _files
    elif [[ $cur != *=* ]]; then
        compadd -S '' -- ${=$(_seer_keys $verb)} --help --print-config
    else
        key=${cur%%=*}
        compset -P '*='
        case $(_seer_kind $verb $key) in
        path) _files ;;
        words) compadd -- ${=$(_seer_values $verb $key)} ;;
        esac
    fi
}
whence compdef > /dev/null || { autoload -Uz compinit && compinit; }
compdef _seer seer
"""
SHELLS = {"bash": BASH, "zsh": ZSH}


def script(shells: Sequence[str], verbs: Iterable[str]) -> str:
    """Returns the script of a shell. shells: what was asked for. Raises RequestError for none, or another one."""
    if len(shells) != 1 or shells[0] not in SHELLS:
        given = f"={' '.join(shells)}" if shells else ""
        raise RequestError(f"--completion{given}: one of {', '.join(SHELLS)}, like seer --completion bash")
    known, head = {verb: values_of(verb) for verb in verbs}, "#compdef seer\n" if shells[0] == "zsh" else ""
    parts = [
        f'{head}# seer {__version__}: eval "$(seer --completion {shells[0]})"',
        f"_seer_verbs() {{ echo {' '.join([*known, '--help', '--version', '--completion'])}; }}",
        _function("_seer_keys", '"$1"', {verb: " ".join(f"{key}=" for key in keys) for verb, keys in known.items()}),
        _function("_seer_values", '"$1 $2"', _by_key(known, lambda values, _: " ".join(values))),
        _function("_seer_kind", '"$1 $2"', _by_key(known, lambda values, path: "words" if values else path)),
    ]
    return "\n".join(parts) + SHELLS[shells[0]].rstrip()


def values_of(verb: str) -> Values:
    """Returns every key that a verb takes with some choice of its groups, and the groups, with what each takes where that is one
    of some words."""
    kind, groups = SCHEMAS[verb], groups_of(verb)
    limits = schema.limits(kind)
    found: Values = {group: tuple(choices_of(verb, group)) for group in groups}
    for key in schema.sentences(kind):
        if key not in groups and key.removeprefix("probe.") not in PROBES:
            words = limits.get(key, "")
            found[key] = tuple(words.split(" | ")) if " | " in words else _of(schema.hint_of(kind, key))
    for group in groups:
        for choice in found[group]:
            for key, values in _of_choice(group, choice).items():
                found.setdefault(key, values)
    if "probe.run" in found:
        for name, target in PROBES.items():
            known = signature(target)
            assert known is not None
            own = {key: _of(hint) for key, (hint, _) in known.parameters.items() if key not in GIVEN["eval"]}
            found |= {f"probe.{name}.{key}": values for key, values in own.items()}
    return found


def _of_choice(group: str, choice: str) -> Values:
    """Returns the keys that a choice of a group brings."""
    file = folder() / group / f"{choice}.yaml"
    if group == "recipe":
        return {}  # it sets keys that the schema and the other groups have
    node: Any = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else zoo()["node"]
    if group == SEVERAL:
        return {f"{SEVERAL}.{key}": () for key in flat(node) if "." in key}
    own: Values = {name: () for name in node if name != "_target_"} if "_target_" in node else {}
    known = signature(str(node["_target_"])) if str(node.get("_target_", "")).startswith("seer.") else None
    if known is not None:
        own |= {name: _of(hint) for name, (hint, _) in known.parameters.items()}
    if group == "surgery":
        own["steps"] = ()
    return {f"{group}.{name}": values for name, values in own.items() if name not in GIVEN.get(group, ())}


def _of(hint: Any) -> tuple[str, ...]:
    return SWITCH if schema.fits(hint, True) and hint is not Any and not schema.fits(hint, "x") else ()


def _by_key(known: Mapping[str, Values], told: Any) -> dict[str, str]:
    """Returns what is told of each key of each verb, but where that is nothing."""
    found: dict[str, str] = {}
    for verb, keys in known.items():
        places = schema.paths(SCHEMAS[verb])
        for key, values in keys.items():
            if text := told(values, "path" if key in places else ""):
                found[f"{verb} {key}"] = text
    return found


def _function(name: str, word: str, cases: Mapping[str, str]) -> str:
    """Returns a function of the shell that echoes a text for some words, those of one text together."""
    by_text: dict[str, list[str]] = {}
    for case, text in cases.items():
        by_text.setdefault(text, []).append(case)
    quoted = {text: "|".join(f"'{one}'" for one in ones) for text, ones in by_text.items()}
    rows = [f"    {ones}) echo '{text}' ;;" for text, ones in quoted.items()]
    return "\n".join([f"{name}() {{", f"    case {word} in", *rows, "    esac", "}"])
