"""Judges heads on held-out images with targets: each kind by its own figures, with intervals and tables.

classify: top1, top5, calibration (expected error of its confidence); tags: map (mean average precision) and f1 at thresholds;
regress: error (mean absolute) and correlation (Pearson); map: pixel, class and miou, without what is void (255); detect: ap50 and
ap by COCO's rule (`evals.detection`); mask_rcnn: pycocotools' own of boxes and masks (`evals.coco_metrics`). Shares of independent
images have Wilson's interval, all else the bootstrap's over images.
Surprising: images are judged as the network sees them, by the center cut, but for mask_rcnn, which sees them whole and is judged
in their own pixels. A threshold of tags is chosen where F1 is best on images that are known (`data.train`) and not on those that
are asked for; without such it is 0.5 for each class.

Legend: Q images, B of a batch, Y classes or numbers, S side, d draws, m known boxes.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from seer.core.errors import RequestError
from seer.core.protocols import Modules
from seer.data.augment import normalize
from seer.data.transforms.file_things import crowd_of
from seer.data.transforms.whole_image import fitted
from seer.evals import coco_metrics, detection, resampling
from seer.evals.detection import Answer
from seer.evals.features import at_once
from seer.evals.figures import calibration_error, confusion, iou, mean_average_precision, per_class, segmentation
from seer.evals.judged import Judged, class_tables, table
from seer.evals.shared_answers import Blocks, Parts, gathered, joined
from seer.evals.target_images import TargetImages
from seer.models.heads.detect import Cells, boxes_of
from seer.models.multi_head import MultiHead
from seer.tasks.heads import IGNORE, KINDS, Spec

MOST_CELLS = 50_000_000  # numbers of confusions that are kept apart, by images, for the bootstrap
HALF = 0.5  # a threshold, where none is chosen


class How(NamedTuple):
    """Says how intervals are made, and bins of calibration. draws: 0 = none."""

    draws: int
    seed: int
    bins: int


class Heads:
    """Evaluates the heads of a task on images with targets. known: others, on which thresholds of tags are
    chosen. A task that keeps `thresholds` is given them.

    draws  of the bootstrap, from which intervals come that have no closed form
    seed   of these
    bins   of confidence, for calibration
    """

    def __init__(
        self,
        test: TargetImages,
        known: TargetImages | None,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        draws: int = 500,
        seed: int = 0,
        bins: int = 15,
        batch: int | None = None,
        threads: int = 2,
        dtype: torch.dtype = torch.float32,
    ):
        if draws < 0 or bins < 1:
            raise RequestError(f"eval.draws={draws}, eval.bins={bins}: not negative, and at least 1")
        self.test, self.known, self._settings = test, known, How(draws, seed, bins)
        self._mean, self._std, self._batch, self._threads, self._dtype = mean, std, batch, threads, dtype

    def run(self, task: Modules) -> dict[str, float]:
        """Returns HEAD/top1, HEAD/map, HEAD/miou, HEAD/ap and the like, without those that are no number."""
        figures = self._judged(task, self._settings._replace(draws=0)).figures
        return {name: value for name, value in figures.items() if not math.isnan(value)}

    def judge(self, task: Modules) -> Judged:
        """Returns the like with intervals, tables, and what was left out."""
        judged = self._judged(task, self._settings)
        if self.test.left_out:
            judged.told["left_out"] = dict(self.test.left_out)
        if self.test.view.things is not None:
            judged.told["labels_left_out"] = self.test.view.things.left_out
        return judged

    def _judged(self, task: Modules, how: How) -> Judged:
        specs: Mapping[str, Spec] = task.specs  # type: ignore[attr-defined]
        answers, judged = self._answers(task, specs, self.test), Judged()
        chosen = any(spec.kind == "tags" for spec in specs.values()) and self.known is not None
        known: Mapping[str, Parts] = {}
        if chosen and self.known is not None:
            known = answers if self.known is self.test else self._answers(task, specs, self.known)
        judged.told["images"] = max(len(parts["image"]) for parts in answers.values())
        for name, spec in specs.items():
            parts = answers[name]
            if spec.kind == "tags":
                thresholds = best_thresholds(*_scores(known[name])) if name in known else np.full(spec.count, HALF)
                _tags(judged, name, parts, list(self._names(spec)), thresholds, how)
                judged.told.setdefault(
                    "threshold_chosen_on", self.known.called if name in known and self.known is not None else None
                )
                if name in known and hasattr(task, "thresholds"):
                    task.thresholds[name] = tuple(map(float, thresholds))
            else:
                OF_KIND[spec.kind](judged, name, parts, list(self._names(spec)), how)
        return judged

    def _names(self, spec: Spec) -> tuple[str, ...]:
        """Returns the names of what a head answers with: of classes, or numbers of its outputs."""
        if spec.kind == "regress":
            return tuple(str(i) for i in range(spec.outputs))
        return tuple(spec.classes or self.test.classes)

    @torch.no_grad()
    def _answers(self, task: Modules, specs: Mapping[str, Spec], images: TargetImages) -> dict[str, Parts]:
        """Returns what each head said and should have said, in lists, a batch or an image each, of the images of all ranks. A task
        that answers itself, like a program that lies in a file, has `answer(fields of a batch) -> {head: what it says}`."""
        say, device = (task.answer, torch.device("cpu")) if hasattr(task, "answer") else self._network(task, specs)
        batch = self._batch or at_once(device, images.size)
        number, blocks = {place: i for i, place in enumerate(images.rows)}, Blocks()
        for first, fields in images.blocks(batch, self._threads):
            if fields is None:  # the turn of another rank: a sharded network runs on all ranks or on none
                say({"pixels": images.blank()})
                continue
            places = [(shard, row) for shard, row in fields["place"].tolist()]
            said, of = say(fields), blocks.setdefault(first, {})
            for name, spec in specs.items():
                of[name] = {"image": [number[place] for place in places]}
                TAKEN[spec.kind](of[name], said[name], fields, spec, len(images))
                if spec.kind == "mask_rcnn":
                    of[name]["scene"] = [images.scenes[place] for place in places]
        images.share_left_out()
        blocks = gathered(blocks, images.group)
        if not blocks:
            raise RequestError("none of the images for evaluation could be read, with targets")
        return joined(blocks, specs)

    def _network(
        self, task: Modules, specs: Mapping[str, Spec]
    ) -> tuple[Callable[[Mapping[str, torch.Tensor]], Any], torch.device]:
        """Returns a call that tells what each head of a network says of a batch of images, and the network's device."""
        modules = task.modules()
        model = MultiHead(modules["backbone"], {name: modules[name] for name in specs}).eval()  # type: ignore[misc]
        device = next(model.parameters()).device

        def say(fields: Mapping[str, torch.Tensor]) -> Any:
            x = fields["pixels"].to(device).to(torch.float32, memory_format=torch.channels_last).div_(255)
            with torch.autocast(device.type, self._dtype, enabled=self._dtype != torch.float32):
                return model(normalize(x, self._mean, self._std))

        return say, device


