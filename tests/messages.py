"""Asserts of a message what it must name (the key, the value, the file, the remedy) and leaves its wording free.

`pytest.raises(StorageError, match=naming("shard-000000.tar", "delete"))`, and `says(ended.words, "data.lanes=16")`.
"""

import re

# pytest names a test's folder after the test, so whatever the test is about stands in every path below it
FOLDER = r"/\S*?/pytest-\d+/(?:popen-gw\d+/)?[^/\s:;,')]*"


def naming(*facts: object) -> str:
    """Returns a pattern for a text that holds every fact, in any order, elsewhere than in the name of a test's folder.

    A number is found as a whole one: 11 is not in 1101, nor in 0.11. A fact with a slash is looked for as it is.
    """
    assert facts, "a message that need not name anything asserts nothing"
    return r"(?s)\A" + "".join(map(_ahead, map(str, facts)))


def says(text: str, *facts: object) -> bool:
    """Returns whether text holds every fact."""
    return re.search(naming(*facts), text) is not None


def _ahead(fact: str) -> str:
    exact = re.escape(fact)
    exact = rf"(?<!\d)(?<!\d\.){exact}" if fact[:1].isdigit() else exact
    exact = rf"{exact}(?!\d)(?!\.\d)" if fact[-1:].isdigit() else exact
    return f"(?=.*?{exact})" if "/" in fact else f"(?=(?>{FOLDER}|.)*?{exact})"
