"""Users, passwords and query strings of URLs are in nothing that is written."""

import json

import pytest

from seer.core.secrets import cleaned, without

KEPT = (
    "https://data.org/a/b.tar", "s3://bucket/a,b.tar", "/home/me/a?b@c#d", "me@host:/data", "runs/x=y",
    "user:word@host", "a://", "https://[::1]:8080/x", "http://host:80/a@b",
)  # fmt: skip


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("https://me:pass@data.org/a.tar", "https://data.org/a.tar"),
        ("https://me@data.org:443/a.tar", "https://data.org:443/a.tar"),
        ("https://token:@data.org/a", "https://data.org/a"),
        ("https://data.org/a.tar?X-Sig=s3cret&b=c", "https://data.org/a.tar"),
        ("https://data.org?key=s3cret", "https://data.org"),
        ("https://data.org/a#s3cret", "https://data.org/a"),
        ("s3+http://me:p@ss@b/x?y=s3cret", "s3+http://b/x"),
        ("data.source='http://u:s3cret@h/a b' is no folder; see http://h/c?d", "data.source='http://h/a b' is no folder; see http://h/c"),
        ("[https://h/a?s3cret, https://h/b?s3cret]", "[https://h/a, https://h/b]"),
        ("HTTPS://U:s3cret@H/x", "HTTPS://H/x"),
    ],
)  # fmt: skip
def test_what_lets_someone_in_is_cut(given, left):
    assert without(given) == left and without(left) == left


@pytest.mark.parametrize("text", KEPT)
def test_what_is_no_secret_stays(text):
    assert without(text) == text


def test_texts_inside_of_plain_values_are_cleaned_and_the_rest_stays():
    given = {"a": ["http://u:s3cret@h", 1, None, {"b": "http://h?s3cret"}], "c": 1.5, "d": True}
    assert cleaned(given) == {"a": ["http://h", 1, None, {"b": "http://h"}], "c": 1.5, "d": True}
    assert "s3cret" not in json.dumps(cleaned(given))
