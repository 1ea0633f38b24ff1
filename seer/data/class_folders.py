"""Chooses which folder in the path of an image names its class.

It is the first one below the source, as torchvision's ImageFolder has it, so that sub-folders of a class belong to it
(`ant/2019/x`); but a wrapper that all images share (`photos/ant/x`) is passed over as long as every image keeps a folder below
it, and so are folders that are all called like parts of a data set (`train/ant/x`, `Test_Set/ant/x`, `fold2/ant/x`), where any
of them holds folders: images that lie in such a part directly (`test/x`, as of a contest) have no label.

Surprising: paths cannot tell class/sub-folder from group/class. So where the names of the classes are known (those of the
train images, or of a run that goes on), the level at which more of them are found wins; and what was chosen is told.
"""

import re
from collections.abc import Collection, Iterable

# What parts of a data set are called, in lower case: train, test_set, val2017, Training Images, fold_1, …
_PART = re.compile(
    r"(train|training|val|valid|validation|test|testing|dev|eval|holdout)([\W_]*(set|split|data|images|imgs))?[\W_]*\d*"
    r"|(fold|split)[\W_]*\d+"
)
DIRECT = -1  # the folder that directly holds the image


def folder_in(key: str) -> str:
    """Returns the path of the folder that holds a sample, "" for one that lies in none. Parts that say nothing are left out."""
    folder = key.rpartition("/")[0]
    if key.startswith(("./", "/")) or "//" in folder or "/./" in folder:
        root = "/" if key.startswith("/") else ""
        return root + "/".join(part for part in folder.split("/") if part not in ("", "."))
    return folder


def parts_of(folder: str) -> list[str]:
    return [part for part in folder.split("/") if part]


def name_at(folder: str, level: int) -> str | None:
    """Returns the name of a folder in a path: level 0 is the first, -1 the last; None where there are not so many."""
    parts = parts_of(folder)
    return parts[level] if -len(parts) <= level < len(parts) else None


def level_of(folders: Collection[str], known: Iterable[str] = ()) -> int:
    """Returns the level of the folders that name the classes. folders: paths from `folder_in`; known: names of classes."""
    usual = _usual(folders)
    names = set(known)
    if not names:
        return usual

    def found(level: int) -> int:
        return sum(name_at(folder, level) in names for folder in folders)

    deepest = max(len(parts_of(folder)) for folder in folders)
    best = max([DIRECT, *range(deepest)], key=found)  # of equals the first, as earlier versions had it
    return best if found(best) > found(usual) else usual


def _usual(folders: Collection[str]) -> int:
    if any(folder.startswith(("/", "../")) for folder in folders):  # of a list: they are not below one place
        return DIRECT
    left, level = [parts_of(folder) for folder in folders], 0
    while True:
        names = {one[level] for one in left}
        deeper = [one for one in left if len(one) > level + 1]
        wrapper = len(names) == 1 and len(deeper) == len(left)
        if not deeper or not (wrapper or all(_PART.fullmatch(name.lower()) for name in names)):
            return level
        left, level = deeper, level + 1
