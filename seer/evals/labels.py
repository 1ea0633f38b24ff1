"""Finds the class of each image, and matches the classes of two sets of images: by name, never by number.

One word says where labels come from (`data.label_words`). By default, where any sample has a `cls` member, these members are
the labels, and only where no sample has one are names of folders the classes. Samples without a label are left out, and
told once with their share. A number in `cls` means the class that the manifest beside the shards names so; where no manifest
names any, the number is its own name.

Surprising: equal numbers in two sets of shards may be different classes, since `seer shard labels=folder` numbers what it
finds; so numbers are compared only where neither side has names. The headers of all images in question are read at the
start, and the bytes of `cls`, but no image: 5 to 10 microseconds each where they are in the page cache.

Legend: S shards, n rows of one.
"""

import os
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np

from seer.core.errors import RequestError
from seer.core.log import log
from seer.data.class_folders import DIRECT, folder_in, level_of, name_at, parts_of
from seer.data.label_table import Table
from seer.data.label_words import Folders, Numbers, Rule, Texts, Values, rule_of
from seer.data.ledger import shown
from seer.data.shards.folder import FolderShard, place_of
from seer.data.shards.rewrite import MOST_DIGITS
from seer.data.shards.shard import Shard
from seer.data.shards.tar import TarError

UNLABELLED, BROKEN = -1, -2
MOST_SHOWN = 5  # names in one message
REMEDY = "write shards with `seer shard labels=folder`, whose manifest.json beside them names the classes"


@dataclass
class Labels:
    """Holds labels: of[s][row] is an index into names, UNLABELLED, or BROKEN where the headers of a row cannot be read.

    named: names are those of classes, and not the numbers in `cls`. by_number: they were found by the numbers in `cls`.
    direct: each is the name of the folder that directly holds the image. rows: int64 [images, 2], hashes of the name in a
    table that labelled each and of the image's path; None where no table did.
    """

    of: list[np.ndarray]  # S of int32 [n]
    names: list[str]
    named: bool
    by_number: bool = False
    direct: bool = False
    rows: np.ndarray | None = None

    def count(self, label: int) -> int:
        return sum(int((of == label).sum()) for of in self.of)

    def per_class(self) -> dict[str, int]:
        """Returns how many images each class has, of those that have any."""
        counts = sum(
            (np.bincount(of[of >= 0], minlength=len(self.names)) for of in self.of), np.zeros(1, dtype=np.int64)
        )
        return {name: int(count) for name, count in zip(self.names, counts.tolist(), strict=True) if count}

    def places(self, label: int) -> Iterator[tuple[int, int]]:
        """Yields (shard, row) of the images with a label."""
        for s, of in enumerate(self.of):
            yield from ((s, row) for row in np.flatnonzero(of == label).tolist())


class _Ids(dict[Any, int]):
    """Numbers things in the order in which they are first asked for."""

    def __missing__(self, key: Any) -> int:
        self[key] = len(self)
        return self[key]


def find(shards: Sequence[Shard], rows: Sequence[tuple[int, int]], source: str, known: Sequence[str] = ()) -> Labels:
    """Returns the labels of some (shard, row), in their order; other rows are UNLABELLED. how: a word of `label_words`;
    known: names of classes, where paths do not tell which folders name them.

    Raises RequestError where there are no labels, where they are not what `source` says, or where some shards alone have names.
    """
    rule = rule_of(source)
    where = f"{shards[0].path}{f' and {len(shards) - 1} more' if shards[1:] else ''}"
    if isinstance(rule, Numbers | Folders):
        found = _by_number_or_folder(shards, rows, rule, known, where)
    elif isinstance(rule, Table):
        found = _by_table(shards, rows, rule, where)
    else:
        found = _by_member(shards, rows, rule, where)
    _tell_unlabelled(found, shards, rows, rule, where)
    _tell_alike(found.names, where)
    return found


def _scan(
    shards: Sequence[Shard],
    rows: Sequence[tuple[int, int]],
    ending: str,
    label: Callable[[int, int, str | None, bytes | None], int],
) -> list[np.ndarray]:
    """Returns the label of each row, of which key and member are told. label: may raise TarError, for a broken one."""
    of = [np.full(len(shard), UNLABELLED, dtype=np.int32) for shard in shards]
    for s, group in groupby(rows, key=itemgetter(0)):
        chosen = [row for _, row in group]
        more = () if ending == "cls" else (ending,)
        for row, (key, data) in zip(chosen, shards[s].iter_labels(chosen, *more), strict=True):
            try:
                of[s][row] = label(s, row, key, data)
            except TarError as error:
                log.warning(f"{place_of(shards[s], row)} is left out: {error}")
                of[s][row] = BROKEN
    return of


