"""One view and its targets: against Pillow's crops, torchvision's boxes and masks that say where each pixel came from."""

import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from seer.core.errors import RequestError
from seer.core.records import SKIP_REASONS, Sample, SampleRef
from seer.data.augment import augment_batch
from seer.data.decode import Undecodable, decode_mask
from seer.data.loading.batch_buffer import BatchBuffer, BatchLayout
from seer.data.loading.loader import Loader
from seer.data.loading.reader import Reader
from seer.data.order import plan
from seer.data.transforms.multi_crop import MultiCrop
from seer.data.transforms.one_view import OneView, center
from seer.data.transforms.targets import ClassLabel, ClassLabels
from tests.data.image_files import encoded, pixels

KEYS = np.arange(100, 140, dtype=np.uint64)


class Shard:
    """Samples in memory."""

    classes: tuple[str, ...] | None = None
    path = "memory"

    def __init__(self, rows: list[dict[str, bytes]], classes: tuple[str, ...] | None = None):
        self.rows, self.classes = rows, classes

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, number: int, row: int) -> Sample:
        return Sample(SampleRef(number, row), f"k{row}", self.rows[row])


def sample(**fields: bytes) -> Sample:
    return Sample(SampleRef(0, 0), "k", {name.replace("_", "."): data for name, data in fields.items()})


def filled(view: OneView, samples: list[Sample], painted: bool = False) -> BatchBuffer:
    layout = BatchLayout(view.layout(len(samples), painted=painted), len(samples))
    buffer = layout.buffer(torch.full((layout.bytes,), 77, dtype=torch.uint8))
    draws = view.draws(KEYS[: len(samples)], painted=painted)
    for row, one in enumerate(samples):
        draws.fill(row, view.decode(one), buffer.arrays, row)
    return buffer


def places(height: int, width: int) -> np.ndarray:
    """uint8 [h, w]: a number that tells its row and column modulo 15."""
    y, x = np.indices((height, width))
    return (y % 15 * 15 + x % 15).astype(np.uint8)


def clear(side: int, size: int) -> np.ndarray:
    """bool [size]: pixels whose middle does not fall between two of the image, where Pillow's sums round either way."""
    return (2 * np.arange(size) + 1) * side % (2 * size) != 0


def test_image_and_mask_are_cut_by_the_same_box_and_flip_as_pillow_cuts_them():
    view = OneView(33, mask=True)
    image, mask = pixels(0, 90, 70), places(90, 70)
    one = sample(png=encoded(image, "PNG"), mask_png=encoded(mask, "PNG"))
    found = filled(view, [one] * len(KEYS))
    crop = MultiCrop((33,), (1,), ((0.08, 1.0),))
    flips, compared = set(), 0
    for row, key in enumerate(KEYS.tolist()):
        draw = crop.draw(90, 70, key)
        (top, left, height, width), flip = draw.boxes[0].tolist(), bool(draw.flip[0])
        flips.add(flip)
        box = (left, top, left + width, top + height)
        cut = np.asarray(Image.fromarray(image).crop(box).resize((33, 33), Image.Resampling.BILINEAR)).astype(int)
        numbers = np.asarray(Image.fromarray(mask).crop(box).resize((33, 33), Image.Resampling.NEAREST))
        if flip:
            cut, numbers = cut[:, ::-1], numbers[:, ::-1]
        assert np.abs(found.arrays["views/33"][row].astype(int) - cut).max() <= 1
        sure = clear(height, 33)[:, None] & (clear(width, 33)[::-1] if flip else clear(width, 33))
        compared += int(sure.sum())
        np.testing.assert_array_equal(found.arrays["mask"][row][sure], numbers[sure])
    assert flips == {True, False} and compared > 0.6 * len(KEYS) * 33 * 33


@pytest.mark.parametrize(("height", "width"), [(90, 70), (40, 200), (33, 33), (31, 50)])
def test_the_center_is_that_of_pillow_and_the_mask_lies_on_it(height, width):
    view = OneView(32, train=False, resize=40, mask=True)
    image, mask = pixels(1, height, width), places(height, width)
    found = filled(view, [sample(png=encoded(image, "PNG"), seg_png=encoded(mask, "PNG"))])
    scale = 40 / min(height, width)
    sides = (round(width * scale), round(height * scale))
    left, top = (sides[0] - 32) // 2, (sides[1] - 32) // 2
    box = (left, top, left + 32, top + 32)
    cut = np.asarray(Image.fromarray(image).resize(sides, Image.Resampling.BILINEAR).crop(box)).astype(int)
    assert np.abs(found.arrays["views/32"][0].astype(int) - cut).max() <= 1
    assert (found.tensors["views/32"][0] == center(image, 40, 32)).all()
    numbers = np.asarray(Image.fromarray(mask).resize(sides, Image.Resampling.NEAREST).crop(box))
    sure = clear(height, sides[1])[top : top + 32, None] & clear(width, sides[0])[left : left + 32]
    assert sure.mean() > 0.5
    np.testing.assert_array_equal(found.arrays["mask"][0][sure], numbers[sure])
    assert list(found.tensors) == ["views/32", "mask"]


