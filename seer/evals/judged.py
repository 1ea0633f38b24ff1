"""Holds what an evaluation came to, beyond the numbers that a running training logs: intervals, chance, tables.

An evaluator's `run` gives plain figures, for metrics; its `judge`, where it has one, gives a `Judged` for the verb `evaluate`.
Tables are text (CSV) and go to files, since those of a thousand classes have no place in a line of JSON.

Legend: Q images, Y classes.
"""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from seer.evals.figures import Interval, confusion, wilson


@dataclass
class Judged:
    """Holds the result of one evaluation. figures: by name. intervals: of 95 %, of those that have one. told: what else stands
    in the result. tables: CSV by the name of its file."""

    figures: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, str] = field(default_factory=dict)

    def add_share(self, name: str, right: torch.Tensor) -> None:
        """Adds the share of images that are right, bool [Q], with Wilson's interval."""
        count = int(right.sum())
        self.figures[name], self.intervals[name] = count / len(right), wilson(count, len(right))

    def plain(self) -> dict[str, Any]:
        """Returns what the JSON line holds of it; what is not a number is null there."""
        found: dict[str, Any] = {name: None if math.isnan(value) else value for name, value in self.figures.items()}
        if self.intervals:
            found["interval95"] = {name: [low, high] for name, (low, high) in self.intervals.items()}
        return found | self.told

    def write(self, folder: Path) -> list[str]:
        """Writes the tables into a folder and returns their names."""
        for name, text in self.tables.items():
            temporary = folder / f".{name}.writing"
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(folder / name)
        return sorted(self.tables)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns CSV; a number that there is not is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if isinstance(v, float) and math.isnan(v) else v for v in row] for row in rows])
    return text.getvalue()


def chance(train_labels: torch.Tensor, test_labels: torch.Tensor) -> dict[str, float]:
    """Returns what is right without looking: guess (one of the classes of train, all alike) and majority (always the most
    frequent one of train; of equals the first)."""
    most = int(train_labels.bincount().argmax())
    return {
        "guess": 1 / len(train_labels.unique()),
        "majority": float((test_labels == most).double().mean()),
    }


def class_tables(
    name: str, found: torch.Tensor, labels: torch.Tensor, names: Sequence[str], train: torch.Tensor | None = None
) -> dict[str, str]:
    """Returns NAME-per-class.csv and NAME-confusion.csv (one line for each pair that occurs). found, labels: int [Q]; of a label
    that is no class (below 0) nothing is told. train: labels of what was learned from."""
    known = labels >= 0
    found, labels = found[known], labels[known]
    highest = max([-1, *(int(one.max()) for one in (found, labels) if len(one))])
    names = [*names, *(str(y) for y in range(len(names), highest + 1))]
    counts = confusion(found, labels, len(names))
    own = None if train is None else train.bincount(minlength=len(names)).tolist()
    rows = []
    for y, (one, asked, right) in enumerate(
        zip(names, counts.sum(1).tolist(), counts.diagonal().tolist(), strict=True)
    ):
        low, high = wilson(right, asked) if asked else (math.nan, math.nan)
        share = right / asked if asked else math.nan
        rows.append([one, *([] if own is None else [own[y]]), asked, right, share, low, high])
    header = ["class", *([] if own is None else ["train"]), "test", "right", "share", "low95", "high95"]
    pairs = [(names[i], names[j], int(counts[i, j])) for i, j in counts.nonzero().tolist()]
    return {
        f"{name}-per-class.csv": table(header, rows),
        f"{name}-confusion.csv": table(["class", "answered", "images"], pairs),
    }


def names_of(images: Any) -> Sequence[str]:
    """Returns the names of the classes of images, where they have any."""
    return list(getattr(images, "classes", ()))
