"""Compares several networks by the same evaluations on the same images: a table, and what pretraining is worth with few labels.

All networks are judged with the same budget: the same images, draws and penalties, of which each chooses its own on a part of
train. Surprising: what is said of few labels rests on differences draw by draw, since both networks get the same labelled images
in each; the interval is of the draw of labels alone, for these test images, and a classifier on frozen features is what was
measured, nothing of fine-tuning.

Legend: d draws.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from seer.compare.subjects import SCRATCH, Subject
from seer.core.errors import RequestError
from seer.core.protocols import Evaluator
from seer.evals.features import Alone, LabelledImages
from seer.evals.judged import Judged, table
from seer.evals.knn import KNN
from seer.evals.linear import Linear
from seer.evals.lowshot import LowShot, half_width

KNOWN = ("knn", "linear", "lowshot")


@dataclass(frozen=True)
class Row:
    """Holds what one network came to. draws: top-1 of each draw by part, of lowshot."""

    subject: Mapping[str, Any]
    figures: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    draws: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Returns what the result says of it."""
        return {
            **self.subject,
            **{name: None if math.isnan(value) else value for name, value in self.figures.items()},
            "interval95": {name: list(bounds) for name, bounds in self.intervals.items()},
            **({"draws": dict(self.draws)} if self.draws else {}),
        }


class Suite:
    """Says how networks are compared.

    run          evaluations: knn, linear, lowshot
    scratch      each shape is judged untrained, too
    seed         of untrained networks, and of the draws of lowshot
    k            neighbours of knn
    temperature  of their votes
    penalties    of linear and lowshot, of which each network chooses its own on a part of train
    iterations   of L-BFGS at the most
    parts        of lowshot: shares of each class (below 1), or numbers of images of each class
    draws        of each part
    plot         figure that is plotted; null = the first of linear_top1, knn_top1 and lowshot's
    """

    def __init__(
        self,
        *,
        run: Sequence[str] = ("knn", "linear", "lowshot"),
        scratch: bool = True,
        seed: int = 0,
        k: int = 20,
        temperature: float = 0.07,
        penalties: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1),
        iterations: int = 200,
        parts: Sequence[float] = (0.01, 0.1),
        draws: int = 5,
        plot: str | None = None,
    ):
        if not run or any(name not in KNOWN for name in run) or len(set(run)) < len(run):
            raise RequestError(f"eval.run={list(run)}: some of {', '.join(KNOWN)}, each once")
        self.run, self.scratch, self.seed, self.plot = tuple(run), scratch, seed, plot
        self._knn = {"k": k, "temperature": temperature}
        self._linear = {"penalty": penalties, "iterations": iterations}
        self._lowshot = {"parts": parts, "draws": draws, "seed": seed, "penalties": penalties, "iterations": iterations}

    def evaluators(self, train: LabelledImages, test: LabelledImages, **options: Any) -> dict[str, Evaluator]:
        """Returns the evaluations by name. options: mean, std, batch, threads and dtype. Raises RequestError."""
        every: dict[str, Any] = {"knn": (KNN, self._knn), "linear": (Linear, self._linear)}
        every["lowshot"] = (LowShot, self._lowshot)
        return {name: every[name][0](train, test, **every[name][1], **options) for name in self.run}

    def judged(self, subject: Subject, train: LabelledImages, test: LabelledImages, **options: Any) -> Row:
        """Returns what a network comes to, which lies on its device in evaluation mode."""
        evaluators = self.evaluators(train, test, mean=subject.mean, std=subject.std, **options)
        found = Judged()
        for one in evaluators.values():
            part: Judged = one.judge(Alone(subject.backbone))  # type: ignore[attr-defined,arg-type]
            found.figures |= part.figures
            found.intervals |= part.intervals
            found.told |= part.told
        about = {
            "name": subject.name,
            "kind": subject.kind,
            "weights": subject.weights,
            "parameters": subject.parameters,
            "images_seen": subject.images,
            "size": subject.size,
            "shape": subject.shape,
            **subject.origin,
        }
        return Row(about, found.figures, found.intervals, found.told.get("draws", {}))

    def figure(self, rows: Sequence[Row]) -> str:
        """Returns the name of the figure that is plotted. Raises RequestError for one that was not measured."""
        names = list(rows[0].figures)
        if self.plot is not None and self.plot not in names:
            raise RequestError(f"eval.plot={self.plot}: the comparison measures {', '.join(names)}")
        some = [name for name in names if "top1" in name]
        return self.plot or next((name for name in ("linear_top1", "knn_top1") if name in some), some[0])


