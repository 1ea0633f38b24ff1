"""Measures found boxes and masks by pycocotools itself, on whole images in their own pixels.

What is there comes from the file as it is: outlines, areas and crowds. Surprising: intervals are made from which found thing was
matched to what, as pycocotools has it, by the same sums over images drawn anew (`detection.precision`); it would have to run
hundreds of times otherwise. What it prints is held back, since a line of JSON is what programs read.

Legend: n things found in an image, Q images, T thresholds, D things found in all images.
"""

import contextlib
import importlib.util
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from seer.core.errors import RequestError
from seer.data.coco import Scene
from seer.data.outlines import Outline, Runs
from seer.evals.detection import Matched

FIGURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # the first of pycocotools' own, in its order
RECALLS = ("ar1", "ar10", "ar100")
HALF = 0.5  # probability from which a pixel is of a thing


class FoundThings(NamedTuple):
    """Holds what was found in an image, in its own pixels. boxes float64 [n, 4] left, top, right, bottom; labels int64 [n]; scores
    float64 [n]; masks: run lengths, as pycocotools packs them."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: list[dict[str, Any]]


class Measured(NamedTuple):
    """Holds figures by name, nan where there is none, and of each class which of the found things are right."""

    figures: dict[str, float]
    matched: list[Matched]


def require() -> None:
    """Raises RequestError where pycocotools is not installed."""
    if importlib.util.find_spec("pycocotools") is None:
        raise RequestError(
            "COCO's figures are those of pycocotools, which is not installed: pip install 'seer-pretrain[coco]'"
        )


def in_image(said: Mapping[str, Tensor], size: tuple[int, int], scale: tuple[float, float]) -> FoundThings:
    """Returns what a head found, in pixels of the image. said: as `MaskRCNNHead` says of one image. size: height and width of that.
    scale: of x and y, from the view to the image."""
    from pycocotools import mask as packing

    height, width = size
    boxes = said["boxes"].float().cpu() * torch.tensor([*scale, *scale])
    inside = torch.minimum(boxes.clamp(min=0), torch.tensor([width, height] * 2))
    kept = (inside[:, 2:] > inside[:, :2]).all(1)  # the others lie in the padding of the view
    boxes, inside = boxes[kept], inside[kept]
    canvas = [max(side, int(reach) + 2) for side, reach in zip(size, (boxes.amax(0)[[3, 2]] if len(boxes) else size))]
    masks = paste_masks_in_image(said["masks"].float().cpu()[kept, None], boxes, (canvas[0], canvas[1]))[:, 0] > HALF
    masks = masks[:, :height, :width]
    packed = [packing.encode(np.asfortranarray(one)) for one in masks.to(torch.uint8).numpy()]
    labels, scores = (said[name].cpu()[kept] for name in ("labels", "scores"))
    return FoundThings(inside.double().numpy(), labels.numpy(), scores.double().numpy(), packed)


def measured(found: Sequence[FoundThings], scenes: Sequence[Scene], classes: int, kind: str) -> Measured:
    """Returns what was found against what is there. scenes: labels are numbers of `classes`. kind: bbox or segm."""
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        there = _indexed([_there(scene, kind) for scene in scenes], classes)
        answer = _indexed([_answer(one, kind) for one in found], classes)
        one = COCOeval(there, answer, kind)
        one.evaluate()
        one.accumulate()
        one.summarize()
    values = [float("nan") if value < 0 else float(value) for value in one.stats]
    figures = dict(zip((*FIGURES, *RECALLS), values, strict=False))
    images, areas = len(one.params.imgIds), len(one.params.areaRng)
    of_class = [one.evalImgs[k * areas * images : k * areas * images + images] for k in range(classes)]
    return Measured(figures, [_matched(each, len(one.params.iouThrs)) for each in of_class])


def _matched(images: Sequence[dict[str, Any] | None], thresholds: int) -> Matched:
    """Returns what pycocotools matched of one class, things of all sizes."""
    none = np.zeros((thresholds, 0))
    right, wrong, scores, at, there = [none > 0], [none > 0], [np.zeros(0)], [np.zeros(0, np.int64)], []
    for number, image in enumerate(images):
        there.append(0 if image is None else int((np.asarray(image["gtIgnore"]) == 0).sum()))
        if image is not None:
            hit, ignored = image["dtMatches"] > 0, image["dtIgnore"] > 0
            right.append(hit & ~ignored)
            wrong.append(~hit & ~ignored)
            scores.append(np.asarray(image["dtScores"], dtype=np.float64))
            at.append(np.full(len(image["dtScores"]), number))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    sides = [np.concatenate(each, axis=1)[:, order] for each in (right, wrong)]
    return Matched(sides[0], sides[1], np.concatenate(at)[order], np.array(there))


def _indexed(annotations: Sequence[Sequence[dict[str, Any]]], classes: int) -> Any:
    """Returns pycocotools' index of annotations of each image."""
    from pycocotools.coco import COCO

    rows = [{**row, "image_id": image} for image, each in enumerate(annotations) for row in each]
    made = COCO()
    made.dataset = {
        "images": [
            {"id": image, "height": 0, "width": 0} for image in range(len(annotations))
        ],  # looked up, never used
        "categories": [{"id": number} for number in range(classes)],
        "annotations": [{**row, "id": number + 1} for number, row in enumerate(rows)],
    }
    made.createIndex()
    return made


def _there(scene: Scene, kind: str) -> list[dict[str, Any]]:
    rows = []
    for one in scene.things:
        if kind == "segm" and one.outline is None:
            continue
        left, top, right, bottom = one.box
        row = {"bbox": [left, top, right - left, bottom - top], "area": one.area, "iscrowd": int(one.crowd)}
        row["category_id"] = one.label
        if one.outline is not None and kind == "segm":
            assert scene.size is not None
            row["segmentation"] = _packed(one.outline, *scene.size)
        rows.append(row)
    return rows


def _packed(outline: Outline, width: int, height: int) -> Any:
    """Returns run lengths as pycocotools packs them, of polygons drawn as it draws them."""
    from pycocotools import mask as packing

    if isinstance(outline, Runs):
        size = [outline.height, outline.width]
        return packing.frPyObjects({"size": size, "counts": outline.counts.tolist()}, *size)
    return packing.merge(packing.frPyObjects([one.reshape(-1).tolist() for one in outline], height, width))


def _answer(found: FoundThings, kind: str) -> list[dict[str, Any]]:
    from pycocotools import mask as packing

    rows = []
    for box, label, score, mask in zip(found.boxes, found.labels, found.scores, found.masks, strict=True):
        left, top, right, bottom = box.tolist()
        row = {"bbox": [left, top, right - left, bottom - top], "category_id": int(label), "score": float(score)}
        area = (right - left) * (bottom - top) if kind == "bbox" else float(packing.area(mask))
        row |= {"area": area, "iscrowd": 0} | ({"segmentation": mask} if kind == "segm" else {})
        rows.append(row)
    return rows
