"""Opens what a source names: tars, folders of images, lists of either, and checks it against their manifests.

A tar without an index is walked once at the start (15 us a row: headers alone are read, so its rows have no CRC to be
checked by), and nothing is written beside it. With an index and a manifest that agree with the archive's size, opening
costs two look-ups in the file system: the index itself is read when a row is first wanted.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from seer.core.errors import RequestError, StorageError
from seer.core.log import log
from seer.data.ledger import shown
from seer.data.shards import archives
from seer.data.shards.bad_archives import BadArchives
from seer.data.shards.census import Census, total
from seer.data.shards.folder import FolderShard, listed_in, these
from seer.data.shards.index import Notes
from seer.data.shards.names import FOUR_ENDINGS, WITH_COMPANIONS, WITHOUT_LINKS, Asked, Endings, asked
from seer.data.shards.shard import Shard
from seer.data.shards.source import Found, expand, is_image, is_list, refuse_unfinished
from seer.data.shards.tar import TarError
from seer.data.shards.tar_shard import Opened, TarShard
from seer.data.shards.writer import JOURNAL, SHARDS_MANIFEST


def open_shards(
    source: str | Path | Sequence[str | Path],
    *,
    check_crc: bool = True,
    image: str | None = None,
    fields: Mapping[str, str] | None = None,
    older: bool = False,
    links: bool = True,
    bad: BadArchives | None = None,
) -> list[Shard]:
    """Opens what a source names, in a fixed order: a folder of tars or of images, a tar, a glob, `{000..009}`,
    a .txt with a path a line, or a list of any of these.

    check_crc: compare the bytes of every row that is read with its index; without it a flipped byte of data passes.
    image: the ending of the image, where samples have several. fields: what else belongs to it, by its ending: {"mask":
    "png"} makes `a.png` the mask of `a.jpg`, {"mask": "masks/"} a file of its name in that folder. older: find files as versions
    did that knew four endings of images, for a run that began with one. links: symbolic links in tars are read, as later versions
    do. bad: how many archives may be passed over that cannot
    be read, and receives them.

    Raises RequestError (status 78) when there is nothing, or a set of shards that is not finished, naming the source;
    StorageError when tars are missing that a folder's manifest names; TarError for a damaged archive.
    """
    names, rule = asked(image, fields), FOUR_ENDINGS if older else WITH_COMPANIONS if links else WITHOUT_LINKS
    opened, bad = Opened(), BadArchives() if bad is None else bad
    entries: dict[str, Mapping[str, Any] | None] = {}
    classes: dict[str, tuple[str, ...]] = {}  # by path
    sources = [source] if isinstance(source, str | Path) else list(source)
    paths = _found(map(str, sources), older, opened.notes, entries, classes)
    _check_once(paths)
    for folder in dict.fromkeys(path[: path.rfind("/") + 1] for path in paths if path not in entries):
        if os.path.exists(folder + JOURNAL):
            refuse_unfinished(folder)
        entries.update(_manifest(folder, classes))
    _check_folders(names, paths)
    shards: list[Shard] = []
    for path in _joined(paths):
        entry = entries.get(path) if isinstance(path, str) else None
        shard: Shard
        if not isinstance(path, str):
            shard = _with_images(these(path, names), names, rule)
        elif entry is None and os.path.isdir(path):
            shard = _with_images(FolderShard(Path(path), asked=names, rule=rule), names, rule)
        elif entry is None and is_list(path):
            shard = _with_images(listed_in(Path(path), names), names, rule)
        else:
            options = {"classes": classes.get(path), "asked": names, "rule": rule}
            try:
                shard = TarShard(path, check_crc, entry=entry, opened=opened, **options)  # type: ignore[arg-type]
                _with_images(shard, names, rule)
            except (TarError, RequestError) as error:
                bad.pass_over(path, error, len(paths))
                continue
        shards.append(shard)
    bad.check_rest(paths, len(shards))
    if isinstance(shards[0], FolderShard) and not any(isinstance(shard, TarShard) for shard in shards):
        shards[0].census.add(opened.notes.census)  # of a pattern
    tell(opened.notes)
    return shards


def _check_once(paths: Sequence[str]) -> None:
    """Raises RequestError for a path that comes twice."""
    if len(set(paths)) < len(paths):
        repeated = next(path for path, times in Counter(paths).items() if times > 1)
        raise RequestError(f"shard {repeated} is listed twice; list each shard once")


def _found(
    sources: Iterable[str],
    older: bool,
    notes: Notes,
    entries: dict[str, Mapping[str, Any] | None],
    classes: dict[str, tuple[str, ...]],
) -> list[str]:
    """Returns the paths that sources name. notes: receive counts of what lies beside them; entries, classes: what manifests
    say of them."""
    paths: list[str] = []
    for one in sources:
        found = expand(one, older)
        if found.census is not None:
            notes.census.add(found.census)
        named = {path: entry for folder in found.manifests for path, entry in _manifest(folder, classes).items()}
        paths += _all_named(found, named) if named else found.paths
        entries.update(named)
    return paths


def _instead(shard: Shard) -> str:
    """Returns what a folder or a walked tar holds that has no images, as the end of a sentence."""
    passed = shard.census.passed if isinstance(shard, FolderShard | TarShard) else {}
    files = ", ".join(f"{kind} {files}" for kind, files in sorted(passed.items(), key=lambda one: -one[1])[:10])
    return f"; passed over: {files}" if files else ""


def census_of(shards: Sequence[Shard]) -> Census:
    """Returns the counts of what was found where these shards were opened, which may be several times `open_shards`."""
    parts = {id(one.census): one.census for one in shards if isinstance(one, FolderShard | TarShard)}
    found = total(parts.values())
    rows = sum(
        len(one) for one in shards if not (isinstance(one, FolderShard) or (isinstance(one, TarShard) and one.walked))
    )
    found.add(Census(found=rows, used=rows, indexed=rows))
    return found


def _check_folders(names: Asked | None, paths: Sequence[str]) -> None:
    """Raises RequestError for a tar where another folder should have files of the images' names."""
    for path in paths if names and names.folders else ():
        if not (os.path.isdir(path) or is_list(path) or is_image(path)):
            name, place = names.folders[0]  # type: ignore[union-attr]
            raise RequestError(
                f"data.fields={{{name}: {place}}}: a folder goes with a folder or a list of images, and {path} is a tar; give the "
                f"images' own folder, or write shards of it first (`seer shard source=IMAGES fields={{{name}: {place}}}`)"
            )


