"""Tells by the names of members and files which sample each belongs to, and what of it it is.

A name ends at the last dot: `a/0001.jpg` and `a/0001.cls` are of sample `a/0001`, and so dotted names stay whole. But an
ending of a closed list with a dot in it, like `mask.png`, is taken off as a whole: `a/0001.mask.png` belongs to the image
`a/0001.jpg` and is never an image to learn from. `data.image` and `data.fields` name other endings for one set of data.

Surprising: webdataset ends names at the first dot. Here names that agree up to there and have endings that are not in the
list are samples of their own, and told (`index.Notes`), since a date or a version in a name is as common.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from seer.core.errors import RequestError
from seer.data.shards.census import concealed

OLDER_IMAGE_ENDINGS = frozenset({"jpg", "jpeg", "png", "webp"})  # all that the first versions took for images
IMAGE_ENDINGS = OLDER_IMAGE_ENDINGS | {"jfif", "jpe", "bmp", "gif", "tif", "tiff", "avif"}
# Endings of members that belong to the image of the name before them; this is the only list of them.
COMPANIONS = frozenset(
    {
        *(f"{what}.png" for what in ("seg", "mask", "depth", "instance", "panoptic", "normal", "edge")),
        *(
            f"{what}.json"
            for what in ("boxes", "tags", "captions", "caption", "keypoints", "polygons", "meta", "value")
        ),
        *(f"{what}.txt" for what in ("captions", "caption", "tags")),
    }
)
LOOSE = ("cls", "json", "txt")  # besides them, what a file beside a loose image may end in
_OF_PLACES = frozenset({"boxes.json", "keypoints.json", "polygons.json"})  # told in pixels of the image


def split(name: str) -> tuple[str, str]:
    """Returns key and lower-case ending by the last dot: "a/x.1.JPG" -> ("a/x.1", "jpg")."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.rpartition(".")
    return (folder + slash + stem, extension.lower()) if dot else (name, "")


def image_ending(fields: Iterable[str]) -> str:
    """Returns the ending of the one image among the members of a sample. Rows of older indexes may hold others, like a gif
    beside their jpg, that were none when these were made. Raises StopIteration where there is none."""
    found = [ending for ending in fields if ending in IMAGE_ENDINGS]
    return next(iter([ending for ending in found if ending in OLDER_IMAGE_ENDINGS] or found))


