"""Images of one, four and more channels: bands of TIFFs against a writer of our own, crops and colors against three."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from seer.core.errors import RequestError
from seer.core.records import Sample, SampleRef, example_batch
from seer.data import augment
from seer.data.decode import Undecodable, decode
from seer.data.pixels import Pixels
from seer.data.transforms import color
from seer.data.transforms.multi_crop import MultiCrop
from seer.data.transforms.one_view import OneView
from tests.data import image_files as images
from tests.data.image_files import encoded
from tests.messages import naming


def tiff(
    x: np.ndarray, order: str = "<", planar: bool = False, packed: bool = False, tile: int = 0, turn: int = 1
) -> bytes:
    """A TIFF of uint8 or uint16 [h, w, C] by TIFF 6.0. packed: by deflate with predictor 2."""
    height, width, bands = x.shape
    planes = [x[..., i : i + 1] for i in range(bands)] if planar else [x]
    rows, columns = (tile, tile) if tile else (7, width)
    pieces = []
    for plane in planes:
        for top, left in itertools.product(range(0, height, rows), range(0, width, columns)):
            piece = plane[top : top + rows, left : left + columns]
            if tile:
                piece = np.pad(piece, ((0, rows - piece.shape[0]), (0, columns - piece.shape[1]), (0, 0)), mode="edge")
            if packed:
                piece = np.concatenate([piece[:, :1], piece[:, 1:] - piece[:, :-1]], axis=1)
            data = piece.astype(x.dtype.newbyteorder(order)).tobytes()
            pieces.append(zlib.compress(data) if packed else data)
    bits = x.dtype.itemsize * 8
    tags = {256: [width], 257: [height], 258: [bits] * bands, 259: [8 if packed else 1], 262: [1], 274: [turn]}
    tags |= {277: [bands], 284: [2 if planar else 1], 317: [2 if packed else 1], 338: [0] * (bands - 1)}
    tags |= {322: [tile], 323: [tile]} if tile else {278: [rows]}
    starts = 8 + np.cumsum([0, *map(len, pieces)])
    tags |= {(324 if tile else 273): starts[:-1].tolist(), (325 if tile else 279): [len(p) for p in pieces]}
    at = int(starts[-1]) + 2 + 12 * len(tags) + 4
    entries, lists = b"", b""
    for tag, values in sorted(tags.items()):
        data = struct.pack(f"{order}{len(values)}I", *values)
        place = data if len(values) == 1 else struct.pack(f"{order}I", at + len(lists))
        entries += struct.pack(f"{order}HHI", tag, 4, len(values)) + place
        lists += data if len(values) > 1 else b""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", int(starts[-1]))
    return head + b"".join(pieces) + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + lists


def bands(count: int, height: int = 40, width: int = 50, kind: type = np.uint16) -> np.ndarray:
    """uint [h, w, C] of smooth bands that differ."""
    planes = [images.pixels(10 + i, height, width)[..., i % 3] for i in range(count)]
    return np.stack(planes, axis=2).astype(kind) * (257 if kind is np.uint16 else 1) + np.arange(count, dtype=kind)


@pytest.mark.parametrize("count", [2, 4, 5, 13])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_every_band_of_a_tiff_is_read_however_it_is_laid_out(count, kind):
    x = bands(count, kind=kind)
    expected = x if kind is np.uint8 else np.round(x / 257).astype(np.uint8)
    for order, planar, packed, tile in itertools.product("<>", (False, True), (False, True), (0, 32)):
        found = decode(tiff(x, order, planar, packed, tile), None, Pixels(channels=count))
        assert found.dtype == np.uint8 and found.flags.c_contiguous
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("turn", range(1, 9))
def test_bands_are_turned_upright(turn):
    x = bands(3, kind=np.uint8)
    five = np.concatenate([x, x[..., :2]], axis=2)
    exif = Image.Exif()
    exif[0x0112] = turn
    upright = decode(encoded(x, "PNG", exif=exif))
    np.testing.assert_array_equal(decode(tiff(five, turn=turn), None, Pixels(channels=5))[..., :3], upright)


def test_rgba_is_four_channels_where_four_are_asked_for_and_other_counts_are_told():
    x = bands(4, kind=np.uint8)
    for data in (encoded(x, "PNG"), encoded(x, "WEBP", lossless=True, exact=True), encoded(x, "TIFF")):
        np.testing.assert_array_equal(decode(data, None, Pixels(channels=4)), x)
    for data in (images.jpeg(1), images.png(1), tiff(bands(5))):
        with pytest.raises(Undecodable, match=r"channels, where data\.channels=4") as refused:
            decode(data, None, Pixels(channels=4))
        assert refused.value.kind == "format"


@pytest.mark.parametrize("damage", ["cut", "floats", "bits", "bomb"])
def test_a_tiff_of_bands_that_cannot_be_read_is_told(damage):
    data = bytearray(tiff(bands(5), packed=True))
    directory = int.from_bytes(data[4:8], "little")

    def entry(tag: int) -> int:
        return next(a for a in range(directory + 2, len(data), 12) if int.from_bytes(data[a : a + 2], "little") == tag)

    if damage == "cut":
        data[30:60] = bytes(30)
    elif damage == "bomb":
        data[entry(256) + 8 : entry(256) + 12] = struct.pack("<I", 2_000_000)
        data[entry(257) + 8 : entry(257) + 12] = struct.pack("<I", 2_000_000)
    elif damage == "bits":
        at = struct.unpack_from("<I", data, entry(258) + 8)[0]
        data[at : at + 20] = struct.pack("<5I", *[12] * 5)
    else:
        data[entry(317) : entry(317) + 12] = struct.pack("<HHII", 339, 4, 1, 3)  # of floats, in place of the predictor
    with pytest.raises(Undecodable):
        decode(bytes(data), None, Pixels(channels=5))


def test_one_channel_is_the_gray_of_the_image_and_of_16_bits():
    gray = Pixels(channels=1)
    for data in (images.jpeg(1), images.png(1), encoded(Image.fromarray(images.pixels(1)).convert("L"), "PNG")):
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
        np.testing.assert_array_equal(decode(data, np.empty(9999, np.uint8), gray), expected[..., None])
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for form in ("PNG", "TIFF"):
        found = decode(encoded(Image.fromarray(ramp), form), None, gray)
        np.testing.assert_array_equal(found[..., 0], np.round(ramp / 257))


def filled(crop: MultiCrop | OneView, data: bytes, ending: str, painted: bool) -> dict[str, np.ndarray]:
    arrays = {}
    for name, (kind, shape) in crop.layout(2, painted=painted).items():
        shape = (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape
        arrays[name] = torch.zeros(shape, dtype=kind).numpy()
    draws = crop.draws(np.array([3, 4], np.uint64), painted=painted)
    for i in range(2):
        draws.fill(i, crop.decode(Sample(SampleRef(0, i), "a", {ending: data})), arrays, i)
    return arrays


PLAIN = {"jitter": 0.0, "grayscale": 0.0, "blur": 0.0}
SMALL = {"sizes": (32, 16), "counts": (2, 1), "scales": ((0.3, 1.0), (0.1, 0.3))}


@pytest.mark.parametrize("count", [1, 4, 5])
def test_views_of_any_count_of_channels_are_cut_as_those_of_three(count):
    x = bands(count, kind=np.uint8)
    found = filled(MultiCrop(**SMALL, **PLAIN, pixels=Pixels(channels=count)), tiff(x), "png", True)
    for channel in range(count):
        same = np.repeat(x[..., channel : channel + 1], 3, axis=2)
        expected = filled(MultiCrop(**SMALL, **PLAIN), encoded(same, "PNG"), "png", True)
        for name in ("views/32", "views/16"):
            assert expected[name].shape[-1] == 3 and found[name].shape[-1] == count
            np.testing.assert_array_equal(found[name][..., channel], expected[name][..., 0])


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_colors_of_other_channels_are_those_that_have_a_meaning_on_host_and_device_alike(count):
    """Without hue, saturation and grayscale a gray image is jittered as one of three equal channels is."""
    x = bands(count, 64, 64, np.uint8)
    how = {"jitter": 1.0, "grayscale": 1.0, "blur": 0.5, "pixels": Pixels(channels=count)}
    crop = MultiCrop((32,), (2,), ((0.5, 1.0),), **how)
    assert crop.gray == 0 and crop.strength.tolist() == [0.8, 0.8, 0.0, 0.0]
    painted = filled(crop, tiff(x), "png", True)["views/32"]
    later = filled(crop, tiff(x), "png", False)
    fields = {name: torch.from_numpy(one) for name, one in later.items()}
    fields["views/32"] = fields["views/32"].permute(0, 3, 1, 2)
    finished = augment.augment_batch(fields, 32, (0.0,) * count, (1.0,) * count).permute(0, 2, 3, 1) * 255
    assert np.abs(painted - later["views/32"].astype(int)).mean() > 2
    assert np.abs(finished.numpy() - painted).mean() < 1
    if count == 1:
        view = np.ascontiguousarray(x[:32, :32])
        three = np.repeat(view, 3, axis=2)
        for one in (view, three):
            color.jitter(one, [1, 0], [1.3, 0.7, 1.0, 0.0])
            color.blur(one, 1.2)
        assert np.abs(three[..., :1].astype(int) - view).max() <= 1


def test_numbers_that_normalize_are_one_a_channel():
    for kind in (MultiCrop, OneView):
        assert kind().mean == (0.485, 0.456, 0.406)
        gray = kind(pixels=Pixels(channels=1))
        assert gray.mean == (0.449,) and gray.std == (0.226,)
        assert kind(pixels=Pixels(channels=2), mean=[0.1, 0.2], std=[0.3, 0.4]).mean == (0.1, 0.2)
        for wrong in ([0.5], [0.5] * 3, [0.5] * 5, 0.5):
            with pytest.raises(RequestError, match=naming("augment.mean=", 4)):
                kind(pixels=Pixels(channels=4), mean=wrong)
    x = torch.randint(256, (2, 5, 8, 8), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    mean, std = (0.1, 0.2, 0.3, 0.4, 0.5), (0.5, 0.4, 0.3, 0.2, 0.1)
    expected = (x / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    torch.testing.assert_close(augment.to_normalized_float(x, mean, std), expected)


def test_a_view_in_the_middle_and_an_example_have_the_channels_asked_for():
    view = OneView(32, train=False, pixels=Pixels(channels=5))
    assert filled(view, tiff(bands(5)), "png", True)["views/32"].shape == (2, 32, 32, 5)
    assert example_batch(view.layout(2), 2).fields["views/32"].shape == (2, 5, 32, 32)
