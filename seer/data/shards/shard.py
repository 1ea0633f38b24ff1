"""Says what a shard is: rows of samples under a name; and what is asked of any: classes, fingerprint, the image."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from seer.core.records import Sample
from seer.data.shards.names import image_ending


class Shard(Protocol):
    """Holds rows of samples. `identity` names the content for fingerprints; `read` may be called from any
    thread. classes: what the numbers in `cls` members mean, where a manifest tells. iter_labels: the key and
    the `cls`, or another member, of each of some rows, with no image read; a key of None where the headers of a row
    are damaged. image_name: the whole name of the member or file that is the image."""

    @property
    def path(self) -> Path: ...

    @property
    def identity(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...] | None: ...

    def __len__(self) -> int: ...

    def read(self, number: int, row: int) -> Sample: ...

    def key(self, row: int) -> str: ...

    def image_name(self, row: int) -> str: ...

    def iter_keys(self) -> Iterator[str]: ...

    def iter_labels(self, rows: Iterable[int], ending: str = "cls") -> Iterator[tuple[str | None, bytes | None]]: ...

    def keys(self) -> list[str]: ...


def fingerprint(shards: Iterable[Shard]) -> str:
    """Names the data: shards in order with their counts and index checksums. 16 hexadecimal digits."""
    return hashlib.sha256("\n".join(s.identity for s in shards).encode()).hexdigest()[:16]


def content_fingerprint(shards: Iterable[Shard]) -> str:
    """Names the data whatever its files or folders are called: all else that `fingerprint` holds. 16 hexadecimal digits."""
    contents = (s.identity.removeprefix(s.path.name) for s in shards)
    return hashlib.sha256("\n".join(contents).encode()).hexdigest()[:16]


def class_names(shards: Sequence[Shard]) -> list[str]:
    """Returns the names of the folders that directly hold the images, sorted: class i is the i-th."""
    return sorted({folder_of(key) for shard in shards for key in shard.iter_keys()})


def folder_of(key: str) -> str:
    return key.rsplit("/", 2)[-2] if "/" in key else ""


def image_of(sample: Sample) -> bytes:
    """Returns the one image among a sample's members."""
    return sample.fields[image_ending(sample.fields)]