def up_to_first_dot(name: str) -> str:
    """Returns what webdataset takes for the name of a sample: "a/x.1.JPG" -> "a/x"."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def has_places(ending: str) -> bool:
    """Returns whether what has this ending is told in pixels of its image, so that it is wrong when that is resized."""
    return ending in _OF_PLACES or ("." in ending and ending.rpartition(".")[2] in IMAGE_ENDINGS)


@dataclass(frozen=True)
class Endings:
    """Holds a rule by which names are split. companions: endings that are taken off whole, or that are no
    images though they look so. image: the ending of the images, where not all do that are in IMAGE_ENDINGS. given:
    (ending, what it is called in a sample) of those that change. images: what images end in. conceals: hidden members and
    those that macOS makes beside others are none of a sample. links: symbolic links in tars are members."""

    companions: frozenset[str]
    image: str | None = None
    given: tuple[tuple[str, str], ...] = ()
    images: frozenset[str] = IMAGE_ENDINGS
    conceals: bool = True
    links: bool = True

    def split(self, name: str) -> tuple[str, str]:
        """Returns the key of the sample that a member belongs to, and its ending in lower case."""
        key, ending = split(name)
        if ending in self._last_parts:
            stem, dot, word = key.rpartition(".")
            if dot and stem and stem[-1] != "/" and (whole := f"{word.lower()}.{ending}") in self._taken_off:
                return stem, whole
        return key, ending

    @cached_property
    def _last_parts(self) -> frozenset[str]:
        return frozenset(ending.rpartition(".")[2] for ending in self._taken_off if "." in ending)

    @cached_property
    def ordinary(self) -> bool:
        """Returns whether nothing was asked for, so that members are called by their endings, and what ends as images do
        is one."""
        return self.image is None and not self.given and self.companions.isdisjoint(self.images)

    @cached_property
    def plain(self) -> bool:
        """Returns whether all members of a run are of its sample, called by their endings, too."""
        return self.ordinary and not self.conceals

    @cached_property
    def _taken_off(self) -> frozenset[str]:
        return self.companions if self.image is None else self.companions | {self.image}

    def is_image(self, ending: str) -> bool:
        if self.image is not None:
            return ending == self.image
        return ending in self.images and ending not in self.companions

    def belongs(self, ending: str) -> bool:
        """Returns whether what has this ending is read with the image of its name."""
        return ending in self.companions or ending in LOOSE or any(ending == one for one, _ in self.given)

    def conceal(self, name: str) -> str | None:
        """Returns the kind of a member that is none of a sample, whatever its ending; None for others."""
        return concealed(name) if self.conceals else None

    def is_companion(self, ending: str) -> bool:
        return ending in self.companions

    def called(self, ending: str) -> str:
        """Returns what a member is called in a sample: its ending, of the image the last part alone."""
        if ending == self.image:
            return ending.rpartition(".")[2]
        return dict(self.given).get(ending, ending) if self.given else ending


# Of indexes that were made by them: rules of earlier versions, the oldest first. Rows by the last are today's.
BY_LAST_DOT = Endings(frozenset(), images=OLDER_IMAGE_ENDINGS, conceals=False, links=False)
FOUR_ENDINGS = Endings(COMPANIONS, images=OLDER_IMAGE_ENDINGS, conceals=False, links=False)
WITH_COMPANIONS = Endings(COMPANIONS)
WITHOUT_LINKS = replace(WITH_COMPANIONS, links=False)


@dataclass(frozen=True)
class Asked:
    """Holds what `data.image` and `data.fields` say. fields: (what it is called, ending). folders: (what it is called, a
    folder of files with the names of the images, as `parallel_folder` takes it). Raises RequestError (`asked`)."""

    image: str | None
    fields: tuple[tuple[str, str], ...]
    folders: tuple[tuple[str, str], ...] = ()

    def splits(self, rule: Endings) -> bool:
        """Returns whether names belong together otherwise than without, so that the rows of a tar are others."""
        new = [e for _, e in self.fields if e not in COMPANIONS and ("." in e or e in rule.images)]
        return bool(self.image is not None or new)

    @property
    def dotted(self) -> bool:
        """Returns whether an ending is named that the older rule does not take off."""
        return any("." in ending for _, ending in self.fields)

    def over(self, rule: Endings) -> Endings:
        """Returns the rule for names with this added."""
        return _joined(self, rule)

    def __str__(self) -> str:
        folders = (f"{name}={'/'.join(place.split('/')[-2:])}" for name, place in self.folders)
        return ",".join([f"image={self.image}", *(f"{name}={ending}" for name, ending in self.fields), *folders])


@lru_cache
def _joined(asked: Asked, rule: Endings) -> Endings:
    more = {ending for _, ending in asked.fields if "." in ending or ending in rule.images}
    given = []
    for name, ending in asked.fields:
        whole = f"{name}.{ending.rpartition('.')[2]}"
        given.append((ending, whole if whole in COMPANIONS else name))
    return replace(rule, companions=rule.companions | more, image=asked.image, given=tuple(given))


def asked(image: str | None, fields: Mapping[str, Any] | None) -> Asked | None:
    """Returns what a request says about names, None where it says nothing. Raises RequestError."""
    if image is None and not fields:
        return None
    folders = {
        str(name): place for name, place in (fields or {}).items() if isinstance(place, str) and _is_place(place)
    }
    fields = {name: ending for name, ending in (fields or {}).items() if name not in folders}
    if "cls" in folders:
        raise RequestError(
            "data.fields={cls: FOLDER/}: labels lie beside their images, or are the names of their folders"
        )
    for name, ending in [("data.image", image), *fields.items()]:
        if ending is None and name == "data.image":
            continue
        if not isinstance(ending, str) or not ending.strip(".") or "/" in ending or ending != ending.strip("."):
            raise RequestError(
                f"{name}={ending!r}: an ending is expected, what comes after the name and a dot: seg.png; of fields, or a folder "
                "of files with the images' names: masks/, masks/*_mask.png"
            )
    if image is not None and image.lower().rpartition(".")[2] not in IMAGE_ENDINGS:
        raise RequestError(f"data.image={image}: an ending of images is expected, .{', .'.join(sorted(IMAGE_ENDINGS))}")
    pairs = tuple(sorted((str(name), str(ending).lower()) for name, ending in fields.items()))
    if len({ending for _, ending in pairs}) < len(pairs) or (image and image.lower() in dict(map(reversed, pairs))):  # type: ignore[arg-type]
        raise RequestError(f"data.fields={dict(pairs)}, data.image={image}: each ending once")
    return Asked(image.lower() if image else None, pairs, tuple(sorted(folders.items())))


def _is_place(value: str) -> bool:
    """Returns whether a value of `data.fields` is FOLDER/ or FOLDER/*SUFFIX."""
    _, slash, suffix = value.rpartition("/")
    return bool(slash) and (not suffix or (suffix.startswith("*") and suffix.count("*") == 1 and len(suffix) > 1))
