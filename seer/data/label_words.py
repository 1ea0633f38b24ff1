"""Says where the labels of images come from, in one word, and gives the name of a class by it.

    auto            the numbers in `cls` where any sample has that member, else the names of folders
    member          the numbers in `cls`
    folder          the folder that names the class (`class_folders`); folder:1 the first below the source, folder:-1 the one
                    that directly holds the image
    FILE.csv        a table of names and labels (`label_table`); .tsv, too
    json:KEY        what KEY is in the `json` member of a sample, or in the file beside a loose image
    text:ENDING     the whole text of the member with this ending: text:txt, text:cls

A name is text as it stands: no number, no truth value and no blank is read into it or out of it.
"""

import json
import os
from dataclasses import dataclass
from typing import Any

from seer.core.errors import RequestError
from seer.data.class_folders import DIRECT
from seer.data.label_table import ENDINGS, Table, read_table

MOST_NAME = 200  # characters of one name in a text member; more is no name of a class
WORDS = "auto, member, folder, folder:N, FILE.csv, json:KEY or text:ENDING"


@dataclass(frozen=True)
class Numbers:
    """Takes the numbers in `cls` members. or_folders: names of folders where no sample has one."""

    or_folders: bool


@dataclass(frozen=True)
class Folders:
    """Takes the names of folders. level: as `class_folders.name_at` has it; None = what `level_of` chooses."""

    level: int | None = None


@dataclass(frozen=True)
class Texts:
    """Takes the whole text of a member as the name."""

    ending: str

    def name(self, data: bytes) -> str | None:
        """Returns the name, None for an empty member. Raises ValueError."""
        text = data.decode("utf-8").removesuffix("\n").removesuffix("\r")
        if len(text) > MOST_NAME or "\n" in text:
            raise ValueError(f"{text[:50]!r}… is no name: one line of {MOST_NAME} characters at the most is")
        return text or None


@dataclass(frozen=True)
class Values:
    """Takes a value in the `json` member as the name, a number as it is written."""

    key: str
    ending: str = "json"

    def name(self, data: bytes) -> str | None:
        """Returns the name, None where there is no such key, or null. Raises ValueError."""
        found: Any = json.loads(data.decode("utf-8"), parse_int=str, parse_float=str, parse_constant=str)
        if not isinstance(found, dict):
            raise ValueError("the json is not one of keys and values")
        value = found.get(self.key)
        if value is None or value == "":
            return None
        if isinstance(value, bool):
            return json.dumps(value)
        if not isinstance(value, str):
            raise ValueError(f"{self.key} is a {type(value).__name__}, and not the name or number of a class")
        return value


Rule = Numbers | Folders | Texts | Values | Table


def check_word(word: str) -> None:
    """Raises RequestError for a word that says nothing, before anything is opened."""
    if word in ("auto", "member", "folder") or word.lower().endswith(ENDINGS):
        return
    kind, colon, rest = word.partition(":")
    if kind in ("json", "text") and rest:
        return
    if kind == "folder" and colon and _whole(rest) not in (None, 0):
        return
    hint = "; labels=folder reads them from folders" if os.path.isdir(word) else ""
    raise RequestError(f"labels={word}: {WORDS} is expected{hint}")


def rule_of(word: str) -> Rule:
    """Returns what a word says. Raises RequestError, and StorageError for a table that cannot be read."""
    check_word(word)
    if word in ("auto", "member"):
        return Numbers(or_folders=word == "auto")
    if word == "folder":
        return Folders()
    if word.lower().endswith(ENDINGS):
        return read_table(word)
    kind, _, rest = word.partition(":")
    if kind == "json":
        return Values(rest)
    if kind == "text":
        return Texts(rest.lstrip(".").lower())
    number = _whole(rest)
    assert number
    return Folders(number - 1 if number > 0 else DIRECT + 1 + number)


def _whole(text: str) -> int | None:
    return int(text) if text.removeprefix("-").isdecimal() and len(text) < 4 else None
