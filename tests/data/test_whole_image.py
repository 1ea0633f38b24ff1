"""Whole images and their things: the pixels of a drawn thing, its mask and its box are one and the same after every draw."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from seer.data.coco import read_things
from seer.data.decode import Undecodable
from seer.data.shards.open import open_shards
from seer.data.transforms.file_things import FileThings
from seer.data.transforms.whole_image import VOID, WholeImage
from seer.models.heads.mask_rcnn import things_of

LEFT, TOP, RIGHT, BOTTOM = 40, 24, 104, 64  # of the thing, in an image of 160 x 96


def folder_with(tmp_path, annotations: list[dict], size=(160, 96), stated=(160, 96)):
    pixels = np.full((size[1], size[0], 3), 30, np.uint8)
    pixels[TOP:BOTTOM, LEFT:RIGHT] = 230
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "png")
        (tmp_path / "images" / f"{name}.png").write_bytes(data.getvalue())
    rows = [{"id": i + 1, "image_id": 1, "category_id": 1, **row} for i, row in enumerate(annotations)]
    images = [{"id": 1, "file_name": "a.png", "width": stated[0], "height": stated[1]}]
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "things.json").write_text(json.dumps(content))
    shards = open_shards(tmp_path / "images")
    return shards, FileThings(shards, read_things(str(tmp_path / "things.json")))


def square(left=LEFT, top=TOP, right=RIGHT, bottom=BOTTOM, **more) -> dict:
    outline = [[left, top, right, top, right, bottom, left, bottom]]
    return {"bbox": [left, top, right - left, bottom - top], "segmentation": outline, **more}


def runs() -> dict:
    mask = np.zeros((96, 160), bool)
    mask[TOP:BOTTOM, LEFT:RIGHT] = True
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat.astype(np.int8))) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {**square(), "segmentation": {"size": [96, 160], "counts": counts}}


def shown(shards, things, key: int, most: int = 4, row: int = 0, **words):
    view = WholeImage(64, **words)
    view.things, view.boxes, view.instances = things, most, most
    layout = view.layout(1, painted=True)
    arrays = {}
    for name, (kind, shape) in layout.items():
        shape = (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape
        arrays[name] = torch.full(shape, 7, dtype=kind).numpy()
    decoded = view.decode(shards[0].read(0, row))
    view.draws(np.array([key], dtype=np.uint64), painted=True).fill(0, decoded, arrays, 0)
    fields = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return fields, things_of(fields, (64, 64))[0]


def test_the_longest_side_fits_and_the_rest_is_the_mean_color(tmp_path):
    fields, found = shown(*folder_with(tmp_path, [square()]), 0, train=False)
    view = fields["views/64"][0]
    assert fields["image_size"].tolist() == [[96, 160]]
    assert (view[38:] == torch.tensor([124, 116, 104])).all() and not (view[:38] == 124).any()
    assert found["boxes"].tolist() == pytest.approx(
        np.array([[LEFT * 0.4, TOP * 38 / 96, RIGHT * 0.4, BOTTOM * 38 / 96]]), abs=1e-4
    )
    assert found["labels"].tolist() == [1]


@pytest.mark.parametrize("outline", [square, runs])
@pytest.mark.parametrize("key", range(6))
def test_mask_box_and_pixels_follow_one_draw(tmp_path, outline, key):
    fields, found = shown(*folder_with(tmp_path, [outline()]), key, flip=0.5, scale=(0.4, 1.0))
    bright = fields["views/64"][0][..., 0] > 130
    (mask,) = found["masks"].bool()
    ys, xs = bright.nonzero().unbind(1)
    edges = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
    assert (mask ^ bright).sum() <= 0.06 * bright.sum()  # half a pixel along the border
    assert (found["boxes"][0] - edges).abs().max() <= 1.01


def test_draws_differ_in_place_and_side(tmp_path):
    data = folder_with(tmp_path, [square()])
    lefts = {round(float(shown(*data, key, scale=(0.4, 1.0))[1]["boxes"][0, 0])) for key in range(8)}
    assert len(lefts) > 4
    assert {round(float(shown(*data, key)[1]["boxes"][0, 0])) for key in range(8)} == {16, 64 - round(RIGHT * 0.4)}


def test_crowds_and_what_has_no_outline_teach_nothing_and_stay_in_the_scene(tmp_path):
    shards, things = folder_with(tmp_path, [square(iscrowd=1), square(0, 0, 20, 20), {"bbox": [50, 50, 20, 20]}])
    fields, found = shown(shards, things, 0, train=False)
    assert fields["box_count"].item() == 1 and found["boxes"][0].tolist() == pytest.approx(
        [0, 0, 8, 20 * 38 / 96], abs=1e-4
    )
    sample = shards[0].read(0, 0)
    assert len(things.scene(sample, np.zeros((96, 160, 3))).things) == 3


def test_more_things_than_there_is_room_for_are_counted(tmp_path):
    rows = [square(10 * i, 0, 10 * i + 10, 10) for i in range(7)]
    fields, found = shown(*folder_with(tmp_path, rows), 0, most=4, train=False)
    assert fields["box_count"].item() == 4 and fields["box_overflow"].item() == 3 and len(found["masks"]) == 4


def test_a_thing_smaller_than_a_pixel_is_none(tmp_path):
    fields, _ = shown(*folder_with(tmp_path, [square(10, 10, 11, 11), square()]), 0, train=False)
    assert fields["box_count"].item() == 1 and fields["box_overflow"].item() == 0


@pytest.mark.parametrize(("stated", "row", "words"), [((96, 160), 0, "160 x 96"), ((160, 96), 1, "does not list")])
def test_an_image_of_another_size_or_unlisted_is_the_ledgers(tmp_path, stated, row, words):
    shards, things = folder_with(tmp_path, [square(0, 0, 50, 50)], stated=stated)
    with pytest.raises(Undecodable) as caught:
        shown(shards, things, 0, row=row)
    assert caught.value.kind == "target" and words in str(caught.value)


def test_a_mask_of_classes_is_void_where_the_image_ends():
    view = WholeImage(32, train=False, mask=True)
    mask = (np.arange(64)[None] >= 32).astype(np.uint8).repeat(32, 0)
    arrays = {
        "views/32": np.zeros((1, 32, 32, 3), np.uint8), "mask": np.zeros((1, 32, 32), np.uint8), "image_size": np.zeros((1, 2), np.int64)
    }  # fmt: skip
    view.draws(np.zeros(1, np.uint64)).fill(0, {"image": np.zeros((32, 64, 3), np.uint8), "mask": mask}, arrays, 0)
    assert (arrays["mask"][0, 16:] == VOID).all() and (arrays["mask"][0, :16, :16] == 0).all()
    assert (arrays["mask"][0, :16, 16:] == 1).all()
