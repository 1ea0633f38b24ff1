"""Chooses which folder in the path of an image names its class.

It is the first one below the source, as torchvision's ImageFolder has it, so that sub-folders of a class belong to it
(`ant/2019/x`); but a wrapper that all images share (`photos/ant/x`) and folders that are all called like parts of a data set
(`train/ant/x`, `val/ant/x`) are passed over, as long as every image keeps a folder below them.

Surprising: paths cannot tell class/sub-folder from group/class. So where the names of the classes are known (those of the
train images, or of a run that goes on), the level at which more of them are found wins; and what was chosen is told.
"""

from collections.abc import Collection, Iterable

SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval", "holdout"})
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
    parts = [parts_of(folder) for folder in folders]
    least, level = min(map(len, parts)), 0
    while level + 1 < least:
        names = {one[level] for one in parts}
        if len(names) > 1 and not {name.lower() for name in names} <= SPLITS:
            break
        level += 1
    return level
