"""Finds the class of each image, and matches the classes of two sets of images: by name, never by number.

Where any sample has a `cls` member, these members are the labels, and samples without one are unlabelled: left out, and
told once with their share. Only where no sample has one are the names of the folders the classes. A number in `cls` means
the class that the manifest beside the shards names so; where no manifest names any, the number is its own name.

Surprising: equal numbers in two sets of shards may be different classes, since `seer shard labels=folder` numbers what it
finds; so numbers are compared only where neither side has names. The headers of all images in question are read at the
start, and the bytes of `cls`, but no image: 5 to 10 microseconds each where they are in the page cache.

Legend: S shards, n rows of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter

import numpy as np

from seer.core.errors import RequestError
from seer.core.log import log
from seer.data.ledger import shown
from seer.data.shards.rewrite import MOST_DIGITS
from seer.data.shards.shard import Shard, folder_of
from seer.data.shards.tar import TarError

UNLABELLED, BROKEN = -1, -2
MOST_SHOWN = 5  # names in one message
REMEDY = "write shards with `seer shard labels=folder`, whose manifest.json beside them names the classes"


@dataclass
class Labels:
    """Holds labels: of[s][row] is an index into names, UNLABELLED, or BROKEN where the headers of a row cannot be read.

    named: names are those of classes, and not the numbers in `cls`. folder: they are names of folders.
    """

    of: list[np.ndarray]  # S of int32 [n]
    names: list[str]
    named: bool
    folder: bool = False

    def count(self, label: int) -> int:
        return sum(int((of == label).sum()) for of in self.of)


def find(shards: Sequence[Shard], rows: Sequence[tuple[int, int]], source: str) -> Labels:
    """Returns the labels of some (shard, row), in their order; other rows are UNLABELLED. how: member, folder, auto.

    Raises RequestError where there are no labels, where they are no numbers, or where some shards alone have names.
    """
    members, folders = ([np.full(len(s), UNLABELLED, dtype=np.int32) for s in shards] for _ in range(2))
    numbers: dict[tuple[bool, str], int] = {}  # whether it is named, and the name
    names: dict[str, int] = {}
    for s, group in groupby(rows, key=itemgetter(0)):
        chosen = [row for _, row in group]
        for row, (key, cls) in zip(chosen, shards[s].iter_labels(chosen), strict=True):
            try:
                if key is None or cls is not None:
                    number = _number(shards[s], s, row, cls)
                    members[s][row] = numbers.setdefault(_class(shards[s], row, number), len(numbers))
            except TarError as error:
                log.warning(f"{shards[s].path} row {row} is left out: {error}")
                members[s][row] = folders[s][row] = BROKEN
                continue
            folders[s][row] = names.setdefault(folder_of(key or ""), len(names))
    where = f"{shards[0].path}{f' and {len(shards) - 1} more' if shards[1:] else ''}"
    if numbers and source != "folder":
        found = _of_members(members, numbers, where)
        lacking = sum(int(members[s][row] == UNLABELLED) for s, row in rows)
        if lacking:
            log.warning(
                f"{lacking} of the {len(rows)} images of {where} ({lacking / len(rows):.1%}) have no `cls` beside them: they "
                "are unlabelled and left out of the figures"
            )
        return found
    if source == "member":
        raise RequestError(f"{where}: no sample has a `cls` member; {REMEDY}")
    if not names.keys() - {""}:
        raise RequestError(f"{where}: no `cls` members and no class folders, so there are no labels")
    return replace(_sorted(folders, list(names), named=True), folder=True)


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
    known = {name if plain else str(int(name)): number for number, name in enumerate(train.names)}
    numbers, names = [], list(train.names)
    for name in test.names:
        number = known.get(name if plain else str(int(name)), len(names))
        if number == len(names):
            names.append(name)
        numbers.append(number)
    lacking = names[len(train.names) :]
    if len(lacking) == len(test.names):
        raise RequestError(
            f"no class of the test images ({_some(test.names)}) is one of the train images ({_some(train.names)}); "
            "classes are matched by name: give two sets of the same classes"
        )
    found = Labels([_renumbered(of, numbers) for of in test.of], names, train.named)
    if lacking:
        images = sum(int((of >= len(train.names)).sum()) for of in found.of)
        log.warning(
            f"{len(lacking)} of the {len(test.names)} classes of the test images are not among the {len(train.names)} of "
            f"the train images: {_some(lacking)}; their {images} images count as wrong"
        )
    return found


def _number(shard: Shard, s: int, row: int, cls: bytes | None) -> int:
    """Returns the number in `cls`. Raises TarError for a row whose bytes are damaged, and RequestError where
    they are sound, but no number."""
    text = (cls or b"").strip()
    if text.isdigit() and len(text) <= MOST_DIGITS:
        return int(text)
    sample = shard.read(s, row)
    raise RequestError(
        f"{sample.key} in {shard.path}: `cls` is {text[:50]!r}, not the number of a class; write shards with labels=folder"
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


def _of_members(of: list[np.ndarray], numbers: dict[tuple[bool, str], int], where: str) -> Labels:
    if len({named for named, _ in numbers}) == 2:
        name, number = (next(n for known, n in numbers if known is wanted) for wanted in (True, False))
        raise RequestError(
            f"{where}: for some of these shards a manifest names the classes, like {shown(name)}, and for others it does "
            f"not: nothing says what {number} in `cls` means; {REMEDY}, for all alike"
        )
    return _sorted(of, [name for _, name in numbers], named=next(iter(numbers))[0])


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
