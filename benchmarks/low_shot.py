"""Fine-tunes a pretrained backbone, and trains the same network from scratch, on the same labelled few: is pretraining worth it?

    python benchmarks/low_shot.py train=SHARDS test=SHARDS weights=RUN output=FOLDER [parts=1%,10%] [draws=5] [tuned=1]
        [rates=0.001,0.004] [lengths=200,600] [probe=true] [most=0] [seed=0] [words of `seer adapt`, for both arms ...]

Both arms are `seer adapt` with the same words but for `weights=`. parts: shares of each class, or numbers of images of each
from 1 on; a draw limits images and labels alike. Each arm chooses a rate (schedule.peak) and a length (steps) from the same
grid, by images of the first `tuned` draws that are kept aside for it (every ASIDE-th of a class); the test images have no
say. tuned: one number for all parts, or one for each. Then each arm is trained on all of each draw, and judged on the test
images (most: so many of them, 0 = all). A difference is of pairs, the same draw and seed for both arms, with Student's 95 %
interval over the draws. Beside them, on the same draws: a linear probe (eval=lowshot) of the pretrained and of an untrained
backbone, and of raw pixels (probe=false: none, they cost three passes over all of train).

Surprising: what an interval holds is the luck of the draw; the pretraining is one run, and the test images are the same for all.
A chosen rate or length at an edge of its list is told: a longer list might serve that arm better. FOLDER/cells.jsonl keeps the
figure of each training, so the same command goes on where it was stopped, also with more draws or a wider grid. Without
arguments: built-in images and a pretraining of seconds, which shows that it runs and nothing else.

Legend: D draws.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import nn

from seer.cli import adapt, config, pretrain
from seer.core.build import build
from seer.data.drawing import draw_shards
from seer.data.shards.open import open_shards
from seer.data.shards.shard import fingerprint, image_of
from seer.data.shards.writer import SHARDS_MANIFEST, Member, write_shards
from seer.evals.features import Alone, LabelledImages
from seer.evals.lowshot import LowShot, draw, half_width
from seer.run.environment import commit_of
from seer.run.weights import digest, state

ASIDE = 4  # one image of so many of each class is kept aside to choose a rate and a length
ARMS = ("pretrained", "scratch")
PLAIN = ("every.evaluate=100%", "every.checkpoint=100%", "every.log=50", "log.tensorboard=false", "data.threads=0")


@dataclass(frozen=True)
class Asked:
    """Holds the words of the command line. tuned: draws of each part on which a rate and a length are chosen."""

    train: str
    test: str
    weights: str
    output: Path
    parts: tuple[float, ...] = (0.01, 0.1)
    draws: int = 5
    tuned: tuple[int, ...] = (1, 1)
    rates: tuple[str, ...] = ("0.001", "0.004")
    lengths: tuple[str, ...] = ("200", "600")
    probe: bool = True
    most: int = 0
    seed: int = 0
    words: tuple[str, ...] = ()

    @property
    def grid(self) -> list[tuple[str, str]]:
        """Returns the pairs of a rate and a length that each arm may choose from."""
        return list(product(self.rates, self.lengths))


def read(words: Sequence[str]) -> Asked:
    """Returns the words of the command line as they are meant. Ends the program for words that are lacking or wrong."""
    own = {name: word for name, _, word in (w.partition("=") for w in words) if name in Asked.__dataclass_fields__}
    if lacking := [name for name in ("train", "test", "weights", "output") if not own.get(name)]:
        sys.exit(f"low_shot.py needs {', '.join(f'{name}=...' for name in lacking)}")
    other = tuple(w for w in words if w.partition("=")[0] not in own)
    parts = tuple(map(part_of, own.get("parts", "1%,10%").split(",")))
    tuned = tuple(map(int, own.get("tuned", "1").split(",")))
    tuned = tuned * len(parts) if len(tuned) == 1 else tuned
    draws = int(own.get("draws", 5))
    if draws < 2 or len(tuned) != len(parts) or not all(0 < n <= draws for n in tuned):
        sys.exit(
            f"draws={draws} tuned={tuned}: two draws at least, and of each of {len(parts)} parts 1 to {draws} tuned ones"
        )
    lists = {name: tuple(own[name].split(",")) for name in ("rates", "lengths") if name in own}
    numbers = {name: int(own[name]) for name in ("most", "seed") if name in own}
    options = {**lists, **numbers, "probe": own.get("probe", "true") == "true", "words": other}
    return Asked(own["train"], own["test"], own["weights"], Path(own["output"]), parts, draws, tuned, **options)


def part_of(word: str) -> float:
    """Returns a share (`10%`, `0.1`), or a number of images of each class (`4`)."""
    return float(word[:-1]) / 100 if word.endswith("%") else float(word)


def name_of(part: float) -> str:
    return f"{part:g}" if part >= 1 else f"{100 * part:g}%"


# ---- the labelled few ------------------------------------------------------------------------------------------------


def split(labels: torch.Tensor, rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """Returns the rows of a draw, and their two parts: `fit`, and `aside`, every ASIDE-th of each class, or the last of a class
    of two or three. labels: of all images. A class of one image has none aside."""
    aside = torch.zeros(len(rows), dtype=torch.bool)
    for label in labels[rows].unique():
        own = (labels[rows] == label).nonzero().flatten()
        if len(own) > 1:
            aside[own[min(ASIDE, len(own)) - 1 :: ASIDE]] = True
    return {"all": rows, "fit": rows[~aside], "aside": rows[aside]}


def written(images: LabelledImages, rows: torch.Tensor, folder: Path) -> Path:
    """Writes images with their classes as a shard of their own, byte for byte, where it is not there yet. Returns the folder."""
    if not (folder / SHARDS_MANIFEST).exists():
        write_shards(members(images, rows), folder, total=len(rows), per_shard=10_000, card={"classes": images.classes})
    return folder


def members(images: LabelledImages, rows: torch.Tensor) -> Iterator[Member]:
    """Yields each image with the number of its class."""
    for n, (s, r) in enumerate(images.rows[row] for row in rows.tolist()):
        ending = Path(images.shards[s].image_name(r)).suffix.removeprefix(".")
        data = image_of(images.shards[s].read(s, r))
        yield f"{n:06d}", {ending: data, "cls": str(int(images.labels.of[s][r])).encode()}


def labels_of(images: LabelledImages) -> torch.Tensor:
    """Returns int64 [M], in the order of the rows."""
    return torch.tensor([int(images.labels.of[s][r]) for s, r in images.rows])


# ---- both arms -------------------------------------------------------------------------------------------------------


def check_same(asked: Asked) -> None:
    """Keeps what the figures in a folder are of. Ends the program where they are of other weights, images, seed or words."""
    train, test = (fingerprint(open_shards(source)) for source in (asked.train, asked.test))
    weights = digest(state(asked.weights).backbone)
    facts = {"train": train, "test": test, "weights_sha256": weights, "seed": asked.seed, "words": list(asked.words)}
    file = asked.output / "of.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else facts
    if changed := [name for name in facts if facts[name] != before[name]]:
        sys.exit(f"output={asked.output} holds figures of another {', '.join(changed)}; give another output=")
    file.write_text(json.dumps(facts) + "\n", encoding="utf-8")


class Cells:
    """Trains and judges: a cell is one training. Its figure and seconds are kept in FOLDER/cells.jsonl, under its words."""

    def __init__(self, asked: Asked):
        self.asked, self.file = asked, asked.output / "cells.jsonl"
        check_same(asked)
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        self.known: dict[str, dict[str, Any]] = {one["words"]: one for one in map(json.loads, lines)}

    def top1(self, arm: str, name: str, data: Path, test: str, cell: tuple[str, str], seed: int) -> float:
        """Returns the share of test images that an arm classifies right after training on `data` with a rate and a length."""
        words = self.words(arm, data, test, cell, seed)
        key = " ".join(words)
        if key not in self.known:
            start = time.process_time()
            found = adapt.run(config.read("adapt", [*words, f"output={self.asked.output / arm / name}"]), [])
            row = {"words": key, "top1": found["classify/top1"], "processor_s": round(time.process_time() - start, 2)}
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            self.known[key] = row
            print(
                f"{arm} {name}: {row['top1']:.4f} ({row['processor_s']} s of the processor)",
                file=sys.stderr,
                flush=True,
            )
        return self.known[key]["top1"]

    def words(self, arm: str, data: Path, test: str, cell: tuple[str, str], seed: int) -> list[str]:
        """Returns the words of a training: scratch has those that the first of the pretrained arm resolved to, without weights."""
        begin = [f"weights={self.asked.weights}", "heads=[classify]"]
        if arm == "scratch":
            begin = [f"recipe={self.asked.output / 'as_pretrained.yaml'}", "weights=null"]
        rate, length = cell
        own = [f"data.source={data}", f"eval.test={test}", f"steps={length}", f"schedule.peak={rate}", f"seed={seed}"]
        most = [f"eval.most={self.asked.most}"] if self.asked.most and test == self.asked.test else ["eval.most=0"]
        return [*begin, "surgery=none", *PLAIN, *own, *most, *self.asked.words]

    def begin(self, few: Callable[[float, int], dict[str, Path]]) -> dict[str, Any]:
        """Trains the first cell of the pretrained arm, and keeps what its words came to: the other arm is that without weights.
        Returns it. few: where the parts of a draw lie."""
        file = self.asked.output / "as_pretrained.yaml"
        if not file.exists():
            where, cell = few(self.asked.parts[0], 0), self.asked.grid[0]
            name = f"{name_of(self.asked.parts[0])}-0-aside-{'-'.join(cell)}"
            self.top1("pretrained", name, where["fit"], str(where["aside"]), cell, self.asked.seed)
            made = self.asked.output / "pretrained" / name / "config.yaml"
            file.write_bytes(made.read_bytes())
        return yaml.safe_load(file.read_text(encoding="utf-8"))


def compared(asked: Asked, cells: Cells, few: Callable[[float, int], dict[str, Path]], part: float) -> dict[str, Any]:
    """Returns of each arm what it chose and what its draws came to: {arm: {rate, length, edge, tuning, draws [D]}}."""
    found = {}
    tuned = asked.tuned[asked.parts.index(part)]
    for arm in ARMS:
        rated = {}
        for cell in asked.grid:
            figures = []
            for i in range(tuned):
                where, name = few(part, i), f"{name_of(part)}-{i}-aside-{'-'.join(cell)}"
                figures.append(cells.top1(arm, name, where["fit"], str(where["aside"]), cell, asked.seed + i))
            rated[cell] = fmean(figures)
        best = max(asked.grid, key=rated.__getitem__)  # of equals the first
        right = []
        for i in range(asked.draws):
            name = f"{name_of(part)}-{i}-all-{'-'.join(best)}"
            right.append(cells.top1(arm, name, few(part, i)["all"], asked.test, best, asked.seed + i))
        tuning = {" ".join(cell): figure for cell, figure in rated.items()}
        found[arm] = {
            "rate": best[0],
            "length": best[1],
            "edge": at_edge(asked, best),
            "tuning": tuning,
            "draws": right,
        }
    return found


def at_edge(asked: Asked, cell: tuple[str, str]) -> list[str]:
    """Returns which of the rate and the length is the first or the last of several, and so may be too low or too high."""
    both = {"rate": (cell[0], asked.rates), "length": (cell[1], asked.lengths)}
    return [name for name, (chosen, of) in both.items() if len(of) > 1 and chosen in (of[0], of[-1])]


class RawPixels(nn.Module):
    """Gives the pixels themselves as features, scaled down to side x side: what a probe finds without a network."""

    def __init__(self, side: int = 32):
        super().__init__()
        self.side = side
        self.device = nn.Parameter(torch.zeros(()))  # evaluators ask the parameters where to compute

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: float32 [B, C, S, S]. Returns [B, C * side * side]."""
        return F.interpolate(x, size=(self.side, self.side), mode="bilinear", antialias=True).flatten(1)


