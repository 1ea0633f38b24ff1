"""Holds what a program for a device may cost at most, and compares what it does cost: one row a limit.

Surprising: a limit whose value nobody has measured neither passes nor fails. `seer export` knows sizes, `seer measure` the rest, so
that the same budget is given to both. MB are 1,000,000 bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from seer.core.schema import Number, Word, setting


@dataclass(frozen=True)
class Budget:
    """Holds limits of a program; null = none."""

    file_mb: Number | None = setting(None, "MB of the program's file at most", above=0)
    parameters_m: Number | None = setting(None, "million parameters at most", above=0)
    macs_m: Number | None = setting(None, "million multiply-adds of one image at most", above=0)
    arena_mb: Number | None = setting(None, "MB of activations at most, those that the runtime plans", above=0)
    rss_mb: Number | None = setting(None, "MB of resident memory at most, above that of the idle runtime", above=0)
    latency_ms: Number | None = setting(None, "milliseconds of one image at most, the median on `device`", above=0)
    drop: Number | None = setting(None, "of `metric` at most, against the float program: 0.01 = one point", least=0)
    metric: Word = setting("top1", "that `drop` is of")
    device: Word | None = setting(None, "that the limits are of; told in results, and not checked")


@dataclass(frozen=True)
class Row:
    """Says how one limit is kept. value, ok: null where nobody measured it."""

    limit: str
    most: float
    value: float | None
    ok: bool | None


LIMITS = ("file_mb", "parameters_m", "macs_m", "arena_mb", "rss_mb", "latency_ms", "drop")


def check(budget: Budget, values: Mapping[str, float | None]) -> list[Row]:
    """Returns a row for each limit of a budget. values: what was found, by the names of the limits."""
    if unknown := set(values) - set(LIMITS):
        raise KeyError(f"{sorted(unknown)}: a budget limits {', '.join(LIMITS)}")
    rows = []
    for name in LIMITS:
        most, value = getattr(budget, name), values.get(name)
        if most is not None:
            rows.append(Row(name, most, value, None if value is None else value <= most))
    return rows


def passed(rows: Sequence[Row]) -> bool | None:
    """Returns False where a limit is broken, True where all are kept, None where nothing is limited or some were not measured."""
    if any(row.ok is False for row in rows):
        return False
    return True if rows and all(row.ok for row in rows) else None


def plain(budget: Budget, rows: Sequence[Row]) -> dict[str, Any]:
    """Returns what a result says: `device`, `pass`, and `limits` as rows."""
    return {"device": budget.device, "pass": passed(rows), "limits": [asdict(row) for row in rows]}


def line(row: Row) -> str:
    """Returns a row in words, for people."""
    if row.value is None:
        return f"{row.limit} at most {row.most:g}: not measured"
    return f"{row.limit} {row.value:.4g}, at most {row.most:g}: {'ok' if row.ok else 'TOO MUCH'}"