def _with_images(shard: Shard, names: Asked | None, rule: Endings) -> Shard:
    """Returns the shard. Raises RequestError where no name in it is that of an image."""
    if len(shard) == 0:
        looked = f"by {names}" if names else f"looked for {', '.join(sorted(rule.images))}"
        raise RequestError(f"no images in {shard.path}; {looked}{_instead(shard)}")
    return shard


def tell(notes: Notes) -> None:
    """Warns of what the names in tars say, where there is something to say."""
    archives.tell("archives in tars", notes.inside)
    _tell_oddities(notes)
    if notes.alone:
        log.warning(
            f"{notes.alone} members whose ending says that they belong to an image, the first {notes.first_alone[:200]!r}, "
            "have no image of their name, and are not trained on; where the images are called otherwise, like "
            "NAME.input.jpg, data.image=input.jpg joins them, and data.fields={depth: deep.png} says what else is theirs (of "
            "`seer shard`: image=, fields=)"
        )
    if notes.alike:
        log.warning(
            f"{notes.alike} images have the name of the one before them up to the first dot, like "
            f"{' and '.join(repr(name[:200]) for name in notes.first_alike)}: each is a sample of its own; where they belong together, "
            "data.image=left.jpg says which is the image and data.fields={right: right.jpg} what is beside it (of "
            "`seer shard`: image=, fields=)"
        )


def _tell_oddities(notes: Notes) -> None:
    """Warns of what is passed over in tars, or would be lost elsewhere."""
    if notes.links:
        log.warning(
            f"{notes.links} symbolic links in tars are not followed, the first {notes.first_link[:200]!r}; links are, to files of the same "
            "archive: where these stand for images that lie elsewhere, pack the files again with `tar --dereference` (-h)"
        )
    if notes.dangling:
        log.warning(
            f"{notes.dangling} hard links in tars name what their archive does not hold, the first "
            f"{notes.first_dangling[:200]!r}, and are passed over; pack the files again with `tar --hard-dereference`"
        )
    if notes.same:
        log.warning(
            f"{notes.same} images in tars differ in their name from another one by case or the spelling of accents alone, like "
            f"{' and '.join(repr(name[:200]) for name in notes.first_same)}: each is read here; unpacked on a disk that takes "
            "such names for one, the first would be lost"
        )
    if notes.padded:
        log.warning(
            f"{len(notes.padded)} tars end with more zeros than tar writes unasked, the first {min(notes.padded)}: as `tar -b` "
            "and `tar -A` do, and they are read; a download that was cut within its last kilobytes looks the same"
        )


