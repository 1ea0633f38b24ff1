"""Docstrings can be read alone, and the words that are our own are explained: read from the source, nothing is imported.

`complaints(path, source)` is the checker; the tests below feed it sources that break each rule, since a checker that cannot
fail is worth nothing.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]
GLOSSARY = TOP / "docs" / "glossary.md"
# A docstring that begins so is a fragment, or a question that the reader has to turn round.
FRAGMENTS = ("Of", "What", "Whether", "Where", "Which", "Those", "How", "When")
ENTRY = re.compile(r"^- \*\*(?P<word>[^*]+)\*\* \(`(?P<file>[^`]+)`\): (?P<first>\S)", re.MULTILINE)


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, docstring) of a module, its classes and its functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None:
                yield node.body[0].lineno, text


def complaints(path: str, source: str) -> list[str]:
    found = []
    for line, text in docstrings(ast.parse(source)):
        first = text.partition("\n\n")[0]
        word = first.split()[0].rstrip(",:") if first.split() else ""
        if word in FRAGMENTS:
            found.append(f"{path}:{line}: begins with {word!r}; say what it does: Returns …, Raises …, Holds …")
        elif not first[:1].isupper():
            found.append(f"{path}:{line}: begins with {word!r} and not with a sentence")
        if not first.endswith((".", ":")):
            found.append(f"{path}:{line}: the first sentence does not end: {first[-20:]!r}")
    return found


def entries(glossary: str) -> list[tuple[str, str]]:
    """(word, file) of each entry of the glossary, in its order."""
    return [(one["word"], one["file"]) for one in ENTRY.finditer(glossary)]


def lacking(glossary: str, top: Path) -> list[str]:
    """The entries that are no use: defined twice, or not used in the file that they name."""
    found, words = [], [word for word, _ in entries(glossary)]
    found += [f"{word}: defined {words.count(word)} times" for word in sorted(set(words)) if words.count(word) > 1]
    for word, file in entries(glossary):
        path = top / file
        if not file.startswith("seer/") or not path.is_file():
            found.append(f"{word}: {file} is no file of seer/")
        elif not re.search(
            rf"\b{re.escape(word)}s?\b", " ".join(path.read_text(encoding="utf-8").split()), re.IGNORECASE
        ):
            found.append(f"{word}: not used in {file}")
    return found


def test_every_docstring_begins_with_a_sentence():
    sources = sorted((TOP / "seer").rglob("*.py"))
    assert len(sources) > 100
    found = [c for path in sources for c in complaints(str(path.relative_to(TOP)), path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("word", FRAGMENTS)
def test_a_docstring_that_begins_with_such_a_word_is_found(word):
    for source in (
        f'"""{word} a batch holds."""\n',
        f'class A:\n    """{word}: a batch."""\n',
        f'def f():\n    """{word} a batch holds,\n    and more."""\n',
        f'async def f():\n    """{word} a batch holds.\n\n    Returns it."""\n',
    ):
        (found,) = complaints("a.py", source)
        assert repr(word) in found


@pytest.mark.parametrize(
    "source",
    [
        '"""[B, C] -> [B]."""',
        '"""{"a": 1} of a file."""',
        '"""float32 [B]: the labels."""',
        'def f():\n    """facts: what must not differ."""',
        'def f():\n    """\n    """',
    ],
)
def test_a_docstring_that_begins_with_no_sentence_is_found(source):
    assert complaints("a.py", source)


def test_a_first_sentence_without_an_end_is_found():
    assert complaints("a.py", '"""Returns a batch"""')
    assert complaints("a.py", '"""Returns a batch\n\nIt is large."""')
    assert complaints("a.py", '"""Returns a batch,\nwhich is large"""')


@pytest.mark.parametrize(
    "source",
    [
        '"""Returns a batch."""',
        '"""Offers what is wanted."""',  # begins like "Of"
        '"""Whereabouts of a row are found here."""',
        '"""Takes one of:\n\n    a\n    b"""',
        '"""Returns a batch, which is\nlarge."""',
        "def f():\n    return 1",
    ],
)
def test_a_docstring_that_can_be_read_alone_passes(source):
    assert complaints("a.py", source) == []


def test_the_words_of_the_glossary_are_defined_once_and_used():
    text = GLOSSARY.read_text(encoding="utf-8")
    assert len(entries(text)) == text.count("\n- ") > 15  # each line that begins an entry is one
    assert lacking(text, TOP) == []


def test_a_word_that_is_defined_twice_or_not_used_is_found(tmp_path):
    (tmp_path / "seer").mkdir()
    (tmp_path / "seer" / "a.py").write_text('"""Cuts an epoch into lanes."""\n')
    fine = "- **lane** (`seer/a.py`): a part.\n"
    assert lacking(fine, tmp_path) == []
    assert lacking(fine + fine, tmp_path) == ["lane: defined 2 times"]
    assert lacking("- **tower** (`seer/a.py`): a network.\n", tmp_path) == ["tower: not used in seer/a.py"]
    assert lacking("- **lane** (`seer/b.py`): a part.\n", tmp_path) == ["lane: seer/b.py is no file of seer/"]