def _by_number_or_folder(
    shards: Sequence[Shard],
    rows: Sequence[tuple[int, int]],
    rule: Numbers | Folders,
    known: Sequence[str],
    where: str,
) -> Labels:
    numbers, folders = _Ids(), _Ids()  # of (whether it is named, name); of paths
    lying = [np.full(len(shard), UNLABELLED, dtype=np.int32) for shard in shards]

    def label(s: int, row: int, key: str | None, cls: bytes | None) -> int:
        if isinstance(rule, Folders):
            return folders[folder_in(_readable(shards[s], s, row, key))]
        number = (
            numbers[_class(shards[s], row, _number(shards[s], s, row, cls))] if key is None or cls is not None else None
        )
        lying[s][row] = folders[folder_in(key or "")]
        return UNLABELLED if number is None else number

    of = _scan(shards, rows, "cls", label)
    if isinstance(rule, Folders):
        return _by_folder(shards, rows, of, list(folders), rule.level, known, where)
    if numbers:
        return _of_members(of, numbers, where)
    if not rule.or_folders:
        raise RequestError(f"{where}: no sample has a `cls` member; {REMEDY}")
    lying = [np.where(one == BROKEN, BROKEN, at) for one, at in zip(of, lying, strict=True)]
    return _by_folder(shards, rows, lying, list(folders), None, known, where)


def _by_folder(
    shards: Sequence[Shard],
    rows: Sequence[tuple[int, int]],
    of: list[np.ndarray],
    folders: list[str],
    level: int | None,
    known: Sequence[str],
    where: str,
) -> Labels:
    """Returns the labels by the folders that rows lie in, of which `of` holds the numbers."""
    seen: Collection[str] = folders
    if level is None and len(rows) < sum(map(len, shards)) and all(len(parts_of(one)) > 1 for one in folders):
        seen = {
            folder_in(key) for shard in shards for key in shard.iter_keys()
        }  # some images do not tell the level of all
    chosen = level_of([one for one in seen if one], known) if level is None and any(seen) else level or 0
    names = [name_at(folder, chosen) for folder in folders]
    there = _Ids()
    numbers = [UNLABELLED if name is None else there[name] for name in names]
    if not there:
        raise RequestError(
            f"{where}: no `cls` members and no class folders, so there are no labels{_above(shards)}"
            if level is None
            else f"{where}: no image lies so deep in folders as labels=folder:{level + 1 if level >= 0 else level} asks for"
        )
    _tell_level(chosen, folders, names, where)
    found = _sorted([_renumbered(one, numbers) for one in of], list(there), named=True)
    return replace(
        found, direct=all(name == name_at(folder, DIRECT) for name, folder in zip(names, folders, strict=True))
    )


def _above(shards: Sequence[Shard]) -> str:
    """Returns a remedy where several folders were given that may be those of the classes: folders above a source name nothing."""
    bases = {shard.base if isinstance(shard, FolderShard) else "" for shard in shards}
    parents = {os.path.dirname(base) for base in bases}
    if len(bases) < 2 or "" in bases or len(parents) > 1:
        return "; labels=FILE.csv names the class of each image"
    return (
        f"; give the folder above these {len(bases)}, {parents.pop() or '.'}, in which their names are those of classes"
    )


def _by_table(shards: Sequence[Shard], rows: Sequence[tuple[int, int]], table: Table, where: str) -> Labels:
    names, used = _Ids(), dict[str, tuple[int, int, str]]()
    bases = [os.path.abspath(shard.path) for shard in shards]

    def label(s: int, row: int, key: str | None, _: bytes | None) -> int:
        key = _readable(shards[s], s, row, key)
        one = table.name_of(key if key.startswith("/") else f"{bases[s]}/{key}")
        if one is None:
            return UNLABELLED
        if one in used:
            raise RequestError(
                f"labels={table.path}: {shown(one)} may be {shown(used[one][2])} in {shards[used[one][0]].path} or "
                f"{shown(key)} in {shards[s].path}; write it with its folder, or TAR/NAME, so that it names one image"
            )
        used[one] = s, row, key
        return names[table.labels[one]] if table.labels[one] else UNLABELLED

    of = _scan(shards, rows, "cls", label)
    if not names:
        first = next(iter(table.labels), "")
        sample = next((key for shard in shards for key in shard.iter_keys()), "")
        raise RequestError(
            f"labels={table.path}: none of its {len(table.labels)} names, like {shown(first)}, is one of an image in {where}, "
            f"like {shown(sample)}"
        )
    extra = [name for name in table.labels if name not in used and name != table.header]
    if extra:
        log.info(f"{table.path}: {len(extra)} of its rows name no image of {where}, the first {shown(extra[0])}")
    found_rows = np.array([(hash(one), hash(f"{bases[s]}/{key}")) for one, (s, _, key) in used.items()], dtype=np.int64)
    return replace(_sorted(of, list(names), named=True), rows=found_rows)