def test_boxes_go_where_the_pixels_that_they_frame_go():
    """A mask is painted where each box lies; in the view, its extent is that of the box to within a pixel."""
    edges = [[10, 20, 60, 70], [5, 5, 25, 15], [70, 60, 99, 89]]
    for train in (True, False):
        view = OneView(64, train=train, mask=True, boxes=4)
        for box in edges:
            mask = np.zeros((90, 100), np.uint8)
            mask[box[1] : box[3], box[0] : box[2]] = 1
            members = {"boxes_json": json.dumps([[*box, 7]]).encode(), "mask_png": encoded(mask, "PNG")}
            found = filled(view, [sample(png=encoded(pixels(0, 90, 100), "PNG"), **members)] * 20)
            seen = 0
            for row in range(20):
                y, x = np.nonzero(found.arrays["mask"][row])
                if not len(y):
                    continue
                seen += 1
                assert found.arrays["box_count"][row] == 1 and found.arrays["box_label"][row].tolist() == [
                    7,
                    -1,
                    -1,
                    -1,
                ]
                expected = [x.min(), y.min(), x.max() + 1, y.max() + 1]
                assert (
                    np.abs(found.arrays["boxes"][row, 0] - expected).max() <= 1
                    and not found.arrays["boxes"][row, 1:].any()
                )
            assert seen >= 5


def test_boxes_beyond_the_limit_are_counted_and_those_outside_the_view_are_gone():
    many = [[i, i, i + 20, i + 20] for i in range(30)]
    one = sample(png=encoded(pixels(0, 64, 64), "PNG"), boxes_json=json.dumps(many).encode())
    found = filled(OneView(64, train=False, resize=64, boxes=8), [one]).arrays
    assert found["box_count"][0] == 8 and found["box_overflow"][0] == 22
    np.testing.assert_array_equal(found["boxes"][0], many[:8])
    outside = sample(png=encoded(pixels(0, 64, 128), "PNG"), boxes_json=b"[[0, 0, 30, 30], [40, 10, 50, 20]]")
    found = filled(OneView(64, train=False, resize=64, boxes=8), [outside]).arrays
    assert found["box_count"][0] == 1 and found["boxes"][0, 0].tolist() == [8, 10, 18, 20]


def test_classes_are_matched_by_name_whatever_numbers_their_shards_gave_them():
    shards = [Shard([], ("ant", "bee")), Shard([], ("bee", "cat", "ant")), Shard([])]
    label = ClassLabel(shards, ["ant", "bee", "cat"])
    found = [
        label(Sample(SampleRef(s, 0), "k", {"cls": cls})) for s, cls in ((0, b"1"), (1, b"0\n"), (1, b"2"), (1, b"1"))
    ]
    assert found == [1, 1, 0, 2]
    assert ClassLabel(shards, ["5", "3"])(Sample(SampleRef(2, 0), "k", {"cls": b"03"})) == 1
    of = (["a", "b"], [np.array([-1, 0]), np.array([1])])  # found before, by name and not by number
    assert ClassLabel(shards, ["b", "a"], of=of)(Sample(SampleRef(0, 1), "k", {"cls": b"0"})) == 1
    assert ClassLabel(shards, ["b", "a"], of=of)(Sample(SampleRef(1, 0), "k", {})) == 0
    with pytest.raises(Undecodable):
        ClassLabel(shards, ["b", "a"], of=of)(Sample(SampleRef(0, 0), "k", {"cls": b"0"}))
    many = ClassLabels(shards, ["ant", "bee", "cat"])
    for cls, expected in (
        (b"0 2", [1, 1, 0]),
        (b"[1,2]", [1, 0, 1]),
        (b"1", [0, 0, 1]),
        (b"[]", [0, 0, 0]),
        (b"", [0, 0, 0]),
    ):
        assert many(Sample(SampleRef(1, 0), "k", {"cls": cls})).tolist() == expected


