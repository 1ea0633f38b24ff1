"""Counts what lies in a source: what is read as an image, what belongs to one, and what is passed over, by kind.

Folders and archives are counted by the same rules, so the same files give the same counts whichever they lie in.
`found` is always used + companions + passed over: whatever is not counted elsewhere is passed over.

Surprising: rows of a tar that is opened by its index are found and used, and nothing else of it is known, since it is
not walked. A file without an ending is passed over, even where it is a JPEG: its bytes would have to be read to know,
which costs more than walking the folder does. Kinds and folders are bounded, since endings may be dates or numbers.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from seer.data.shards import archives

NO_ENDING = "no ending"
HIDDEN, MAC_FOLDER, MAC_FORK = "hidden", "__MACOSX", "._"
BROKEN_LINK, LINK_ABOVE = "broken link", "link to a folder above"
LINK_OUT, LINK_TO_FOLDER = "link out of the archive", "link to a folder"  # in tars
OTHERS = "other endings"
MOST_KINDS = 100
MOST_CLASSES = 10_000  # folders that are counted apart
MOST_SHOWN = 1000  # classes in a result
MOST_TOLD = 8  # of a kind of thing, in a line
_OF_SYSTEMS = {".ds_store": ".DS_Store", "thumbs.db": "Thumbs.db", "desktop.ini": "desktop.ini"}
_LONGEST_ENDING = 12
# Endings of images that are not read: they are told apart from what nobody takes for an image.
_UNREAD = frozenset(
    f".{ending}"
    for ending in (
        *(
            "heic",
            "heif",
            "hif",
            "jxl",
            "jp2",
            "j2k",
            "jpx",
            "psd",
            "svg",
            "eps",
            "ps",
            "ico",
            "tga",
            "ppm",
            "pgm",
            "exr",
        ),
        *("dng", "cr2", "cr3", "nef", "arw", "orf", "rw2", "raf", "raw"),
    )
)


def concealed(name: str) -> str | None:
    """Returns the kind of a file that is hidden, or that lies in a hidden folder, or that macOS makes beside others
    when it packs them; None for any other. name: its path from the folder or archive on."""
    if not ("/." in name or name[:1] == "." or "__MACOSX/" in name):  # nearly all, in a tenth of the time
        return None
    *folders, base = name.split("/")
    for part in folders:
        if part == MAC_FOLDER or (part[:1] == "." and part not in (".", "..")):
            return MAC_FOLDER if part == MAC_FOLDER else HIDDEN
    if base.startswith("._"):
        return MAC_FORK
    return _OF_SYSTEMS.get(base.lower(), HIDDEN) if base[:1] == "." else None


def kind_of(name: str, ending: str) -> str:
    """Returns the kind of a file that is passed over. ending: as the rule for names has it (`names.Endings.split`)."""
    base = name.rpartition("/")[2].lower()
    if base in _OF_SYSTEMS:
        return _OF_SYSTEMS[base]
    archive = next((one for one in archives.ENDINGS if base.endswith(one)), None)
    if archive is not None:
        return archive
    plain = ending.replace(".", "").replace("_", "").replace("-", "")
    if not plain.isalnum() or plain.isdigit() or len(plain) > _LONGEST_ENDING:
        return NO_ENDING
    return f".{ending}"


@dataclass
class Census:
    """Holds the counts. companions: by ending. passed: by kind. classes: images by the name of the folder that holds
    them. indexed: images of archives that were opened by their index."""

    found: int = 0
    used: int = 0
    indexed: int = 0
    companions: dict[str, int] = field(default_factory=dict)
    passed: dict[str, int] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)

    def use(self, folder: str, images: int) -> None:
        """Counts images that lie in a folder of this name."""
        self.found += images
        self.used += images
        if folder in self.classes or len(self.classes) < MOST_CLASSES:
            self.classes[folder] = self.classes.get(folder, 0) + images

    def belong(self, ending: str, files: int = 1) -> None:
        """Counts files that belong to images."""
        self.found += files
        self.companions[f".{ending}"] = self.companions.get(f".{ending}", 0) + files

    def pass_over(self, kind: str, files: int = 1) -> None:
        """Counts files that are not read."""
        self.found += files
        if kind not in self.passed and len(self.passed) >= MOST_KINDS:
            kind = OTHERS
        self.passed[kind] = self.passed.get(kind, 0) + files

    def add(self, other: "Census") -> None:
        """Adds the counts of another one."""
        self.found, self.used = self.found + other.found, self.used + other.used
        self.indexed += other.indexed
        for mine, more in (
            (self.companions, other.companions),
            (self.passed, other.passed),
            (self.classes, other.classes),
        ):
            for name, files in more.items():
                mine[name] = mine.get(name, 0) + files

    def plain(self) -> dict[str, Any]:
        """Returns the fields of a result. classes: where the images lie in more folders than one; their number alone where
        there are too many to be read."""
        result: dict[str, Any] = {"found": self.found, "used": self.used}
        result |= {"passed_over": _sorted(self.passed), "companions": _sorted(self.companions)}
        if len(self.classes) > MOST_SHOWN:
            result["folders"] = len(self.classes)
        elif len(self.classes) > 1:
            result["classes"] = {name or ".": files for name, files in sorted(self.classes.items())}
        if self.indexed:
            result["by_index"] = self.indexed
        return result

    def line(self) -> str:
        """Returns the counts as a sentence."""
        words = f"{self.found} files found, {self.used} images used"
        if self.companions:
            words += f", {sum(self.companions.values())} beside them ({_in_words(_sorted(self.companions))})"
        words += f", {sum(self.passed.values())} passed over" + (
            f" ({_in_words(_sorted(self.passed))})" if self.passed else ""
        )
        classes = self.plain().get("classes")
        if classes:
            words += f"; {len(classes)} folders ({_in_words(_sorted(classes))})"
        elif len(self.classes) > 1:
            words += f"; {len(self.classes)} folders"
        unread = {kind: files for kind, files in _sorted(self.passed).items() if kind in _UNREAD}
        if unread:
            words += f"; images of kinds that are not read ({_in_words(unread)}) can be turned into JPEG"
        if NO_ENDING in self.passed:
            words += "; files are read by their endings, so an image without one needs one"
        return words


def total(parts: Iterable[Census]) -> Census:
    """Returns the sum."""
    found = Census()
    for one in parts:
        found.add(one)
    return found


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def _in_words(counts: Mapping[str, int]) -> str:
    shown = [f"{name} {files}" for name, files in list(counts.items())[:MOST_TOLD]]
    return ", ".join([*shown, "..."] if len(counts) > MOST_TOLD else shown)