def _by_member(shards: Sequence[Shard], rows: Sequence[tuple[int, int]], rule: Texts | Values, where: str) -> Labels:
    names = _Ids()

    def label(s: int, row: int, key: str | None, data: bytes | None) -> int:
        key = _readable(shards[s], s, row, key)
        try:
            name = None if data is None else rule.name(data)
        except (ValueError, RecursionError) as error:
            shards[s].read(s, row)  # raises TarError where its bytes are damaged
            raise RequestError(f"{shown(key)} in {shards[s].path}: `{rule.ending}`: {shown(str(error))}") from error
        return UNLABELLED if name is None else names[name]

    of = _scan(shards, rows, rule.ending, label)
    if not names:
        what = f" with a {rule.key}" if isinstance(rule, Values) else ""
        raise RequestError(f"{where}: no sample has a `{rule.ending}` member{what}, so there are no labels")
    return _sorted(of, list(names), named=True)


def _readable(shard: Shard, s: int, row: int, key: str | None) -> str:
    """Returns the key of a row. Raises TarError for a row whose headers are damaged."""
    return shard.read(s, row).key if key is None else key


def _tell_unlabelled(
    found: Labels, shards: Sequence[Shard], rows: Sequence[tuple[int, int]], rule: Rule, where: str
) -> None:
    lacking = found.count(UNLABELLED) - (sum(map(len, shards)) - len(rows))
    if not lacking:
        return
    why = "lie in no folder that names a class"
    if found.by_number:
        why = "have no `cls` beside them"
    elif isinstance(rule, Table):
        why = f"have no label in {rule.path}"
    elif isinstance(rule, Texts | Values):
        why = f"have no label in `{rule.ending}`"
    log.warning(
        f"{lacking} of the {len(rows)} images of {where} ({lacking / len(rows):.1%}) {why}: they are unlabelled, and count in "
        "no figure"
    )


def _tell_level(level: int, folders: Sequence[str], names: Sequence[str | None], where: str) -> None:
    """Tells which folders name the classes, where the ones that directly hold the images do not all."""
    for folder, name in zip(folders, names, strict=True):
        if name is not None and len(parts_of(folder)) > (level + 1 if level >= 0 else 1):
            which = f"number {level + 1} from the source" if level >= 0 else "that directly hold the images"
            other = (
                "labels=folder:-1 takes those that directly hold the images"
                if level >= 0
                else "labels=folder:1 the first"
            )
            log.info(
                f"{where}: classes are named by the folders {which}, {len(set(names) - {None})} of them, like {shown(name)} in "
                f"{shown(folder)}; {other}"
            )
            return