GOOD = {"png": encoded(pixels(0, 24, 20), "PNG"), "cls": b"1", "mask.png": encoded(places(24, 20), "PNG")}
GOOD["boxes.json"] = b"[[1, 2, 3, 4]]"
BAD = {
    "no cls": {**GOOD, "cls": None},
    "a word": {**GOOD, "cls": b"dog"},
    "a class that the manifest does not name": {**GOOD, "cls": b"9"},
    "a class that is not learned": {**GOOD, "cls": b"2"},
    "no mask": {**GOOD, "mask.png": None},
    "a mask of another size": {**GOOD, "mask.png": encoded(places(20, 24), "PNG")},
    "a mask of colors": {**GOOD, "mask.png": encoded(pixels(0, 24, 20), "PNG")},
    "a mask of 16 bits": {**GOOD, "mask.png": encoded(places(24, 20).astype(np.uint16), "PNG")},
    "a mask that was changed by writing": {**GOOD, "mask.png": encoded(places(24, 20), "JPEG")},
    "half a mask": {**GOOD, "mask.png": GOOD["mask.png"][:60]},
    "no boxes": {**GOOD, "boxes.json": None},
    "boxes that are no JSON": {**GOOD, "boxes.json": b"[[1, 2"},
    "boxes of three numbers": {**GOOD, "boxes.json": b"[[1, 2, 3]]"},
    "boxes of words": {**GOOD, "boxes.json": b'[["a", 2, 3, 4]]'},
    "boxes turned over": {**GOOD, "boxes.json": b"[[9, 2, 3, 4]]"},
    "boxes without end": {**GOOD, "boxes.json": b"[[1, 2, Infinity, 4]]"},
}


@pytest.mark.parametrize("name", BAD)
def test_a_sample_whose_target_is_bad_is_replaced_and_told_as_that(name):
    rows = [GOOD, {k: v for k, v in BAD[name].items() if v is not None}, GOOD]
    shards = [Shard(rows, ("ant", "bee", "cat"))]
    view = OneView(16, mask=True, boxes=2, label=ClassLabel(shards, ["bee", "ant"]))
    loader = Loader(Reader(shards, plan([3], seed=0, lanes=1), 0), view, batch=3, threads=0)
    batch = next(loader.batches(0))
    assert [(s.row, s.kind, s.attempt) for s in batch.skipped] == [(1, "target", 0)] and SKIP_REASONS[-1] == "target"
    assert batch.fields["label"].tolist() == [0, 0, 0] and batch.fields["box_count"].max() <= 1


def grays(bits: int, kind: int, values: np.ndarray) -> bytes:
    """A PNG by the letter of its standard. kind: of color, 0 gray or 3 of a palette."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape
    lines = b""
    for line in values:
        packed = "".join(f"{v:0{bits}b}" for v in line.tolist()).ljust(-(-width * bits // 8) * 8, "0")
        lines += b"\0" + int(packed, 2).to_bytes(len(packed) // 8, "big")
    palette = chunk(b"PLTE", bytes(range(3 * 2**bits))) if kind == 3 else b""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + palette + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", [0, 3])
@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_mask_of_few_bits_holds_the_numbers_that_were_written(bits, kind):
    values = np.random.default_rng(bits).integers(0, 2**bits, (9, 13))
    np.testing.assert_array_equal(decode_mask(grays(bits, kind, values)), values)
    whole = np.random.default_rng(9).integers(0, 256, (9, 13))
    np.testing.assert_array_equal(decode_mask(grays(8, 0, whole)), whole)


def test_color_is_drawn_only_where_it_is_asked_for_and_painted_where_it_is_asked_for():
    one = sample(png=encoded(pixels(0, 40, 40), "PNG"))
    plain = OneView(16)
    strong = OneView(16, jitter=1.0, brightness=0.8, hue=0.2, grayscale=0.3, blur=0.5)
    assert list(plain.layout(2)) == ["views/16"] == list(OneView(16, train=False, jitter=1.0, hue=0.2).layout(2))
    assert len(strong.layout(2)) == 6 and list(strong.layout(2, painted=True)) == ["views/16"]
    later, here = filled(strong, [one] * 8), filled(strong, [one] * 8, painted=True)
    np.testing.assert_array_equal(later.arrays["views/16"], filled(plain, [one] * 8).arrays["views/16"])
    a, b = (augment_batch(x.tensors, 16, strong.mean, strong.std) for x in (later, here))
    assert (
        (a - b).abs().mean()
        < 0.03
        < (a - augment_batch(filled(plain, [one] * 8).tensors, 16, plain.mean, plain.std)).abs().mean()
    )


@pytest.mark.parametrize("wrong", [{"size": 4}, {"resize": 100}, {"boxes": -1}, {"scale": (0.5, 2)}, {"jitter": 2}])
def test_numbers_that_do_not_fit_are_refused(wrong):
    with pytest.raises(RequestError):
        OneView(**{"size": 224, **wrong})


def test_damaged_masks_are_undecodable_whatever_is_wrong_with_them():
    data, random = encoded(places(24, 20), "PNG"), np.random.default_rng(0)
    outcomes = set()
    for _ in range(300):
        broken = bytearray(data)
        broken[int(random.integers(len(data)))] ^= 1 << int(random.integers(8))
        try:
            outcomes.add(decode_mask(bytes(broken)).dtype.name)
        except Undecodable as error:
            outcomes.add(error.kind)
    assert outcomes == {"uint8", "target"}
