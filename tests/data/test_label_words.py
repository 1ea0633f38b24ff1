"""What `labels=` may be, and names from members: nothing is read into them."""

import json

import pytest

from seer.core.errors import RequestError
from seer.data.label_words import Folders, Numbers, Texts, Values, check_word, rule_of
from tests.messages import naming


def test_each_word_says_what_it_says():
    assert rule_of("auto") == Numbers(or_folders=True) and rule_of("member") == Numbers(or_folders=False)
    assert rule_of("json:label") == Values("label") and rule_of("text:.TXT") == Texts("txt")
    words = ("folder", "folder:1", "folder:3", "folder:-1", "folder:-2")
    assert [rule_of(word) for word in words] == [Folders(level) for level in (None, 0, 2, -1, -2)]


@pytest.mark.parametrize(
    "word",
    [
        "",
        "name",
        "folders",
        "folder:",
        "folder:0",
        "folder:x",
        "folder:1.5",
        "json",
        "json:",
        "text:",
        "labels.txt",
        "a.tar",
    ],
)
def test_a_word_that_says_nothing_is_refused_with_those_that_do(word):
    with pytest.raises(RequestError, match=naming(f"labels={word}", "folder:N", "FILE.csv", "json:KEY")):
        check_word(word)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ('"cat"', "cat"), ('"007"', "007"), ("7", "7"), ("1.0", "1.0"), ("1e3", "1e3"), ("true", "true"), ('" a "', " a "),
        ("null", None), ('""', None), ('"null"', "null"), ("NaN", "NaN"), ("123456789012345678901234567890", "1234567890" * 3),
    ],
)  # fmt: skip
def test_a_value_of_json_is_the_text_that_stands_there(value, name):
    assert Values("label").name(f'{{"other": 1, "label": {value}}}'.encode()) == name


def test_no_such_key_is_no_label():
    assert Values("label").name(b'{"caption": "a cat"}') is None


@pytest.mark.parametrize("data", [b"[1]", b'{"label": [1, 2]}', b'{"label": {}}', b"cat", b"\xff", b'{"label": '])
def test_json_that_holds_no_name_is_an_error(data):
    with pytest.raises(ValueError):
        Values("label").name(data)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"cat", "cat"),
        (b"cat\n", "cat"),
        (b"cat\r\n", "cat"),
        (b" cat \n", " cat "),
        (b"007", "007"),
        (b"", None),
        (b"\n", None),
    ],
)
def test_a_text_is_the_name_but_for_the_end_of_its_line(data, name):
    assert Texts("txt").name(data) == name


@pytest.mark.parametrize("data", [b"a caption\nof two lines", b"x" * 201, b"\xe9"])
def test_a_text_that_is_no_name_is_an_error(data):
    with pytest.raises(ValueError):
        Texts("txt").name(data)


def test_a_name_that_json_writes_with_escapes_is_the_same_name():
    assert Values("label").name(json.dumps({"label": "café ☃"}).encode()) == "café ☃"
