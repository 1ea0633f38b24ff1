"""Finds where the bytes of links in a tar lie: hard links, and symbolic ones that lead to a file of the same archive.

A link is read as the file that unpacking would make it show: the folder of a symbolic one counts, links to folders on its way
are followed, and so are links to links. Nothing outside of the archive is ever looked at: what is absolute, or climbs out, is
passed over. Surprising: earlier versions took hard links alone, by names that agree letter for letter, and an index that they
made is read by that rule (`symbolic=False`), so that its rows keep their bytes.
"""

from collections.abc import Iterable

from seer.data.shards.census import BROKEN_LINK, LINK_OUT, LINK_TO_FOLDER
from seer.data.shards.tar import Member, TarError, walk

MOST_HOPS = 40  # links on the way to one file, as Linux has it; more are a circle
MOST_PATH = 4096  # letters of a path, as Linux has it; a longer one leads nowhere
MOST_PARTS = (
    20_000_000  # folders that all links of an archive pass through: some 20 seconds, for millions of usual links
)
Place = tuple[int, int]  # (offset of the data, bytes)


class Links:
    """Holds the places that links of an archive name. symbolic: of symbolic links, too. Four walks of headers. Raises TarError."""

    def __init__(self, buffer: memoryview, symbolic: bool):
        self.symbolic = symbolic
        hard = {m.link for m in walk(buffer) if m.link is not None}
        self._exact: dict[str, Place] = {
            m.name: (m.data, m.size) for m in walk(buffer) if m.link is None and m.name in hard
        }
        self._ends: dict[
            tuple[str, str], str | None
        ] = {}  # of (name, target): the path that it leads to, None for out of it
        self._places: dict[str, Place] = {}  # by path
        self._folders: set[str] = set()  # those that links lead to
        if symbolic:
            self._ends = _ends(buffer)
            self._find(buffer, {path for path in self._ends.values() if path is not None})

    def _find(self, buffer: memoryview, wanted: set[str]) -> None:
        for member in walk(buffer) if wanted else ():
            if member.link is not None:
                continue
            path = plain(member.name)
            if len(path) > MOST_PATH:
                continue
            if path in wanted:
                self._places[path] = member.data, member.size
            while "/" in path:
                path = path[: path.rindex("/")]
                if path in wanted:
                    self._folders.add(path)

    def place(self, member: Member) -> Place | None:
        """Returns where the bytes of a link lie; None for one that leads to no file of the archive."""
        assert member.link is not None
        if not member.symbolic and (found := self._exact.get(member.link)):
            return found
        path = self._ends.get((member.name, member.link))
        return None if path is None else self._places.get(path)

    def is_new(self, member: Member) -> bool:
        """Returns whether earlier versions passed a link over that has a place."""
        return member.symbolic or member.link not in self._exact

    def kind(self, member: Member) -> str:
        """Returns the kind of a link that has no place, as it is counted."""
        path = self._ends.get((member.name, member.link or ""), "")
        if path is None:
            return LINK_OUT
        return LINK_TO_FOLDER if path in self._folders else BROKEN_LINK

    def places(self, members: Iterable[Member]) -> list[Place]:
        """Returns those of the links among the members of a run, in their order."""
        return [place for member in members if member.link is not None and (place := self.place(member))]


def there(member: Member, links: Links | None) -> bool:
    """Returns whether the archive holds the bytes of a member."""
    return member.link is None or (links is not None and links.place(member) is not None)


def plain(name: str) -> str:
    """Returns a name without what means nothing in a path: ./a//b is a/b."""
    if name[:1] not in "./" and "//" not in name and "/." not in name:  # nearly all
        return name
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _ends(buffer: memoryview) -> dict[tuple[str, str], str | None]:
    """Returns the path at the end of every link, by its name and target: "" for a circle, None for one out of the archive.

    Raises TarError where they pass through more folders than an archive has for any good reason.
    """
    symbolic: dict[str, str] = {}  # by path
    hard: dict[str, str] = {}
    links = []
    for member in walk(buffer, symbolic=True):
        path = plain(member.name)
        symbolic.pop(path, None)  # of two members of one name, the last is what unpacking leaves
        hard.pop(path, None)
        if member.link is not None:
            links.append(member)
            (symbolic if member.symbolic else hard)[path] = member.link if member.symbolic else plain(member.link)
    for path in hard:  # a hard link to a symbolic one is another of its kind
        end = _last(hard, path)
        if end in symbolic:
            symbolic[path] = symbolic[end]
    found: dict[tuple[str, str], str | None] = {}
    passed = 0
    for member in links:
        path = plain(member.name)
        if path in symbolic:
            found[member.name, member.link or ""], parts = _followed(path, symbolic, hard)
            passed += parts
            if passed > MOST_PARTS:
                raise TarError(
                    f"its links pass through more than {MOST_PARTS} folders; unpack it and pack it again with `tar -h`"
                )
        else:
            found[member.name, member.link or ""] = _last(hard, path)
    return found


def _last(hard: dict[str, str], path: str) -> str:
    """Returns the path behind a row of hard links; "" for a circle."""
    for _ in range(MOST_HOPS):
        if path not in hard:
            return path
        path = hard[path]
    return ""


def _followed(path: str, symbolic: dict[str, str], hard: dict[str, str]) -> tuple[str | None, int]:
    """Returns the path that a name stands for, "" for a circle, None for one out of the archive; and how many parts of paths were
    looked at."""
    done: list[str] = []
    left = path.split("/")[::-1]
    hops, parts, letters = 0, 0, len(path)
    while left:
        part = left.pop()
        parts += 1
        if letters > MOST_PATH:
            return "", parts
        if part == "..":
            if not done:
                return None, parts
            done.pop()
        elif part not in ("", "."):
            done.append(part)
            target = symbolic.get("/".join(done))
            if target is None:
                continue
            hops, letters = hops + 1, sum(map(len, done)) + len(done) + len(target)
            if hops > MOST_HOPS:
                return "", parts
            if target[:1] == "/":
                return None, parts
            done.pop()
            left += target.split("/")[::-1] if len(target) <= MOST_PATH else ()
    return _last(hard, "/".join(done)), parts
