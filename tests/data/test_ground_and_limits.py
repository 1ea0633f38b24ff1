"""What lies under transparency, and how large an image may be."""

import io

import numpy as np
import pytest
from PIL import Image

from seer.core.errors import RequestError
from seer.core.records import Sample, SampleRef
from seer.data.decode import Undecodable, decode, reencoded
from seer.data.pixels import MOST_PIXELS, USUAL, Pixels, pixels
from seer.data.transforms.multi_crop import MultiCrop
from seer.data.transforms.one_view import OneView
from tests.data import image_files as images
from tests.data.image_files import encoded
from tests.messages import naming


def drawing(form: str = "PNG", **how: object) -> bytes:
    """A black square on a transparent ground."""
    logo = np.zeros((40, 40, 4), np.uint8)
    logo[10:30, 10:30, 3] = 255
    return encoded(Image.fromarray(logo), form, **how)


@pytest.mark.parametrize(("word", "level"), [("black", 0), ("white", 255), ("gray", 128), (200, 200), (None, 0)])
def test_a_ground_is_a_word_or_a_level(word, level):
    for data in (drawing(), drawing("WEBP", lossless=True), drawing("TIFF")):
        found = decode(data, None, pixels(word))
        assert (found[:10] == level).all() and (found[10:30, 10:30] == 0).all()


@pytest.mark.parametrize("word", ["pink", -1, 256, True, 0.5])
def test_another_ground_is_refused(word):
    with pytest.raises(RequestError, match="ground"):
        pixels(word)


def test_what_is_half_transparent_is_mixed_with_its_ground_and_what_is_not_keeps_every_bit():
    rgba = np.dstack([images.pixels(7), np.full((24, 20), 51, dtype=np.uint8)])
    found = decode(encoded(rgba, "PNG"), None, Pixels(ground=255))
    assert np.abs(found - (rgba[..., :3] * 0.2 + 255 * 0.8)).max() <= 1
    for form in ("JPEG", "PNG", "WEBP", "BMP"):
        data = encoded(images.pixels(7), form)
        np.testing.assert_array_equal(decode(data, None, Pixels(ground=255)), decode(data))


LIMIT = Pixels(most=500_000)  # in place of 50 million, so that tests take no time


def large(height: int = 640, width: int = 960, **how: object) -> bytes:
    """A JPEG of more pixels than LIMIT has."""
    return encoded(images.pixels(3, height, width), quality=95, **how)


@pytest.fixture(scope="module")
def straight() -> bytes:
    return large()


def test_a_large_jpeg_is_refused_unless_less_of_it_suffices(straight):
    for more in ({}, {"shorter": 600}, {"longer": 900}):
        with pytest.raises(Undecodable, match=naming("960 x 640", 500000, "max_pixels")) as refused:
            decode(straight, None, LIMIT, **more)
        assert refused.value.kind == "size"
    assert decode(straight, None, Pixels(most=620_000)).shape == (640, 960, 3)
    with pytest.raises(Undecodable, match=naming(500000, "max_pixels")):
        decode(encoded(Image.new("L", (960, 640)), "PNG"), None, LIMIT, shorter=10)  # of a PNG no less can be decoded


def test_the_scale_leaves_twice_what_suffices_or_else_that(straight):
    for suffices, shape in ((40, (80, 120)), (41, (160, 240)), (81, (320, 480)), (320, (320, 480))):
        found = decode(straight, None, LIMIT, shorter=suffices)
        assert found.shape == (*shape, 3)
        reference = Image.open(io.BytesIO(straight)).reduce(640 // shape[0])
        assert np.abs(found.astype(int) - np.asarray(reference)).mean() < 1
    assert decode(straight, None, LIMIT, longer=60).shape == (80, 120, 3)


@pytest.mark.parametrize("how", [{"progressive": True}, {"exif": True}, {"keep_rgb": True}])
def test_one_that_pillow_decodes_is_reduced_alike(straight, how):
    if "exif" in how:
        how = {"exif": Image.Exif()}
        how["exif"][0x0112] = 6
    found = decode(large(**how), None, LIMIT, shorter=40)
    upright = np.rot90(found) if found.shape[0] > found.shape[1] else found
    assert np.abs(upright.astype(int) - decode(straight, None, LIMIT, shorter=40)).mean() < 0.5


@pytest.mark.parametrize("side", [50, 100, 400])
def test_a_large_jpeg_is_stored_as_one_of_the_side_that_is_asked_for(straight, side):
    kind, data = reencoded(straight, side, None, LIMIT)
    stored = np.asarray(Image.open(io.BytesIO(data)))
    assert kind == "jpg" and stored.shape == (round(side * 2 / 3), side, 3)
    whole = Image.open(io.BytesIO(straight)).resize((side, round(side * 2 / 3)), Image.Resampling.LANCZOS)
    assert np.abs(stored.astype(int) - np.asarray(whole)).mean() < 3


def test_images_within_the_limit_are_stored_with_the_bytes_of_their_whole_decoding():
    data = images.jpeg(2, 1600, 1200)
    whole = Image.fromarray(decode(data)).resize((75, 100), Image.Resampling.LANCZOS)
    assert reencoded(data, 100, None) == ("jpg", encoded(whole, quality=90))


def test_crops_take_a_reduced_image_where_no_target_is_told_in_its_pixels(straight):
    sample = Sample(SampleRef(0, 0), "a", {"jpg": straight})
    assert MultiCrop().suffices == 599  # 224 / sqrt(0.14)
    crop = MultiCrop((32, 16), (1, 1), ((0.25, 1.0), (0.0625, 0.25)), pixels=LIMIT)
    assert crop.suffices == 64 and crop.decode(sample)["image"].shape == (160, 240, 3)
    assert OneView(32, scale=(0.25, 1.0), pixels=LIMIT).decode(sample)["image"].shape == (160, 240, 3)
    boxes = Sample(SampleRef(0, 0), "a", {"jpg": straight, "boxes.json": b"[[0,0,9,9]]"})
    with pytest.raises(Undecodable, match=naming("960 x 640", 500000, "max_pixels")):
        OneView(32, boxes=2, pixels=LIMIT).decode(boxes)
    assert USUAL.most == MOST_PIXELS == 50_000_000


@pytest.mark.slow
def test_a_photo_of_108_megapixels_is_stored_small():
    data = encoded(Image.new("L", (12_000, 9_000), 77))
    for _ in range(2):
        kind, stored = reencoded(data, 512, None)
        found = np.asarray(Image.open(io.BytesIO(stored)))
        assert kind == "jpg" and found.shape == (384, 512, 3) and (found == 77).all()