def csv_of(rows: Sequence[Row]) -> str:
    """Returns the table as CSV: what each network is, and its figures with their bounds."""
    about = ("name", "kind", "parameters", "images_seen", "size", "weights", "weights_sha256")
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    bounded = {name for row in rows for name in row.intervals}
    header = [*about, *(h for n in names for h in ((n, f"{n}/low95", f"{n}/high95") if n in bounded else (n,)))]
    lines = []
    for row in rows:
        line: list[Any] = ["" if row.subject.get(name) is None else row.subject[name] for name in about]
        for name in names:
            value = row.figures.get(name, math.nan)
            line += [value, *row.intervals.get(name, (math.nan, math.nan))] if name in bounded else [value]
        lines.append(line)
    return table(header, lines)


def lines_of(rows: Sequence[Row]) -> list[str]:
    """Returns the table for a screen: a line a network, figures in percent, half of their interval behind them."""
    names = [n for n in dict.fromkeys(n for row in rows for n in row.figures) if "top1" in n]
    cells = [["", "kind", "parameters", "images seen", *(name.replace("_top1", "") for name in names)]]
    for row in rows:
        seen = row.subject["images_seen"]
        line = [row.subject["name"], row.subject["kind"], f"{row.subject['parameters'] / 1e6:.2f} M"]
        line.append("unknown" if seen is None else f"{seen:,}")
        cells.append([*line, *(_cell(row, name) for name in names)])
    wide = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, wide, strict=True)).rstrip() for line in cells]


def _cell(row: Row, name: str) -> str:
    if name not in row.figures:
        return "-"
    low, high = row.intervals.get(name, (math.nan, math.nan))
    half = "" if math.isnan(low) else f" ±{50 * (high - low):.1f}"
    return f"{100 * row.figures[name]:.1f}{half}"


def worth(rows: Sequence[Row], test: int) -> list[dict[str, Any]]:
    """Returns what training is worth with few labels: of each trained network and part, how far it lies above the untrained one of
    its shape, draw by draw, with Student's interval over the draws, and a sentence. test: images that were asked."""
    scratch = {(row.subject["shape"], row.subject["size"]): row for row in rows if row.subject["kind"] == SCRATCH}
    found = []
    for row in rows:
        base = scratch.get((row.subject["shape"], row.subject["size"]))
        if row.subject["kind"] == SCRATCH or base is None:
            continue
        for part, values in row.draws.items():
            differences = [a - b for a, b in zip(values, base.draws[part], strict=True)]
            mean, half = statistics.fmean(differences), half_width(differences)
            one: dict[str, Any] = {
                "name": row.subject["name"],
                "against": base.subject["name"],
                "part": part,
                "images": int(row.figures[f"lowshot_images/{part}"]),
                "difference": mean,
                "interval95": None if math.isnan(half) else [mean - half, mean + half],
                "draws": len(differences),
            }
            found.append({**one, "says": sentence(one, test)})
    return found


def sentence(one: Mapping[str, Any], test: int) -> str:
    """Returns what was measured, and nothing else, of one difference."""
    share = f"{one['part']} of the labels" if "%" in one["part"] else f"{one['part']} labelled images of each class"
    where = f"with {share} ({one['images']} images)"
    points = f"{abs(100 * one['difference']):.1f} points {'above' if one['difference'] >= 0 else 'below'}"
    start = f"{where}, a classifier on the frozen features of {one['name']} lies {points} the one on {one['against']}"
    if one["interval95"] is None:
        return f"{start}; one draw of labels has no interval, so whether training is worth it is open"
    low, high = one["interval95"]
    of = f"95 %: {100 * low:+.1f} to {100 * high:+.1f}, {one['draws']} draws of labels, the same {test} test images"
    if low > 0:
        return f"{start} ({of}): here it was worth it"
    return f"{start} ({of}): here it was {'worse than none' if high < 0 else 'not seen to be worth it'}"


def told(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Returns the rows as the result has them."""
    return [{key: value for key, value in row.plain().items() if key != "shape"} for row in rows]