def _take_scores(target: str) -> Callable[..., None]:
    def take(parts: Parts, said: torch.Tensor, fields: Mapping[str, torch.Tensor], spec: Spec, images: int) -> None:
        parts.setdefault("scores", []).append(said.double().cpu())
        parts.setdefault("true", []).append(fields[target])

    return take


def _take_map(parts: Parts, said: torch.Tensor, fields: Mapping[str, torch.Tensor], spec: Spec, images: int) -> None:
    """Counts pixels of each image, or of as many neighbours as come together so that MOST_CELLS are not passed. Which these are
    is said by their numbers alone, so that it is the same where ranks share the images out."""
    together = -(-images * spec.count**2 // MOST_CELLS)  # images in one confusion
    numbers = parts["image"][len(parts["image"]) - len(said) :]
    for answer, mask, number in zip(said.argmax(1).cpu(), fields["mask"], numbers, strict=True):
        counts, place = confusion(answer, mask, spec.count, IGNORE), number // together
        if parts.get("together", [])[-1:] == [place]:
            parts["counts"][-1] += counts
        else:
            parts.setdefault("counts", []).append(counts)
            parts.setdefault("together", []).append(place)


def _take_boxes(parts: Parts, said: Cells, fields: Mapping[str, torch.Tensor], spec: Spec, images: int) -> None:
    side = (fields["pixels"].shape[2], fields["pixels"].shape[3])
    plain = Cells(*(one.float().cpu() for one in said))
    for i, found in enumerate(boxes_of(plain, side)):
        count = int(fields["box_count"][i])
        labels = fields["box_label"][i, :count]
        crowd = labels <= crowd_of(0)
        labels = torch.where(crowd, crowd_of(0) - labels, labels)
        labels = torch.zeros_like(labels) if spec.count == 1 else labels
        parts.setdefault("answers", []).append(
            Answer(
                found.edges.double().numpy(),
                found.labels.numpy(),
                found.scores.double().numpy(),
                fields["boxes"][i, :count].double().numpy(),
                labels.numpy(),
                (crowd | (labels < 0)).numpy(),  # of no class, or many: what is found there is neither right nor wrong
            )
        )


def _take_things(
    parts: Parts, said: list[dict[str, torch.Tensor]], fields: Mapping[str, torch.Tensor], spec: Spec, images: int
) -> None:
    side = fields["pixels"].shape[2]
    for one, (height, width) in zip(said, fields["image_size"].tolist(), strict=True):
        rows, columns = fitted(height, width, side)
        found = coco_metrics.in_image(one, (height, width), (width / columns, height / rows))
        parts.setdefault("found", []).append(found)


def _scores(parts: Parts) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.cat(parts["scores"]), torch.cat(parts["true"])


def _interval(judged: Judged, name: str, images: int, how: How, figure: Callable[[np.ndarray], np.ndarray]) -> None:
    bounds = resampling.interval(images, how.draws, how.seed, figure)
    if bounds is not None:
        judged.intervals[name] = bounds


def _classify(judged: Judged, name: str, parts: Parts, classes: list[str], how: How) -> None:
    scores, labels = _scores(parts)
    labels = torch.where(labels < scores.shape[1], labels, -1)  # of a class that the head does not know: always wrong
    found = scores.argmax(1)
    judged.add_share(f"{name}/top1", found == labels)
    if scores.shape[1] > 5:
        judged.add_share(f"{name}/top5", (scores.topk(5, dim=1).indices == labels[:, None]).any(1))
    sure = scores.softmax(1)
    judged.figures[f"{name}/calibration"] = calibration_error(sure, labels, how.bins)
    judged.tables |= class_tables(name, found, labels, classes)
    if unknown := int((labels < 0).sum()):
        judged.told[f"{name}/unknown_classes"] = unknown
    top = sure.max(1).values
    bin_of = (top * how.bins).ceil().long().clamp(1, how.bins) - 1
    gaps = torch.zeros(len(labels), how.bins, dtype=torch.float64)
    gaps[torch.arange(len(labels)), bin_of] = top - (found == labels).double()
    each = gaps.numpy()
    _interval(judged, f"{name}/calibration", len(labels), how, lambda w: np.abs(w @ each).sum(1) / len(each))


def _tags(judged: Judged, name: str, parts: Parts, classes: list[str], thresholds: np.ndarray, how: How) -> None:
    scores, true = _scores(parts)
    positive = true > 0.5
    mean, each = mean_average_precision(scores, positive)
    judged.figures[f"{name}/map"] = mean
    found, there = (scores.sigmoid() >= torch.from_numpy(thresholds)).numpy(), positive.numpy()
    right, said, asked = (found & there).sum(0), found.sum(0), there.sum(0)
    with np.errstate(invalid="ignore"):
        precision, recall = right / np.where(said, said, np.nan), right / np.where(asked, asked, np.nan)
        f1 = 2 * right / np.where(asked, said + asked, np.nan)  # of a class that does not occur there is none
    judged.figures[f"{name}/f1"] = float(resampling.nan_mean(f1))
    header = ["class", "test", "ap", "threshold", "precision", "recall", "f1"]
    columns = (asked.tolist(), each, thresholds.tolist(), precision.tolist(), recall.tolist(), f1.tolist())
    judged.tables[f"{name}-per-class.csv"] = table(header, zip(classes, *columns, strict=True))
    plain = scores.numpy()

    def draw_map(weights: np.ndarray) -> np.ndarray:
        own = [resampling.average_precisions(plain[:, y], there[:, y], weights) for y in range(plain.shape[1])]
        return resampling.nan_mean(np.stack(own, 1))

    def draw_f1(weights: np.ndarray) -> np.ndarray:
        hits, both = weights @ (found & there), weights @ found + weights @ there
        return resampling.nan_mean(2 * hits / np.where(weights @ there > 0, both, np.nan))

    _interval(judged, f"{name}/map", len(plain), how, draw_map)
    _interval(judged, f"{name}/f1", len(plain), how, draw_f1)


def best_thresholds(scores: torch.Tensor, true: torch.Tensor) -> np.ndarray:
    """Returns the probability of each class from which on F1 is best, float64 [Y]: halfway to the next one below; of equals the
    highest; HALF for a class that does not occur. scores: logits [Q, Y]."""
    chosen = np.full(scores.shape[1], HALF)
    for y in range(scores.shape[1]):
        sure, order = scores[:, y].sigmoid().sort(descending=True, stable=True)
        hits = true[:, y].double()[order] > 0.5
        if not hits.any():
            continue
        f1 = 2 * hits.cumsum(0) / (torch.arange(1, len(hits) + 1) + hits.sum())
        last = torch.cat([sure[1:] != sure[:-1], torch.tensor([True])])
        at = int(torch.where(last, f1, -1.0).argmax())
        chosen[y] = float((sure[at] + sure[at + 1]) / 2) if at + 1 < len(sure) else float(sure[at]) / 2
    return chosen


def _regress(judged: Judged, name: str, parts: Parts, classes: list[str], how: How) -> None:
    found, true = (one.double().numpy() for one in _scores(parts))
    one, off = np.ones((1, len(found))), np.abs(found - true)
    judged.figures[f"{name}/error"] = float(off.mean())

    def correlation(weights: np.ndarray) -> np.ndarray:
        each = [resampling.correlations(found[:, y], true[:, y], weights) for y in range(found.shape[1])]
        return np.stack(each, 1)

    each = correlation(one)[0]
    judged.figures[f"{name}/correlation"] = float(resampling.nan_mean(each))
    rows = zip(classes, off.mean(0).tolist(), each.tolist(), strict=True)
    judged.tables[f"{name}-per-number.csv"] = table(["number", "error", "correlation"], rows)
    own = off.mean(1)
    _interval(judged, f"{name}/error", len(own), how, lambda w: w @ own / len(own))
    _interval(judged, f"{name}/correlation", len(own), how, lambda w: resampling.nan_mean(correlation(w)))


def _map(judged: Judged, name: str, parts: Parts, classes: list[str], how: How) -> None:
    places, at = np.unique(parts["together"], return_inverse=True)  # neighbours may lie in two blocks
    counts = torch.zeros(len(places), *parts["counts"][0].shape, dtype=torch.int64)  # [groups of images, Y, Y]
    for place, one in zip(at.tolist(), parts["counts"], strict=True):
        counts[place] += one
    whole = counts.sum(0)
    judged.figures |= {f"{name}/{figure}": value for figure, value in segmentation(whole).items()}
    columns = (whole.sum(1).tolist(), per_class(whole).tolist(), iou(whole).tolist())
    judged.tables[f"{name}-per-class.csv"] = table(
        ["class", "pixels", "share", "iou"], zip(classes, *columns, strict=True)
    )
    flat, y = counts.flatten(1).double().numpy(), len(whole)

    def draw(figure: str) -> Callable[[np.ndarray], np.ndarray]:
        def of(weights: np.ndarray) -> np.ndarray:
            found = []
            for one in weights:
                own = (one @ flat).reshape(y, y)
                right, asked, said = own.diagonal(), own.sum(1), own.sum(0)
                under = {"pixel": asked.sum(), "class": asked, "miou": asked + said - right}[figure]
                over = right.sum() if figure == "pixel" else right
                found.append(resampling.nan_mean(np.atleast_1d(over / np.where(under > 0, under, np.nan))))
            return np.array(found)

        return of

    for figure in ("pixel", "class", "miou"):
        _interval(judged, f"{name}/{figure}", len(flat), how, draw(figure))


def _detect(judged: Judged, name: str, parts: Parts, classes: list[str], how: How) -> None:
    answers = parts["answers"]
    each = [detection.matched(answers, y) for y in range(len(classes))]
    own = _precisions(judged, f"{name}/", each, len(answers), how)
    judged.figures[f"{name}/ap50"] = float(resampling.nan_mean(own[:, 0]))
    judged.figures[f"{name}/ap"] = float(resampling.nan_mean(own.reshape(-1)))
    rows = zip(classes, [int(f.there.sum()) for f in each], own[:, 0].tolist(), own.mean(1).tolist(), strict=True)
    judged.tables[f"{name}-per-class.csv"] = table(["class", "boxes", "ap50", "ap"], rows)


def _mask_rcnn(judged: Judged, name: str, parts: Parts, classes: list[str], how: How) -> None:
    columns: list[list[Any]] = []
    for kind, first in (("bbox", f"{name}/"), ("segm", f"{name}/mask_")):
        found = coco_metrics.measured(parts["found"], parts["scene"], len(classes), kind)
        judged.figures |= {f"{first}{figure}": value for figure, value in found.figures.items()}
        own = _precisions(judged, first, found.matched, len(parts["found"]), how)
        columns += [[int(one.there.sum()) for one in found.matched], own[:, 0].tolist(), own.mean(1).tolist()]
    header = ["class", "boxes", "ap50", "ap", "masks", "mask_ap50", "mask_ap"]
    judged.tables[f"{name}-per-class.csv"] = table(header, zip(classes, *columns, strict=True))


def _precisions(judged: Judged, first: str, each: list[detection.Matched], images: int, how: How) -> np.ndarray:
    """Returns the average precision of each class at each threshold, [Y, T], and adds the intervals of ap50 and ap."""
    one = np.ones((1, images))
    drawn = [
        np.stack([detection.precision(found, weights) for found in each], 1)  # [d, Y, T]
        for weights in resampling.draws(images, how.draws, how.seed)
    ]
    if drawn:
        all_ = np.concatenate(drawn)
        for figure, values in (("ap50", all_[:, :, 0]), ("ap", all_.reshape(len(all_), -1))):
            if (bounds := resampling.bounds(resampling.nan_mean(values))) is not None:
                judged.intervals[f"{first}{figure}"] = bounds
    return np.stack([detection.precision(found, one)[0] for found in each])


TAKEN: dict[str, Callable[..., None]] = {
    "classify": _take_scores("label"),
    "tags": _take_scores("labels"),
    "regress": _take_scores("values"),
    "map": _take_map,
    "detect": _take_boxes,
    "mask_rcnn": _take_things,
}
OF_KIND: dict[str, Callable[[Judged, str, Parts, list[str], How], None]] = {
    "classify": _classify,
    "regress": _regress,
    "map": _map,
    "detect": _detect,
    "mask_rcnn": _mask_rcnn,
}
assert set(TAKEN) == set(KINDS) == {*OF_KIND, "tags"}