def _joined(paths: Iterable[str]) -> Iterator[str | list[str]]:
    """Joins images that are named one after the other to one shard."""
    images: list[str] = []
    for path in paths:
        if is_image(path) and not os.path.isdir(path):
            images.append(path)
            continue
        if images:
            yield images
            images = []
        yield path
    if images:
        yield images


def box_classes(shards: Iterable[Shard]) -> tuple[str, ...]:
    """Returns the classes of boxes that the manifests beside shards name; () where none does, or they differ."""
    found = set()
    for folder in {one.path.parent for one in shards if isinstance(one, TarShard)}:
        try:
            names = json.loads((folder / SHARDS_MANIFEST).read_text(encoding="utf-8")).get("box_classes")
        except (OSError, ValueError, AttributeError):
            names = None  # no manifest, or none of ours
        found.add(tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ())
    return found.pop() if len(found) == 1 else ()


def check_box_classes(where: str, classes: Sequence[str], shards: Sequence[Shard]) -> None:
    """Raises RequestError where the manifests beside shards give the name of a class of boxes another number than `classes` does,
    since boxes are known by their numbers. Names that no manifest has are fine: they are other words for the numbers."""
    names = box_classes(shards)
    for number, name in enumerate(classes):
        if name in names and names.index(name) != number:
            raise RequestError(
                f"{where}: {shown(name, 50)} is class {number} of the head and class {names.index(name)} of the boxes of "
                f"{shards[0].path}, whose manifest numbers them {shown(', '.join(names), 100)}; a head learns them in this order"
            )


def _all_named(found: Found, named: Mapping[str, object]) -> list[str]:
    """Returns the paths of a searched folder with manifests. Tars that these name must be there, or lie
    elsewhere where they name indexes alone; tars that they do not name (an index may be older) are read."""
    there, folders = set(found.paths), tuple(folder for folder in found.manifests if folder)
    absent = [path for path in named if path not in there]
    elsewhere = [path for path in absent if path.startswith("/") and not path.startswith(folders)]
    if len(elsewhere) < len(absent):
        missing = sorted(set(absent) - set(elsewhere))
        raise StorageError(
            f"{len(missing)} of {len(named)} tars that {SHARDS_MANIFEST} names are missing, the first {missing[0]}; restore "
            f"them, or delete {SHARDS_MANIFEST} beside them to go on with those that are left"
        )
    if elsewhere and found.loose:
        raise RequestError(
            f"{found.manifests[0] or '.'}{SHARDS_MANIFEST} names tars that lie elsewhere, like {elsewhere[0]}, beside loose "
            f"images, like {found.loose}; keep them in folders of their own"
        )
    if len(there) == 1 and os.path.isdir(found.paths[0]):  # there is no tar
        return elsewhere or found.paths
    more = [path for path in found.paths if path not in named and path.startswith(tuple(found.manifests))]
    if more:
        log.warning(f"{len(more)} tars are read that {SHARDS_MANIFEST} beside them does not name, the first {more[0]}")
    return found.paths + elsewhere


def _manifest(folder: str, classes: dict[str, tuple[str, ...]]) -> dict[str, Mapping[str, Any] | None]:
    """Returns entries by path, or None for one without the checksum of its index; nothing where there is no manifest.

    folder: with its slash. A name may be the whole path of a tar that lies elsewhere. classes: receives, by path, the
    names of the classes where the manifest has them.
    """
    try:
        with open(folder + SHARDS_MANIFEST, encoding="utf-8") as file:
            manifest = json.load(file)
        entries: dict[str, Mapping[str, Any] | None] = {
            one["name"] if one["name"].startswith("/") else folder + one["name"]: _entry(folder, one)
            for one in manifest["shards"]
        }
        names = manifest.get("classes")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # a file of this name that is not ours; the indexes say the same
    if isinstance(names, list) and all(isinstance(name, str) for name in names) and len(set(names)) == len(names):
        classes.update(dict.fromkeys(entries, tuple(names)))
    return entries


def _entry(folder: str, one: dict[str, Any]) -> dict[str, Any] | None:
    if not (type(one.get("count")) is type(one.get("bytes")) is int and type(one.get("index")) is str):
        return None
    if "sidecar" in one:
        one["sidecar"] = folder + one["sidecar"]
    return one
