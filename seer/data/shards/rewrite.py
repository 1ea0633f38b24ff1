"""Writes the images of any shards as new shards of equal count, in any number of processes.

Piece n of the output is a function of the request alone: its images are looked up in a keyed permutation of the whole,
so no list of millions is ever made, each process does its own pieces, and a run that was killed goes on to the same
bytes. An image that cannot be read is left out, named in OUTPUT/skipped.jsonl and counted, and so is one that cannot be
decoded where max_side, quality or check has it decoded: otherwise its bytes are copied, whatever they are. So is a loose
file that cannot be read while its folder can be listed, since taking it away would make another request. A shard of
which no image is left is not written. Beside each shard lie the names that its images had (`original_names`).
"""

import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np

from seer.core import rng
from seer.core.errors import BadDataError, RequestError, StorageError
from seer.core.log import log
from seer.core.records import Skipped
from seer.data.coco import Boxes
from seer.data.decode import Undecodable, decode
from seer.data.ledger import LEAST_SEEN, parse_fraction, shown
from seer.data.order import permute
from seer.data.pixels import USUAL, Pixels
from seer.data.shards.folder import FolderShard, file_name
from seer.data.shards.journaled_pool import Entry, locked, run_pieces
from seer.data.shards.names import IMAGE_ENDINGS, image_ending
from seer.data.shards.original_names import Origins, write_names
from seer.data.shards.output_folder import finished_before, make, refuse_strangers
from seer.data.shards.shard import Shard, fingerprint, folder_of
from seer.data.shards.smaller import stored
from seer.data.shards.tar import TarError
from seer.data.shards.writer import (
    JOURNAL,
    SHARDS_MANIFEST,
    Member,
    shard_count,
    shard_path,
    shard_rows,
    write_manifest,
    write_shard,
)

MOST_DIGITS = 18  # of a number in `cls`


UNREADABLE = "unreadable"  # a reason besides those of records.SKIP_REASONS, since training stops at such a file


