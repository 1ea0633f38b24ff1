"""A crowd of a COCO file is neither there nor wrong for `detect`, as pycocotools has it; training never sees one."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from seer.data.coco import read_things
from seer.data.shards.open import open_shards
from seer.data.transforms.file_things import FileThings, crowd_of
from seer.evals import detection, heads
from seer.evals.target_images import TargetImages
from tests.data.image_files import encoded

SIDE = 64
THING, CROWD = [4, 4, 20, 20], [36, 36, 20, 20]  # left, top, width, height
NAMES = ("a", "b")


@pytest.fixture
def places(tmp_path):
    """A folder of one image and its file: a thing of class a and a crowd of class b."""
    pixels = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "one.png").write_bytes(encoded(pixels, "PNG"))
    row = {"image_id": 1, "area": 400, "segmentation": []}
    annotations = [
        {**row, "id": 1, "category_id": 3, "bbox": THING, "iscrowd": 0},
        {**row, "id": 2, "category_id": 5, "bbox": CROWD, "iscrowd": 1},
    ]
    file = {
        "images": [{"id": 1, "file_name": "one.png", "width": SIDE, "height": SIDE}],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "a"}, {"id": 5, "name": "b"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(file))
    return tmp_path


def judged(places, monkeypatch):
    """Returns what is judged of one box on the thing and, on the crowd, one box of each class."""
    images = TargetImages(
        open_shards(str(places / "images")),
        ("boxes", "box_label", "box_count"),
        size=SIDE,
        resize=SIDE,
        word=str(places / "coco.json"),
        box_classes=NAMES,
    )
    (fields,) = images.batches(4, threads=1)
    edges = torch.tensor([[4, 4, 24, 24], [36, 36, 56, 56], [36, 36, 56, 56]], dtype=torch.float32)
    found = SimpleNamespace(edges=edges, labels=torch.tensor([0, 0, 1]), scores=torch.tensor([0.9, 0.8, 0.7]))
    monkeypatch.setattr(heads, "boxes_of", lambda said, side: [found])
    parts: heads.Parts = {}
    heads._take_boxes(parts, (), fields, SimpleNamespace(count=2), 1)
    return [detection.matched(parts["answers"], label) for label in range(2)]


def test_what_is_found_in_a_crowd_is_neither_right_nor_wrong(places, monkeypatch):
    monkeypatch.setattr(heads, "Cells", lambda *parts: parts)
    a, b = judged(places, monkeypatch)
    assert (int(a.there.sum()), int(b.there.sum())) == (1, 0)
    assert a.right[0].tolist() == [True, False] and a.wrong[0].tolist() == [False, True]  # a crowd of b is none of a
    assert not b.right.any() and not b.wrong.any()


def test_training_sees_no_crowd(places):
    shards = open_shards(str(places / "images"))
    things = read_things(str(places / "coco.json")).among(NAMES)
    sample, image = shards[0].read(0, 0), np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    assert FileThings(shards, things).boxes(sample, image).labels.tolist() == [0]
    assert FileThings(shards, things, crowds=True).boxes(sample, image).labels.tolist() == [0, crowd_of(1)]