def _tell_alike(names: Sequence[str], where: str) -> None:
    """Warns of classes that people would take for one: names are what they are, and none is changed."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(_as_read(name), name)
        if other != name:
            log.warning(f"{where}: the classes {other!a} and {name!a} look alike, and are two classes")
            return


def _as_read(name: str) -> str:
    """Returns what people read in a name, without capitals, blanks and ways to write an accent."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def match(train: Labels, test: Labels) -> Labels:
    """Returns the labels of test as indices into the names of train, followed by the names that train lacks.

    Raises RequestError where one side has names and the other numbers, or where they have no class in common. Classes
    that train lacks are told: their images count as wrong, since nothing can be right for them.
    """
    plain = train.named == test.named
    if not plain and not _counted(train.names if train.named else test.names):
        named, other, names = ("train", "test", train.names) if train.named else ("test", "train", test.names)
        raise RequestError(
            f"the classes of the {named} images have names, like {shown(names[0])}, and those of the {other} images are "
            f"numbers in `cls`, of which nothing says what they mean; {REMEDY}, for both alike"
        )
    _tell_shared_rows(train, test)
    known = {name if plain else str(int(name)): number for number, name in enumerate(train.names)}
    numbers, names = [], list(train.names)
    for name in test.names:
        number = known.get(name if plain else str(int(name)), len(names))
        if number == len(names):
            names.append(name)
        numbers.append(number)
    lacking = names[len(train.names) :]
    alike = _alike(train.names, lacking)
    if len(lacking) == len(test.names):
        raise RequestError(
            f"no class of the test images ({_some(test.names)}) is one of the train images ({_some(train.names)}); "
            f"classes are matched by name: give two sets of the same classes{alike}"
        )
    found = replace(test, of=[_renumbered(of, numbers) for of in test.of], names=names, named=train.named)
    if lacking:
        images = sum(int((of >= len(train.names)).sum()) for of in found.of)
        log.warning(
            f"{len(lacking)} of the {len(test.names)} classes of the test images are not among the {len(train.names)} of "
            f"the train images: {_some(lacking)}; their {images} images count as wrong{alike}"
        )
    return found


def _tell_shared_rows(train: Labels, test: Labels) -> None:
    """Warns of rows of a table that label an image of train and another one of test, as 1.jpg does in both of their folders."""
    if train.rows is None or test.rows is None:
        return
    _, mine, theirs = np.intersect1d(train.rows[:, 0], test.rows[:, 0], return_indices=True)
    shared = int((train.rows[mine, 1] != test.rows[theirs, 1]).sum())
    if shared:
        log.warning(
            f"{shared} rows of the table of labels name an image of train and another one of test, since both paths end so: "
            "both have that label; where they are of two classes, write names with their folders"
        )


def _alike(known: Sequence[str], lacking: Sequence[str]) -> str:
    """Returns a remark on the first name that people read as a known one, though it is written otherwise."""
    read = {_as_read(name): name for name in known}
    for name in lacking:
        if (other := read.get(_as_read(name))) is not None:
            return f"; {name!a} is not {other!a}: signs, blanks and capitals count"
    return ""


def _number(shard: Shard, s: int, row: int, cls: bytes | None) -> int:
    """Returns the number in `cls`. Raises TarError for a row whose bytes are damaged, and RequestError where
    they are sound, but no number."""
    text = (cls or b"").strip()
    if text.isdigit() and len(text) <= MOST_DIGITS:
        return int(text)
    sample = shard.read(s, row)
    raise RequestError(
        f"{sample.key} in {shard.path}: `cls` is {text[:50]!r}, not the number of a class; where it is the name of "
        "one, labels=text:cls says so, and labels=folder takes the names of folders"
    )


def _class(shard: Shard, row: int, number: int) -> tuple[bool, str]:
    names = shard.classes
    if names is None:
        return False, str(number)
    if number >= len(names):
        raise RequestError(
            f"{shard.path} row {row}: `cls` is {number}, but the manifest beside it names {len(names)} classes; "
            "write the shards again, or take `classes` out of the manifest where it is not theirs"
        )
    return True, names[number]


def _of_members(of: list[np.ndarray], numbers: Mapping[tuple[bool, str], int], where: str) -> Labels:
    if len({named for named, _ in numbers}) == 2:
        name, number = (next(n for known, n in numbers if known is wanted) for wanted in (True, False))
        raise RequestError(
            f"{where}: for some of these shards a manifest names the classes, like {shown(name)}, and for others it does "
            f"not: nothing says what {number} in `cls` means; {REMEDY}, for all alike"
        )
    return replace(_sorted(of, [name for _, name in numbers], named=next(iter(numbers))[0]), by_number=True)


def _sorted(of: list[np.ndarray], names: list[str], *, named: bool) -> Labels:
    order = sorted(names) if named else sorted(names, key=int)
    rank = {name: number for number, name in enumerate(order)}
    return Labels([_renumbered(one, [rank[name] for name in names]) for one in of], order, named)


def _renumbered(of: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
    return np.where(of >= 0, np.array(numbers, dtype=np.int32)[np.maximum(of, 0)], of)


def _counted(names: Sequence[str]) -> bool:
    """Returns whether names are 0, 1, 2, … in the order in which classes are numbered, so that name and number
    say the same."""
    return all(name.isdecimal() and int(name) == number for number, name in enumerate(sorted(names)))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    return ", ".join(shown(name, 50) for name in names[:MOST_SHOWN]) + more
