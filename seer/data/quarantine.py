"""Reads the list of images that are never read again: `data.exclude`.

A quarantine list moves nothing: an excluded row is served by the stand-in it would have had if it were bad, so all other
positions keep their images, the fingerprint of the plan stays, and a run that goes on with its own `skipped.jsonl` as
the list sees the very images that it would have seen without.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from seer.core.errors import RequestError
from seer.core.log import log
from seer.data.ledger import shown
from seer.data.shards.folder import file_name
from seer.data.shards.shard import Shard
from seer.data.shards.tar import TarError

_ROW_BITS = 32  # an excluded row is one integer: shard number, then row


class Excluded:
    """Holds rows that are never read, 8 bytes each."""

    def __init__(self, places: Iterable[tuple[int, int]] = ()):
        self._places = np.unique(np.array([(s << _ROW_BITS) | r for s, r in places], dtype=np.int64))

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, place: tuple[int, int]) -> bool:
        if not len(self._places):
            return False
        wanted = (place[0] << _ROW_BITS) | place[1]
        at = int(np.searchsorted(self._places, wanted))
        return at < len(self._places) and int(self._places[at]) == wanted

    def holds(self, names: Mapping[str, Sequence[int]], shard: str, row: int) -> bool:
        """Returns whether the row of a shard is among them, told by the shard's name in a list. names: `known_as`."""
        found = _numbers(names, shard)
        return len(found) == 1 and (found[0], row) in self


def known_as(shards: Sequence[Shard]) -> dict[str, list[int]]:
    """Returns the numbers of the shards by path and by file name."""
    names: dict[str, list[int]] = {}
    for number, shard in enumerate(shards):
        for name in {str(shard.path), shard.path.name}:
            names.setdefault(name, []).append(number)
    return names


def read_exclude(
    files: str | Path | Sequence[str | Path] | None, shards: Sequence[Shard], more: Iterable[tuple[int, int]] = ()
) -> Excluded:
    """Reads a quarantine list: lines of a `skipped.jsonl`, or `shard<TAB>member`; empty lines and # lines are
    passed over. more: (shard, row) that are left out for another reason.

    A shard is known by its path, or by its file name where that is unique; one that is not among the shards is told and
    passed over. A member (with or without its extension) that its shard does not hold raises RequestError with the line.
    """
    names = known_as(shards)
    keys: dict[int, dict[str, int]] = {}
    places: list[tuple[int, int]] = list(more)
    strange: dict[str, int] = {}
    for file in [files] if isinstance(files, str | Path) else files or []:
        try:
            with open(file, encoding="utf-8-sig", errors="surrogateescape") as lines:
                for at, line in enumerate(lines, 1):
                    if not line.strip() or line.startswith("#"):
                        continue
                    name, member, row = _entry(line, f"data.exclude={file}, line {at}")
                    found = _numbers(names, name)
                    if len(found) > 1:
                        raise RequestError(
                            f"data.exclude={file}, line {at}: {len(found)} shards are called {shown(name)}"
                        )
                    if not found:
                        strange[name] = strange.get(name, 0) + 1
                        continue
                    places.append((found[0], _row(shards[found[0]], keys, found[0], member, row, f"{file}, line {at}")))
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"data.exclude={file} cannot be read: {error}") from error
    if strange:
        log.warning(
            f"data.exclude: {sum(strange.values())} lines name {len(strange)} shards that data.source does not hold, the "
            f"first {shown(next(iter(strange)))}"
        )
    return Excluded(places)


def _numbers(names: Mapping[str, Sequence[int]], name: str) -> Sequence[int]:
    return names.get(name) or names.get(name.replace("\\", "/").rsplit("/", 1)[-1]) or []


def _entry(line: str, where: str) -> tuple[str, str, int | None]:
    """Returns shard, member, and the row where it is told."""
    if line.lstrip().startswith("{"):
        try:
            row = json.loads(line)
            return str(row["shard"]), str(row["member"]), int(row["row"])
        except (ValueError, KeyError, TypeError) as error:
            raise RequestError(f"{where}: not a line of skipped.jsonl ({error!r})") from error
    shard, tab, member = line.rstrip("\r\n").partition("\t")
    if not tab or not member:
        raise RequestError(f"{where}: {shown(line.strip())!r} is neither a line of skipped.jsonl nor shard<TAB>member")
    return shard, member, None


def _row(shard: Shard, keys: dict[int, dict[str, int]], number: int, member: str, row: int | None, where: str) -> int:
    if row is not None and 0 <= row < len(shard):
        key = _key(shard, row)  # keys that keep an ending were told without it by earlier versions
        told = (f"row {row}", key, (key or "").rpartition(".")[0], _as_before(key or ""), file_name(shard, row))
        if member in told:
            return row
    if number not in keys:
        keys[number] = {key: n for n, key in enumerate(shard.keys())}
    found = keys[number].get(member, keys[number].get(member.rpartition(".")[0]))
    if found is None:
        raise RequestError(f"data.exclude={where}: {shard.path} holds no {shown(member)!r}")
    return found


def _as_before(key: str) -> str:
    """Returns what earlier versions told of a name whose bytes are not UTF-8."""
    return key.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _key(shard: Shard, row: int) -> str | None:
    try:
        return shard.key(row)
    except TarError:  # damaged beyond its name: then the row says which one is meant
        return None