@dataclass(frozen=True)
class Part:
    """Holds rows first to first + total of the (shuffled) images of some shards, and how they are to be stored.

    max_side: longest side in pixels; larger images are made smaller, once, and what is told in their pixels. quality: of JPEG, to
    which all images are then turned. check: decode what is copied as it is, too. pixels: what of an image is decoded. classes:
    names of those that images get as their `cls` member: the one of which labels[shard][row] is the number, none where that is
    negative; without labels, the folder that directly holds the image. boxes: what lies on each image; those of which it knows
    get a `boxes.json` member.
    """

    shards: Sequence[Shard]
    first: int
    total: int
    per_shard: int = 10_000
    shuffle: bool = True
    seed: int = 0
    classes: Sequence[str] | None = None
    labels: Sequence[np.ndarray] | None = None
    boxes: Boxes | None = None
    max_side: int | None = None
    quality: int | None = None
    check: bool = False
    pixels: Pixels = USUAL
    ends: np.ndarray = field(init=False, repr=False)  # int64 [shards], row behind each shard
    names: tuple[str, ...] | None = field(init=False, repr=False)  # of the classes in `cls`, for the manifest

    def __post_init__(self) -> None:
        if self.max_side is not None and self.max_side < 32:
            raise RequestError(f"max_side={self.max_side}: at least 32 pixels")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise RequestError(f"quality={self.quality}: from 1 to 100")
        object.__setattr__(self, "names", _names_of(self.shards) if self.classes is None else tuple(self.classes))
        object.__setattr__(self, "ends", np.cumsum([len(s) for s in self.shards], dtype=np.int64))

    @functools.cached_property
    def request(self) -> str:
        """Names the result: two runs of one request write the same bytes."""
        words = [1, fingerprint(self.shards), self.first, self.total, self.per_shard, self.shuffle, self.seed]
        words += [self.classes, self.max_side, self.quality]
        if any(self._renumbered(shard) for shard in self.shards):
            words.append(self.names)
        if self.labels is not None:
            words.append(hashlib.sha256(b"".join(of.astype("<i4").tobytes() for of in self.labels)).hexdigest())
        if self.check and self.max_side is None and self.quality is None:
            words.append("check")  # those of earlier versions stay what they were
        if self.pixels != USUAL:
            words.append(asdict(self.pixels))
        if self.boxes is not None:
            words.append(self.boxes.digest)
        return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]

    def _renumbered(self, shard: Shard) -> bool:
        """Returns whether numbers in its `cls` become others: its manifest names other classes than those of all."""
        return self.classes is None and None not in (self.names, shard.classes) and self.names != shard.classes

    def places(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Yields (shard, row) of images first to last of this part."""
        line = np.arange(self.first + first, self.first + last, dtype=np.int64)
        if self.shuffle:
            n = int(self.ends[-1])
            key = np.full(len(line), rng.key(self.seed, "shard"), dtype=np.uint64)
            line = permute(line, np.full(len(line), n), key)
        shard = np.searchsorted(self.ends, line, side="right")
        row = line - (self.ends[shard] - np.array([len(self.shards[s]) for s in shard.tolist()], dtype=np.int64))
        yield from zip(shard.tolist(), row.tolist(), strict=True)

    @property
    def decodes(self) -> bool:
        """Returns whether images are decoded, so that those that cannot be are left out."""
        return self.max_side is not None or self.quality is not None or self.check

    @functools.cached_property
    def _origins(self) -> Origins:
        return Origins(self.shards)

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.classes or ())}

    def _label(self, shard: int, row: int, key: str) -> int:
        return self._numbers[folder_of(key)] if self.labels is None else int(self.labels[shard][row])

    def _boxes_of(self, shard: int, key: str) -> dict[str, bytes]:
        """Returns the member with the boxes of an image, {} where it is not listed."""
        if self.boxes is None:
            return {}
        found = self.boxes.at(key if key.startswith("/") else f"{os.path.abspath(self.shards[shard].path)}/{key}")
        return {} if found is None else {"boxes.json": json.dumps(found).encode()}

    def samples(
        self,
        first: int,
        last: int,
        skipped: list[Skipped],
        origins: list[dict[str, Any]],
        tick: Callable[[], None],
    ) -> Iterator[Member]:
        """Yields samples as they are to be written. Appends to skipped what cannot be, to origins which image each was."""
        for shard, row in self.places(first, last):
            name = f"row {row}"
            try:
                sample = self.shards[shard].read(shard, row)
                name = sample.key
                extension = image_ending(sample.fields)  # an older index may have another image in a row, as a member
                fields = {e: data for e, data in sample.fields.items() if e == extension or e not in IMAGE_ENDINGS}
                fields |= self._boxes_of(shard, name)
                if self.max_side is not None or self.quality is not None:
                    where = f"{shown(name)} in {self.shards[shard].path}"
                    fields = stored(fields, self.max_side, self.quality, where, self.pixels)
                elif self.check:
                    decode(
                        fields[extension], None, self.pixels, shorter=1
                    )  # a JPEG that is too large at a reduced scale
                origin = self._origins.of(shard, row)
            except (TarError, Undecodable) as error:
                name = file_name(self.shards[shard], row) or name
                skipped.append(Skipped(str(self.shards[shard].path), name, str(error), row, error.kind))
            except StorageError as error:
                one = self.shards[shard]
                if not (isinstance(one, FolderShard) and one.is_there(row)):
                    raise
                skipped.append(Skipped(str(one.path), one.name(row), str(error), row, UNREADABLE))
            else:
                if self.classes is not None:
                    fields.pop("cls", None)  # the number of another list of classes
                    label = self._label(shard, row, sample.key)
                    fields |= {} if label < 0 else {"cls": str(label).encode()}
                elif self._renumbered(self.shards[shard]):
                    _renumber(fields, self.shards[shard].classes or (), self.names or ())
                origins.append(origin)
                yield f"{shard:05d}-{row:09d}", fields
            tick()


def _names_of(shards: Sequence[Shard]) -> tuple[str, ...] | None:
    """Returns the names of the classes of all shards that have a manifest with names; None where some tars have none, so
    that nobody knows what their numbers mean."""
    known = {shard.classes for shard in shards if not isinstance(shard, FolderShard)}
    if len(known) == 1:
        return known.pop()
    names = [one for one in known if one is not None]
    if not names:
        return None
    if None in known:
        log.warning(
            "a manifest names the classes of some of these tars, and of others none does: the numbers in `cls` are kept as "
            "they are, and may mean different classes"
        )
        return None
    return tuple(sorted({name for one in names for name in one}))


def _renumber(fields: dict[str, bytes], old: Sequence[str], new: Sequence[str]) -> None:
    text = fields.get("cls", b"").strip()
    if text.isdigit() and len(text) <= MOST_DIGITS and int(text) < len(old):
        fields["cls"] = str(new.index(old[int(text)])).encode()


def write_part(
    part: Part, output: Path, *, processes: int, max_bad: float | str, progress: Callable[[int], object]
) -> dict[str, Any]:
    """Returns the manifest, of an earlier run of the same request where there is one. Raises BadDataError (max_bad)."""
    make(output)
    if (output / SHARDS_MANIFEST).exists():
        return finished_before(output, part.request)
    with locked(output / JOURNAL) as journal:
        if (output / SHARDS_MANIFEST).exists():  # who held the lock has written it
            manifest = finished_before(output, part.request)
        else:
            manifest = _write(part, output, journal, processes=processes, max_bad=max_bad, progress=progress)
        (output / JOURNAL).unlink()
    return manifest


def _write(
    part: Part,
    output: Path,
    journal: IO[str],
    *,
    processes: int,
    max_bad: float | str,
    progress: Callable[[int], object],
) -> dict[str, Any]:
    count = shard_count(part.total, part.per_shard)

    def work(number: int, tick: Callable[[], None]) -> Entry:
        skipped: list[Skipped] = []
        labels = Counter[str]()
        first, last = shard_rows(number, count, part.total)
        origins: list[dict[str, Any]] = []
        path, members = shard_path(output, number, count), part.samples(first, last, skipped, origins, tick)
        members = members if part.names is None else _counted(members, labels)
        member = next(members, None)
        if member:
            entry = write_shard(path, chain([member], members))
            write_names(path, origins)
        else:
            path.unlink(missing_ok=True)  # of a run that was killed, when there still were images
            entry = {"name": path.name, "count": 0}
        return {**entry, "skipped": [asdict(one) for one in skipped], "labels": dict(labels)}

    seen, bad, limit = 0, Counter[str](), parse_fraction(max_bad)

    def finished(entry: Entry) -> None:
        nonlocal seen
        seen += entry["count"] + len(entry["skipped"])
        bad.update(one["kind"] for one in entry["skipped"])
        if bad.total() >= LEAST_SEEN and bad.total() > limit * seen:
            raise _too_many(entry, bad, seen, max_bad)

    entries = run_pieces(
        work,
        count,
        journal,
        part.request,
        processes=processes,
        progress=progress,
        finished=finished,
        begin=lambda: refuse_strangers(output),
        images=lambda entry: entry["count"] + len(entry["skipped"]),
    )
    if bad.total() == seen:
        raise _too_many(entries[-1], bad, seen, max_bad)
    card = {"request": part.request, "skipped": bad.total(), "skipped_by_reason": dict(bad), **_classes(part, entries)}
    if part.boxes is not None:
        card["box_classes"] = list(part.boxes.names)
    if bad:
        _list_skipped(output / "skipped.jsonl", entries)
    shards = [{k: v for k, v in e.items() if k not in ("skipped", "labels")} for e in entries if e["count"]]
    return write_manifest(output, shards, card)


def _counted(members: Iterable[Member], labels: Counter[str]) -> Iterator[Member]:
    """Yields what there is, and counts the numbers in its `cls`, "" for none."""
    for key, fields in members:
        labels[fields.get("cls", b"").strip()[: MOST_DIGITS + 1].decode("ascii", "replace")] += 1
        yield key, fields


def _classes(part: Part, entries: Sequence[Entry]) -> dict[str, Any]:
    """Returns what the manifest says of the classes that numbers in `cls` mean: their names, and how many images were written
    of those that have any."""
    names, labels = part.names, Counter[str]()
    if names is None:
        return {}
    if not all("labels" in entry for entry in entries):  # an earlier version's journal does not tell
        return {"classes": list(names)}
    for entry in entries:
        labels.update(entry["labels"])
    counts = np.zeros(len(names), dtype=np.int64)
    for text, count in labels.items():
        if text.isdecimal() and int(text) < len(names):
            counts[int(text)] += count
    written = {name: count for name, count in zip(names, counts.tolist(), strict=True) if count}
    return {"classes": list(names), "class_counts": written}


def _too_many(entry: Entry, bad: Counter[str], seen: int, max_bad: float | str) -> BadDataError:
    return BadDataError(
        f"{bad.total()} of {seen} images cannot be used ({', '.join(f'{k} {n}' for k, n in bad.most_common())}), "
        f"the last in {entry['name']}: {entry['skipped'][-1]['reason'] if entry['skipped'] else 'none'}; look at "
        f"the source, or raise max_bad={max_bad}"
    )


def _list_skipped(path: Path, entries: Sequence[Entry]) -> None:
    """Writes a line for each image that was passed over. Raises StorageError."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(one) + "\n" for entry in entries for one in entry["skipped"])
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}") from error
