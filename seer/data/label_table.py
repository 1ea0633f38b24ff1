"""Reads the labels of images from a table: a .csv or .tsv with the name of an image and its label in each row.

A name is a path or a key, with or without the ending of the image: it is looked for in the whole path of an image, and in
every shorter end of it, so `1.jpg`, `ant/1.jpg`, `train/ant/1` and `/data/train/ant/1.jpg` all name /data/train/ant/1.jpg, and
`shard-3.tar/0001` a sample of one tar. A label is text and stays as it is written: 007, 1.0, true and null are names, and
so are those with spaces. An empty one is no label.

The first row may be a header. Columns are told by usual words for them (`NAMES`, `LABELS`); without these there are two
columns, name and label, and a first row that names no image is a header. About 300 bytes a row.
"""

import csv
import io
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field

from seer.core.errors import RequestError, StorageError
from seer.data.shards.names import IMAGE_ENDINGS, split

NAMES: tuple[str, ...] = (
    "file",
    "filename",
    "file_name",
    "file name",
    "filepath",
    "file_path",
    "path",
    "image",
    "image_path",
    "image_name",
)
NAMES += ("filepaths", "filenames", "file_names", "files", "fname", "image_file", "image_filename", "imageid", "images")
NAMES += ("image_id", "img", "img_path", "key", "__key__", "name", "id", "img_name", "sample")
LABELS = ("label", "labels", "class", "class_name", "classname", "category", "target", "class name")
ENDINGS = (".csv", ".tsv")
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_LOOKED_AT = 50  # rows by which the sign between columns is told


@dataclass
class Table:
    """Holds labels by the name of an image. header: the name in the first row where that may be none of an image's."""

    path: str
    labels: dict[str, str]
    header: str | None = None
    _stems: dict[str, str] = field(
        default_factory=dict, repr=False
    )  # without the ending of an image: the name; "" for two
    _composed: dict[str, str] | None = field(default=None, repr=False)  # by the NFC form of names beyond ASCII
    _deepest: int = field(default=0, repr=False)  # parts of the longest name

    def __post_init__(self) -> None:
        for name in self.labels:
            stem, ending = split(name)
            if ending in IMAGE_ENDINGS:
                self._stems[stem] = "" if stem in self._stems else name
        self._deepest = max((name.count("/") + 1 for name in self.labels), default=0)

    def name_of(self, place: str) -> str | None:
        """Returns the name in the table that means an image; the longest of several. place: the image's whole path, or the
        path of its tar and its key."""
        for one in _ends(place, self._deepest):
            found = self._known(one)
            if found is not None:
                return found
        if place.isascii():
            return None
        composed = self._by_composed()
        return next((composed[one] for one in _ends(_nfc(place), self._deepest) if one in composed), None)

    def _known(self, name: str) -> str | None:
        return name if name in self.labels else (self._stems.get(name) or None)

    def _by_composed(self) -> dict[str, str]:
        """Returns names by their NFC form, since file systems and programs write an accent as one sign or as two."""
        if self._composed is None:
            beyond = [name for name in self.labels if not name.isascii()]
            self._composed = {_nfc(split(name)[0]): name for name in beyond if split(name)[1] in IMAGE_ENDINGS}
            self._composed |= {_nfc(name): name for name in beyond}
        return self._composed


def read_table(path: str) -> Table:
    """Returns the table in a file. Raises RequestError for what is none, with the line, and StorageError."""
    text = _text(path)
    delimiter = "\t" if path.lower().endswith(".tsv") else _delimiter(text)
    rows = _rows(path, text, delimiter)
    first = next(rows, None)
    if first is None:
        raise RequestError(f"labels={path} holds no row; an image's name and its label are expected in each")
    name, label, headed = _columns(path, first[1])
    labels: dict[str, str] = {}
    lines: dict[str, int] = {}
    for line, row in rows if headed else (first, *rows):
        if len(row) <= max(name, label):
            raise RequestError(
                f"labels={path}, line {line}: {len(row)} columns, and at least {max(name, label) + 1} are expected"
            )
        one = _plain(row[name])
        if labels.setdefault(one, row[label]) != row[label]:
            raise RequestError(
                f"labels={path}, line {line}: {one[:200]!r} is {row[label][:50]!r} here and {labels[one][:50]!r} in line "
                f"{lines[one]}; keep one of the two"
            )
        lines.setdefault(one, line)
    return Table(path, labels, None if headed else _plain(first[1][name]))


def _text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError as error:
        raise RequestError(f"labels={path} does not exist; check the path") from error
    except OSError as error:
        raise StorageError(f"labels={path} cannot be read: {error.strerror}") from error
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RequestError(f"labels={path}, line {line}: this is not text in {encoding}; save it as UTF-8") from error


def _delimiter(text: str) -> str:
    """Returns what parts the columns: the first of comma, tab, semicolon that makes as many in every row, and at least two."""
    lines = [line for line in text.splitlines()[: _LOOKED_AT + 1] if line.strip()][:_LOOKED_AT]
    for delimiter in ",\t;":
        try:
            counts = {len(row) for row in csv.reader(lines, delimiter=delimiter)}
        except csv.Error:
            continue
        if len(counts) == 1 and counts != {1}:
            return delimiter
    return ","


def _rows(path: str, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of its last line and the cells of each row that is not empty."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise RequestError(f"labels={path}, line {reader.line_num}: {error}") from error


def _columns(path: str, first: list[str]) -> tuple[int, int, bool]:
    """Returns the columns of names and of labels, and whether the first row is a header for sure."""
    words = [cell.strip().lower() for cell in first]
    if any(split(word)[1] in IMAGE_ENDINGS for word in words):
        words = []  # an image is named, so that `key` beside it is a class
    names = [number for number, word in enumerate(words) if word in NAMES]
    labels = [number for number, word in enumerate(words) if word in LABELS]
    if len(names) > 1:  # `id,file_name,label`: what is called a file or an image is the name
        names = [number for number in names if words[number] not in ("id", "key", "name")][:1] or names[:1]
    if len(first) == 2 and bool(names) != bool(labels):
        name = names[0] if names else 1 - labels[0]
        return name, 1 - name, True
    if names and len(labels) == 1 and labels != names:
        return names[0], labels[0], True
    if len(first) != 2:
        raise RequestError(
            f"labels={path}: {len(first)} columns ({', '.join(cell[:50] for cell in first[:8])}), and it is not clear "
            "which is the name of an image and which its label; give a file of these two columns alone, or call them file "
            "and label in the first row"
        )
    return 0, 1, False


def _plain(name: str) -> str:
    """Returns a name with slashes, and without ./ before it."""
    name = name.replace("\\", "/") if "\\" in name and "/" not in name else name
    while name.startswith("./"):
        name = name[2:]
    return name


def _ends(place: str, deepest: int) -> Iterator[str]:
    """Yields a path and what is left when its first parts are taken off, of no more parts than names have, the longest
    first."""
    yield place
    parts = place.split("/")
    for first in range(max(1, len(parts) - deepest), len(parts)):
        yield "/".join(parts[first:])


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)
