"""Every command line that the README, the recipes and the launch scripts show is understood as it stands."""

import re
import shlex
from pathlib import Path

import pytest

from seer.cli import config
from tests.program import ROOT

FILES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "configs").rglob("*.yaml"))]
FILES += sorted(str(p.relative_to(ROOT)) for p in (ROOT / "launch").iterdir())
VERBS = "pretrain|adapt|shard|evaluate|export|measure|plan"


def commands(path: Path) -> list[tuple[str, list[str]]]:
    """(verb, words) of each line that shows one; words with … or a choice of several are for the reader to fill in."""
    found = []
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        for match in re.finditer(rf"(?:^|[\s/`])(?:seer|-m seer) ({VERBS})((?: [^`#]*)?)(?:`|#|$)", line):
            try:
                words = shlex.split(match[2])
            except ValueError:  # a sentence, not a command
                continue
            words = [
                w.rstrip(",;")
                for w in words
                if "=" in w and "…" not in w and "|" not in w and "$" not in w and "[" != w[0]
            ]
            found.append((match[1], words))
    return found


CASES = [(file, verb, words) for file in FILES for verb, words in commands(ROOT / file)]


def test_there_are_many():
    assert len(CASES) >= 30 and {verb for _, verb, _ in CASES} == set(VERBS.split("|"))


@pytest.mark.parametrize(("file", "verb", "words"), CASES, ids=lambda value: str(value)[:40])
def test_a_command_that_is_shown_is_understood(file, verb, words):
    given = {word.partition("=")[0] for word in words}
    needed = {
        "shard": ("source", "output"),
        "evaluate": ("weights", "data.train", "data.test"),
        "export": ("weights", "to", "output"),
        "measure": ("file",),
    }
    config.read(
        verb, [*words, *("to=all" if key == "to" else f"{key}=x" for key in needed.get(verb, ()) if key not in given)]
    )
