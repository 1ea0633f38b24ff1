"""Heads whose images ranks share out are judged as by one process, to the last bit: every kind, also where images cannot be used."""

import contextlib
import io
import json
import math

import numpy as np
import pytest
import torch

from seer.data.shards.open import open_shards
from seer.data.transforms.one_view import OneView
from seer.data.transforms.whole_image import WholeImage
from seer.evals import heads as judge
from seer.evals.heads import Heads
from seer.evals.target_images import TargetImages
from seer.models.regnet import RegNet
from seer.tasks.heads import HeadsTask
from tests.data.image_files import encoded
from tests.ranks import run_ranks

BATCH = 3  # 11 images fall into four blocks, which two and three ranks share out unevenly
BROKEN = (3, 4, 5, 9)  # the whole of the second block: the rank whose turn it is has nothing to run the network on
KINDS = {
    "what": {"kind": "classify", "classes": ["a", "b"]},
    "where": {"kind": "map", "classes": ["x", "y", "z"], "stages": ["stage1"]},
    "size": {"kind": "regress"},
    "things": {"kind": "detect", "classes": ["u"], "width": 8},
}


def samples(place):
    """Eleven images with every target, as a folder of samples; one of COCO's form says where their squares lie."""
    g, images, rows = np.random.default_rng(0), [], []
    place.mkdir()
    for i in range(11):
        image = g.integers(0, 60, (32, 32, 3)).astype(np.uint8)
        (x, y), side = (int(n) for n in g.integers(2, 14, 2)), int(g.integers(8, 16))
        image[y : y + side, x : x + side, i % 2] = 255
        mask = np.zeros((32, 32), dtype=np.uint8)
        mask[y : y + side, x : x + side] = 1 + i % 2
        data = encoded(image, "PNG")
        members = {"png": data[: 40 if i in BROKEN else None], "cls": b"%d" % (i % 2), "mask.png": encoded(mask, "PNG")}
        members |= {"boxes.json": json.dumps([[x, y, x + side, y + side, 0]]).encode()}
        members |= {"value.json": json.dumps(side / 16).encode()}
        yield f"{i:03d}", members
        corners = [x, y, x + side, y, x + side, y + side, x, y + side]
        rows.append({"id": i, "image_id": i, "category_id": 1, "bbox": [x, y, side, side], "iscrowd": int(i == 2)})
        runs = {"size": [32, 32], "counts": [x * 32, 32 * side, 1024 - 32 * (x + side)]}
        rows[-1] |= {"area": side * side, "segmentation": runs if i == 2 else [corners]}
        images.append({"id": i, "file_name": f"{i:03d}.png", "width": 32, "height": 32})
        (place / f"{i:03d}.png").write_bytes(members["png"])
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "u"}]}
    (place.parent / "coco.json").write_text(json.dumps(content))


def body() -> RegNet:
    torch.manual_seed(0)
    return RegNet(widths=[8, 16, 24], depths=[1, 1, 1], group_widths=[8, 8, 8], stem_stride=1)


def told(task, images: TargetImages, known: TargetImages | None, world) -> dict:
    """What the heads come to, numbers as their bits, and which rows this rank has read itself."""
    read, one_row = set(), images._one
    images._one = lambda place: (read.add(place[1]), one_row(place))[1]
    for one in {id(one): one for one in (images, known) if one is not None}.values():
        one.group = world.group
    how = {"mean": task.transform.mean, "std": task.transform.std, "draws": 20, "batch": BATCH, "threads": 1}
    with contextlib.redirect_stderr(io.StringIO()):
        found = Heads(images, known, **how).judge(task)
    figures = {name: value.hex() for name, value in found.figures.items()}
    bounds = {name: [end.hex() for end in one] for name, one in found.intervals.items()}
    thresholds = {name: list(values) for name, values in getattr(task, "thresholds", {}).items()}
    return {
        "figures": figures,
        "bounds": bounds,
        "told": found.told,
        "tables": found.tables,
        "thresholds": thresholds,
        "read": sorted(read),
    }


def all_kinds(world, shards: str) -> dict:
    torch.set_num_threads(1)
    task, tags = HeadsTask(body(), OneView(32), heads=KINDS), {"h": {"kind": "tags", "classes": ["a", "b"]}}
    opened = open_shards(shards)
    images = TargetImages(opened, task.targets, size=32, classes=("a", "b"), values=1)
    found = {"all": told(task, images, None, world)}
    judge.MOST_CELLS = 40  # three images of the map share a confusion, also where they lie in two blocks
    found["together"] = told(
        task, TargetImages(opened, task.targets, size=32, classes=("a", "b"), values=1), None, world
    )
    task = HeadsTask(body(), OneView(32), heads=tags)
    images = TargetImages(opened, task.targets, size=32, classes=("a", "b"))
    found["tags"] = told(task, images, images, world)
    return found


def masks(world, folder: str, word: str) -> dict:
    torch.set_num_threads(1)
    head = {"kind": "mask_rcnn", "classes": ["u"], "stages": ["stage2", "stage3"], "width": 16}
    task = HeadsTask(body(), WholeImage(32), heads={"h": head})
    images = TargetImages(
        open_shards(folder), task.targets, size=32, word=word, box_classes=task.box_classes, whole=True
    )
    return told(task, images, None, world)


@pytest.mark.slow
def test_heads_of_every_kind_are_judged_the_same_on_one_two_and_three_ranks(tmp_path):
    from seer.data.shards.writer import write_shards

    write_shards(
        list(samples(tmp_path / "loose")), tmp_path / "x", total=11, per_shard=11, card={"classes": ["a", "b"]}
    )
    (alone,) = run_ranks(all_kinds, 1, str(tmp_path / "x"))
    assert {"what/top1", "where/miou", "size/error", "things/ap"} <= set(alone["all"]["figures"])
    assert alone["all"]["told"]["images"] == 7 and sum(alone["all"]["told"]["left_out"].values()) == 4
    assert alone["tags"]["thresholds"] and not math.isnan(float.fromhex(alone["tags"]["figures"]["h/map"]))
    assert alone["together"]["figures"] == alone["all"]["figures"]
    assert alone["together"]["bounds"]["where/miou"] != alone["all"]["bounds"]["where/miou"]
    for ranks in (2, 3):
        each = run_ranks(all_kinds, ranks, str(tmp_path / "x"))
        for part in alone:
            assert sorted(row for one in each for row in one[part].pop("read")) == list(range(11))  # none of them twice
        expected = {part: {name: value for name, value in of.items() if name != "read"} for part, of in alone.items()}
        assert all(one == expected for one in each)


@pytest.mark.slow
def test_things_with_masks_are_judged_the_same_on_two_ranks(tmp_path):
    pytest.importorskip("pycocotools")
    list(samples(tmp_path / "loose"))
    given = (masks, 2, str(tmp_path / "loose"), str(tmp_path / "coco.json"))
    (alone,) = run_ranks(masks, 1, *given[2:])
    assert alone["told"]["images"] == 7 and {"h/ap", "h/mask_ap50"} <= set(alone["figures"])
    each = run_ranks(*given)
    assert [one.pop("read") for one in each] == [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10]] and alone.pop("read")
    assert all(one == alone for one in each)
