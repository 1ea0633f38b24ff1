"""The Tab key in real shells: verbs, keys, choices and files; the keys are those that the composed configs have."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from seer.cli import config
from seer.cli.completion import script, values_of
from seer.cli.main import VERBS, main
from seer.core.config import GIVEN
from seer.core.errors import RequestError
from seer.core.signature import signature
from tests.messages import says
from tests.program import processor_s, slowness


def in_bash(line: str, folder: Path, breaks: str = " \t\n\"'><=;|&(:") -> list[str]:
    """Returns what bash offers at the end of a line. breaks: at which it ends words."""
    sign = "=" if "=" in breaks else "\0"
    words = [part for word in re.split(r" +", line) for part in (re.split(r"(=)", word) if sign in word else [word])]
    words = [*filter(None, words[:-1]), words[-1]] if words[-1] or not line.endswith("=") else list(filter(None, words))
    code = "\n".join(
        [
            script(["bash"], VERBS),
            f"COMP_WORDBREAKS={shlex.quote(breaks)}",
            f"COMP_WORDS=({' '.join(map(shlex.quote, words))}) COMP_CWORD={len(words) - 1}",
            f"COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)}",
            '_seer; printf "%s\\n" "${COMPREPLY[@]}"',
        ]
    )
    ended = subprocess.run(
        ["bash", "--norc", "-c", code], capture_output=True, text=True, timeout=120, cwd=folder, check=True
    )
    assert not ended.stderr, ended.stderr
    return [one for one in ended.stdout.split("\n") if one]


def in_zsh(line: str, folder: Path) -> list[str]:
    """Returns what zsh offers there, by a `compadd` that prints; FILES where it asks for files."""
    words = line.split(" ")
    code = "\n".join(
        [
            "compdef() { }; autoload() { }; _files() { echo FILES }; compset() { shown=${words[CURRENT]#*=} }",
            "compadd() { [[ $1 == -S ]] && shift 2; shift; print -l -- ${(M)@:#${shown}*} }",
            script(["zsh"], VERBS),
            f"words=({' '.join(map(shlex.quote, words))}); CURRENT={len(words)}; shown=$words[CURRENT]; _seer",
        ]
    )
    ended = subprocess.run(
        ["zsh", "-f", "-c", code], capture_output=True, text=True, timeout=120, cwd=folder, check=True
    )
    assert not ended.stderr, ended.stderr
    return ended.stdout.split()


LINES = {
    "seer pre": {"pretrain"},
    "seer ": {*VERBS, "--help", "--version", "--completion"},
    "seer evaluate eval=l": {"linear", "lowshot"},
    "seer pretrain optim.we": {"optim.weight_decay="},
    "seer pretrain model=regnety_1": {"regnety_16gf", "regnety_1_6gf", "regnety_12gf", "regnety_128gf", "regnety_10b"},
    "seer pretrain model=regnety_16gf data.max_b": {"data.max_bad=", "data.max_bad_archives="},
    "seer export to=all pre": {"preprocessing="},
    "seer adapt heads.map.w": {"heads.map.weight=", "heads.map.width="},
    "seer adapt parallel.mode=f": {"fsdp", "fairscale"},
    "seer shard shuffle=": {"true", "false"},
    "seer shard per_shard=1": set(),
    "seer nothing ba": set(),
}


@pytest.mark.parametrize("line", LINES)
def test_bash_offers_what_fits(line, tmp_path):
    found = in_bash(line, tmp_path)
    assert {one.rstrip(" ") for one in found} == LINES[line] and len(found) == len(LINES[line])
    assert all(one.endswith("=") != one.endswith(" ") for one in found)  # a key waits for its value, all else is done


def test_bash_offers_files_where_a_path_is_meant(tmp_path):
    (tmp_path / "my photos").mkdir()
    (tmp_path / "mine.tar").write_bytes(b"")
    for line in ("seer pretrain data.source=m", "seer shard source=m"):
        assert sorted(in_bash(line, tmp_path)) == ["mine.tar", "my photos"]
    assert sorted(in_bash("seer pretrain ./m", tmp_path)) == ["./mine.tar", "./my photos"]
    for words, there in (("source=mi", ["source=mine.tar"]), ("shuffle=t", ["shuffle=true "])):  # = ends no word
        assert in_bash(f"seer shard {words}", tmp_path, breaks=" \t\n") == there


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
@pytest.mark.parametrize("line", LINES)
def test_zsh_offers_the_same(line, tmp_path):
    assert set(in_zsh(line, tmp_path)) == LINES[line]
    assert in_zsh("seer pretrain data.source=x", tmp_path) == ["FILES"] == in_zsh("seer adapt ./x", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_the_keys_are_those_of_the_composed_configs_whatever_is_chosen(verb):
    offered, composed = values_of(verb), set[str]()
    for group in ("optim", "schedule", "task", "augment", "eval", "model", "precision", "surgery"):
        for choice in config.choices_of(verb, group) if group in config.groups_of(verb) else ():
            if (
                group == "model"
                and choice.startswith("regnety_")
                and choice[8:9].isdigit()
                and choice != "regnety_32px"
            ):
                continue  # the names of the zoo bring the same keys
            found = config.read(verb, [f"{group}={choice}"], whole=False)
            composed |= {key for key in config.flat(found) if not key.endswith("._target_")}
            for name, node in found.items():  # arguments that have no default are keys, too
                known = signature(str(node.get("_target_"))) if isinstance(node, dict) else None
                composed |= {f"{name}.{one}" for one in (known.parameters if known else ())}
    composed = composed or {*config.flat(config.read(verb, [], whole=False))}
    composed = {key.removeprefix("task.") if key.startswith("task.heads.") else key for key in composed}
    groups = {*config.groups_of(verb)}
    assert not {key for key in composed if key not in offered and not _given(key)} - groups
    own = {key for key in offered if key.startswith("heads.")}
    assert {*offered} - groups - composed <= own and bool(own) == (verb == "adapt")
    for key, values in offered.items():
        assert all(" " not in value for value in (key, *values))


def _given(key: str) -> bool:
    group, _, name = key.partition(".")
    return name in GIVEN.get(group, ())


@pytest.mark.slow
def test_the_script_costs_little_and_imports_neither_torch_nor_hydra():
    code = (
        "import sys; from seer.cli.main import main; status = main(['--completion', 'bash']);"
        "print(status, 'torch' in sys.modules, 'hydra' in sys.modules)"
    )
    seconds = []
    for _ in range(3):  # the least of them: a busy machine adds, and takes nothing away
        said, used = processor_s(code)
        assert said[-3:] == ["0", "False", "False"]
        seconds.append(used)
    assert min(seconds) < 0.3 or min(seconds) < 0.3 * slowness()  # 0.19 on an idle machine


@pytest.mark.parametrize("words", [["--completion"], ["--completion", "fish"], ["--completion=tcsh"]])
def test_another_shell_is_a_wrong_request(words, capfd):
    assert main(words) == 78 and says(json.loads(capfd.readouterr().out)["error"], "bash", "zsh")
    with pytest.raises(RequestError):
        script(["bash", "zsh"], VERBS)


def test_both_ways_to_ask_give_the_script(capfd):
    assert main(["--completion=bash"]) == 0
    first = capfd.readouterr().out
    assert main(["--completion", "bash"]) == 0 and capfd.readouterr().out == first
    assert "complete -o nospace -F _seer seer" in first