# ---- figures ---------------------------------------------------------------------------------------------------------


def mean_of(values: Sequence[float]) -> dict[str, Any]:
    """Returns the mean of the draws and half of its 95 % interval."""
    return {"top1": fmean(values), "half_width": half_width(values)}


def difference(one: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """Returns how far one is ahead of another, draw by draw, half of the 95 % interval of that, and whether it is more than that."""
    apart = [a - b for a, b in zip(one, other, strict=True)]
    middle, half = fmean(apart), half_width(apart)
    return {"difference": middle, "half_width": half, "beats": middle > half}


def linear(asked: Asked, model: Any) -> dict[str, list[list[float]]]:
    """Returns {row: top-1 of each draw, for each part} of a linear probe of the pretrained and of an untrained backbone, and of
    raw pixels, on the same draws. model: the network's node of a config."""
    pretrained = state(asked.weights)
    options = {"size": pretrained.card["input_size"]}
    known = LabelledImages(open_shards(asked.train), **options)
    test = LabelledImages(open_shards(asked.test), like=known, most=asked.most, **options)
    pixels = {"mean": tuple(pretrained.card["mean"]), "std": tuple(pretrained.card["std"])}
    probe = LowShot(known, test, **pixels, parts=asked.parts, draws=asked.draws, seed=asked.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(asked.seed)
        untrained = build("model", model)
    rows = {"linear, pretrained": pretrained.backbone, "linear, untrained": untrained, "linear, pixels": RawPixels()}
    found = {row: probe.judge(Alone(backbone.eval())).told["draws"] for row, backbone in rows.items()}
    return {row: list(of.values()) for row, of in found.items()}


def run(asked: Asked) -> dict[str, Any]:
    """Returns all figures, and writes them to FOLDER/low_shot.json."""
    asked.output.mkdir(parents=True, exist_ok=True)
    start = time.process_time()
    images = LabelledImages(open_shards(asked.train), size=8)  # only their labels and bytes are used
    labels, cells = labels_of(images), Cells(asked)

    def few(part: float, i: int) -> dict[str, Path]:
        parts, folder = split(labels, draw(labels, part, asked.seed + i)), asked.output / "few"
        return {n: written(images, rows, folder / f"{name_of(part)}-{i}" / n) for n, rows in parts.items()}

    settings = cells.begin(few)
    arms = {part: compared(asked, cells, few, part) for part in asked.parts}
    probes = linear(asked, settings["model"]) if asked.probe else {}
    found = {}
    for n, (part, own) in enumerate(arms.items()):
        rows = {arm: {**one, **mean_of(one["draws"])} for arm, one in own.items()}
        rows |= {row: {"draws": of[n], **mean_of(of[n])} for row, of in probes.items()}
        ahead = {
            row: difference(one["draws"], own["scratch"]["draws"]) for row, one in rows.items() if row != "scratch"
        }
        count = len(draw(labels, part, asked.seed))
        found[name_of(part)] = {"images": count, "rows": rows, "over_scratch": ahead}
    result = {
        "asked": {**asdict(asked), "output": str(asked.output)},
        "weights_sha256": digest(state(asked.weights).backbone),
        "commit": commit_of(Path(__file__).resolve().parents[1])[0],
        "torch": torch.__version__,
        "trainings": len(cells.known),
        "processor_s": {
            "trainings": round(sum(one["processor_s"] for one in cells.known.values()), 1),
            "this_call": round(time.process_time() - start, 1),
        },
        "parts": found,
    }
    (asked.output / "low_shot.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def table(result: dict[str, Any]) -> str:
    """Returns the figures for people, in points, as a table of Markdown."""
    lines = ["| part | images | what | top-1 | over scratch | rate, steps |", "|---|---|---|---|---|---|"]
    for part, found in result["parts"].items():
        for row, one in found["rows"].items():
            ahead, chosen = found["over_scratch"].get(row), ""
            if "rate" in one:
                edge = f" (edge: {', '.join(one['edge'])})" if one["edge"] else ""
                chosen = f"{one['rate']}, {one['length']}{edge}"
            more = f"{100 * ahead['difference']:+.1f} ± {100 * ahead['half_width']:.1f}" if ahead else ""
            top1 = f"{100 * one['top1']:.1f} ± {100 * one['half_width']:.1f}"
            lines.append(f"| {part} | {found['images']} | {row} | {top1} | {more} | {chosen} |")
    return "\n".join(lines)


def built_in(folder: Path) -> list[str]:
    """Draws images, pretrains on them for seconds, and returns the words of a comparison on them."""
    draw_shards(folder, {"train": 240, "test": 60}, seed=0, processes=1)
    words = [
        "recipe=sample",
        "data=pictures",
        f"data.source={folder / 'train'}",
        f"output={folder / 'run'}",
        "steps=10",
    ]
    pretrain.run(config.read("pretrain", [*words, "batch=32", "log.tensorboard=false", "data.threads=0"]), [])
    few = ["parts=2,20%", "draws=2", "rates=0.002", "lengths=4,8", "batch=16"]
    return [
        f"train={folder / 'train'}",
        f"test={folder / 'test'}",
        f"weights={folder / 'run'}",
        f"output={folder / 'few'}",
        *few,
    ]


def main(words: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(table(run(read(words or built_in(Path(folder))))))


if __name__ == "__main__":
    main(sys.argv[1:])
