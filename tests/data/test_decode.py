"""Bytes to pixels, fault by fault (`facts/reliability.md` 2.1), against Pillow where an image is good."""

import io
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from seer.data.decode import Undecodable, _sound_jpeg, _Wanted, decode, encode_jpeg
from tests.data.image_files import encoded, jpeg, many_scans, pixels, png
from tests.data.mutations import bases, mutant
from tests.messages import naming


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def header_of_png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds a few bytes."""
    claims = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", claims) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def test_good_images_of_the_three_formats_decode_as_pillow_decodes_them():
    image = pixels(0)
    for form, how in (("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {"lossless": True})):
        data = encoded(image, form, **how)
        found = decode(data)
        assert found.dtype == np.uint8 and found.shape == (24, 20, 3) and found.flags.writeable and found.flags.owndata
        np.testing.assert_array_equal(found, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize(
    ("form", "how"),
    [("BMP", {}), ("GIF", {}), ("AVIF", {"quality": 80})]
    + [("TIFF", {"compression": one}) for one in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg")],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_further_formats_decode_as_pillow_decodes_them(form, how, mode):
    if (form == "AVIF" or how.get("compression") == "jpeg") and mode == "P":
        mode = "RGB"
    image = Image.fromarray(pixels(5, 48, 40)).convert(mode)
    data = encoded(image, form, **how)
    np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    for length in range(len(data) // 4, len(data) - 64, len(data) // 7):
        with pytest.raises(Undecodable):
            decode(data[:length])


def test_a_tiff_of_16_bits_is_scaled_and_one_of_floats_is_refused():
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(ramp), "TIFF"))[..., 1], np.round(ramp / 257))
    with pytest.raises(Undecodable, match="floating") as refused:
        decode(encoded(Image.fromarray(ramp.astype(np.float32)), "TIFF"))
    assert refused.value.kind == "format"


def test_a_turned_tiff_and_the_first_image_of_a_gif_and_a_tiff_are_taken():
    frames = [Image.fromarray(pixels(i)).quantize(200) for i in range(3)]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.abs(decode(gif).astype(int) - pixels(0)).mean() < 8
    whole = [Image.fromarray(pixels(i)) for i in range(3)]
    tiff = encoded(whole[0], "TIFF", save_all=True, append_images=whole[1:], tiffinfo={0x0112: 6})
    np.testing.assert_array_equal(decode(tiff), np.rot90(pixels(0), -1))


BAD = {
    "empty": (b"", "empty"),
    "HTML": (b"<!DOCTYPE html><html>404</html>", "HTML.*begins with 3c21"),
    "JPEG 2000": (encoded(pixels(0), "JPEG2000"), "JPEG 2000"),
    "PPM": (encoded(pixels(0), "PPM"), "not a JPEG"),
    "ICO": (encoded(pixels(0, 32, 32), "ICO"), "ICO"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "HEIC"),
    "words that begin like a BMP": (b"BMW is a maker of cars, and this is no image", "not a JPEG"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
    "one byte": (b"\xff", "not a JPEG"),
    "the first bytes of a JPEG": (b"\xff\xd8\xff\xe0", "Error"),
    "a bomb in a header": (header_of_png(65_000, 65_000), "65000 x 65000 is more than|DecompressionBomb"),
    "a bomb that Pillow only warns of": (header_of_png(9_000, 7_000), "9000 x 7000 is more than|DecompressionBomb"),
    "1 x 5000": (png(0, 1, 5000), "too small or too thin"),
    "8 x 801": (png(0, 801, 8), "too small or too thin"),
    "7 x 7": (png(0, 7, 7), "too small or too thin"),
    "a sound JPEG of 8 x 801": (jpeg(0, 801, 8), "too small or too thin"),
    "a sound JPEG of 50.4 megapixels": (
        encoded(Image.new("L", (7100, 7100))),
        "7100 x 7100 is more than 50000000 pixels",
    ),
    "too many bytes": (b"\xff\xd8\xff" + bytes(64 << 20), "more than"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_image_is_undecodable_and_the_reason_is_told(fault):
    data, reason = BAD[fault]
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)  # as on import, which pytest undoes
        with pytest.raises(Undecodable, match=reason):
            decode(data)


def test_the_least_and_the_thinnest_images_allowed_decode():
    assert decode(png(0, 8, 8)).shape == (8, 8, 3) and decode(png(0, 8, 800)).shape == (8, 800, 3)


def test_an_image_cut_short_is_refused_wherever_it_is_cut():
    for whole in (jpeg(1, 64, 64), encoded(pixels(1, 64, 64), progressive=True), png(1), encoded(pixels(1), "WEBP")):
        for length in range(1, len(whole) - 12, 23):
            with pytest.raises(Undecodable):
                decode(whole[:length])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright_as_pillow_turns_them(orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(pixels(2), form, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert expected.shape == ((24, 20, 3) if orientation < 5 else (20, 24, 3))
    np.testing.assert_array_equal(decode(data), expected)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\x05\0", b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff"]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_broken_exif_block_does_not_cost_the_image(form, exif):
    data = encoded(pixels(3), form, exif=exif)
    plain = encoded(pixels(3), form)
    np.testing.assert_array_equal(decode(data), decode(plain))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_turned_image_with_any_damaged_exif_byte_still_decodes():
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description that is long enough"
    whole = exif.tobytes()
    for at in range(6, len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        assert sorted(decode(encoded(pixels(3), exif=bytes(damaged))).shape) == [3, 20, 24]


def test_cmyk_becomes_the_rgb_that_pillow_makes_of_it():
    image = Image.fromarray(pixels(4)).convert("CMYK")
    data = encoded(image, quality=95)
    found = decode(data)
    assert Image.open(io.BytesIO(data)).mode == "CMYK"
    assert np.abs(found.astype(int) - pixels(4)).mean() < 6  # not inverted: that would be off by a hundred


def test_a_ramp_of_16_bits_keeps_256_levels():
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    found = decode(encoded(Image.fromarray(ramp), "PNG"))
    np.testing.assert_array_equal(found[..., 0], np.round(ramp / 257))
    assert len(np.unique(found)) == 256 and (found[..., 0] == found[..., 2]).all()


def test_one_bit_gray_and_gray_with_alpha_decode():
    gray = Image.fromarray(pixels(5)).convert("L")
    assert set(np.unique(decode(encoded(gray.convert("1"), "PNG")))) == {0, 255}
    np.testing.assert_array_equal(decode(encoded(gray, "PNG"))[..., 1], np.asarray(gray))
    clear = gray.copy()
    clear.putalpha(0)
    assert decode(encoded(clear, "PNG")).max() == 0


def test_palettes_with_transparency_decode_on_black_without_a_warning():
    image = Image.fromarray(pixels(6)).quantize(16)
    plain = decode(encoded(image, "PNG"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_index = decode(encoded(image, "PNG", transparency=3))
        by_bytes = decode(encoded(image, "PNG", transparency=bytes([0, 128] + [255] * 14)))
    index = np.asarray(image)
    expected = plain.copy()
    expected[index == 3] = 0
    np.testing.assert_array_equal(by_index, expected)
    assert (by_bytes[index == 0] == 0).all() and (by_bytes[index > 1] == plain[index > 1]).all()
    assert np.abs(by_bytes[index == 1] - plain[index == 1] * (128 / 255)).max() <= 1


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_transparency_is_laid_on_black(form):
    rgba = np.dstack([pixels(7), np.full((24, 20), 51, dtype=np.uint8)])
    rgba[:4, :, 3] = 255
    found = decode(encoded(rgba, form, **({"lossless": True} if form == "WEBP" else {})))
    np.testing.assert_array_equal(found[:4], rgba[:4, :, :3])
    assert np.abs(found[4:] - rgba[4:, :, :3] * 0.2).max() <= 1


def test_only_the_first_image_of_an_animation_is_decoded():
    frames = [Image.fromarray(pixels(i)) for i in range(3)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(decode(buffer.getvalue()), pixels(0))


def test_a_png_called_jpg_is_known_by_its_bytes(tmp_path):
    from seer.data.shards.open import open_shards
    from seer.data.shards.shard import image_of

    (tmp_path / "wrong.jpg").write_bytes(png(8))
    np.testing.assert_array_equal(decode(image_of(open_shards(tmp_path)[0].read(0, 0))), pixels(8))


def test_encode_jpeg_is_read_back_close_to_what_it_was():
    smooth = pixels(9, 96, 96)
    assert np.abs(decode(encode_jpeg(smooth, 95)).astype(int) - smooth).mean() < 2


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_flipped_bits_never_raise_anything_but_undecodable(form):
    random = np.random.default_rng(["JPEG", "PNG", "WEBP"].index(form))
    refused = 0
    for i in range(300):
        data = np.frombuffer(encoded(pixels(i % 10, 24, 24), form), dtype=np.uint8).copy()
        for at in random.integers(0, len(data) * 8, random.integers(1, 9)):
            data[at // 8] ^= 1 << (at % 8)
        try:
            found = decode(data.tobytes())
            assert found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3
        except Undecodable as error:
            assert str(error)
            refused += 1
    assert 0 < refused < 300, refused


def by_pillow_alone(data: bytes, monkeypatch) -> np.ndarray | tuple[str, str]:
    with monkeypatch.context() as patched:
        patched.setattr("seer.data.decode._sound_jpeg", lambda data, scratch, wanted: None)
        return verdict(data)


def verdict(data: bytes, scratch=None) -> np.ndarray | tuple[str, str]:
    try:
        return decode(data, scratch).copy()
    except Undecodable as error:
        return error.kind, str(error)


def alike(a, b) -> bool:
    return np.array_equal(a, b) if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) else a is b or a == b


def sound_jpegs() -> dict[str, bytes]:
    """Kinds of JPEG that cameras and programs write."""
    wide = pixels(3, 45, 37)
    kinds = {
        f"{way} {side}": encoded(wide, subsampling=way, quality=side)
        for way in ("4:4:4", "4:2:2", "4:2:0")
        for side in (50, 95)
    }
    kinds |= {"grey": encoded(Image.fromarray(wide).convert("L")), "progressive": encoded(wide, progressive=True)}
    kinds |= {"restarts": encoded(wide, restart_marker_blocks=2), "icc": encoded(wide, icc_profile=bytes(300))}
    kinds |= {
        "RGB inside": encoded(wide, keep_rgb=True),
        "bytes behind": encoded(wide) + b"more",
        "comment": encoded(wide, comment=b"c" * 99),
    }
    # 4:4:1, which a lossless turn of 4:1:1 leaves; its header is a puzzle to simplejpeg
    turned = bytearray(encoded(pixels(3, 64, 64), quality=80))
    frame = turned.index(b"\xff\xc0")
    turned[frame + 11], turned[frame + 14], turned[frame + 17] = 0x14, 0x11, 0x11
    kinds["4:4:1"] = bytes(turned)
    return kinds


@pytest.mark.parametrize("kind", sound_jpegs())
def test_the_faster_way_for_sound_jpegs_gives_the_pixels_of_pillow(kind, monkeypatch):
    data = sound_jpegs()[kind]
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    for scratch in (None, np.empty(10_000, np.uint8), np.empty(10, np.uint8)):
        np.testing.assert_array_equal(decode(data, scratch), expected)
    taken = _sound_jpeg(data, None, _Wanted(50_000_000, None, None)) is not None
    assert taken == (kind not in ("RGB inside", "4:4:1"))  # else nothing was compared


@pytest.mark.parametrize("crafted", [False, True])
def test_a_turn_that_only_xmp_tells_is_seen_behind_any_other_segment(crafted):
    """crafted: a marker without a length, and a comment with scans where it would end if the next marker were its length."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6"/></x:xmpmeta>'
    plain = encoded(
        pixels(2), quality=95, comment=b"\xff\xda\xff\xd9"
    )  # what looks like a scan lies in a comment before it
    head, rest = plain[:2], plain[2:]
    payload = b"http://ns.adobe.com/xap/1.0/\0" + xmp
    segment = b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload
    last = rest.index(b"\xff\xda\xff\xd9") + 4
    comment = b"\xff\xfe" + struct.pack(">H", 65_002) + b"\xff\xda" * 32_500
    data = (
        head + b"\xff\xd0" + comment + comment + rest[:last] + segment + rest[last:]
        if crafted
        else head + rest[:last] + segment + rest[last:]
    )
    if crafted:
        assert data[2 + 2 + 0xFFFE :][:2] == b"\xff\xda"
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert expected.shape == (20, 24, 3)
    np.testing.assert_array_equal(decode(data), expected)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_jpegs_meet_the_verdict_of_pillow_pixel_by_pixel(monkeypatch):
    """2,000 mutants here; of 20,000 none met another (LOG.md)."""
    sources, good = {"JPEG": [*bases()["JPEG"], *sound_jpegs().values()]}, 0
    for i in range(2000):
        data = mutant(sources, 11, i)[1]
        found = verdict(data)
        assert alike(found, by_pillow_alone(data, monkeypatch)), i
        good += isinstance(found, np.ndarray)
    assert 500 < good < 1500


def test_a_reason_names_no_address_in_memory():
    with pytest.raises(Undecodable) as first, warnings.catch_warnings():
        decode(b"\xff\xd8\xff\xe0")
    assert "0x" not in str(first.value) and "cannot identify image file" in str(first.value)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_with_more_scans_than_any_encoder_writes_is_refused_before_it_is_decoded(mode):
    data = many_scans(2000, 2000, mode)
    assert len(data) < 200_000 and simplejpeg.decode_jpeg_header(data)[:2] == (2000, 2000)
    start = time.process_time()
    with pytest.raises(Undecodable, match=naming(2000, "2000 x 2000", 100)) as refused:
        decode(data)
    assert time.process_time() - start < 0.2 and refused.value.kind == "size"
    assert decode(many_scans(64, 100, mode)).shape == (64, 64, 3)
    with pytest.raises(Undecodable, match=naming(101, "64 x 64", 100)):
        decode(many_scans(64, 101, mode))


def test_scans_of_a_large_image_are_bounded_by_their_pixels():
    with pytest.raises(Undecodable, match=naming(42, "7000 x 7000", 2000000000)):
        decode(many_scans(7000, 42, "L"))


def test_words_of_a_jpeg_that_look_like_scans_are_not_taken_for_any():
    data = encoded(pixels(0), progressive=True, comment=b"\xff\xda" * 500)
    assert decode(data).shape == (24, 20, 3)


def test_kinds_of_pixels_are_turned_in_strips_to_what_they_are_as_wholes():
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 65536, (600, 30), dtype=np.uint16)
    expected = (deep.astype(np.float64) / 257).round().astype(np.uint8)
    np.testing.assert_array_equal(
        decode(encoded(Image.fromarray(deep), "PNG")), np.repeat(expected[..., None], 3, axis=2)
    )
    clear = Image.fromarray(rng.integers(0, 256, (600, 30, 4), dtype=np.uint8), "RGBA")
    ground = Image.new("RGBA", clear.size, (0, 0, 0, 255))
    np.testing.assert_array_equal(
        decode(encoded(clear, "PNG")), np.asarray(Image.alpha_composite(ground, clear).convert("RGB"))
    )


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["I;16", "RGBA", "LA"])
def test_a_large_image_of_odd_pixels_takes_its_own_size_and_that_of_its_rgb(mode):
    side = 4000
    data = encoded(Image.new(mode, (side, side)), "PNG", compress_level=1)
    words = "import sys; from seer.data.decode import decode; decode(open(sys.argv[1], 'rb').read())"
    words += "; print(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')))"
    peaks = []
    for file in (data, png(0)):
        with tempfile.NamedTemporaryFile() as written:
            written.write(file)
            written.flush()
            done = subprocess.run(
                [sys.executable, "-c", words, written.name], capture_output=True, text=True, check=True
            )
        peaks.append(int(done.stdout) * 1024)
    own = side * side * {"I;16": 2, "RGBA": 4, "LA": 4}[mode]  # bytes, as Pillow keeps them
    assert peaks[0] - peaks[1] < own + side * side * 3 + 30e6  # and the file, buffers, and a strip


NOISY = """
import io, sys
from PIL import Image
from seer.data.decode import Undecodable, decode
sys.path.insert(0, ".")
from tests.data.image_files import encoded, pixels
exif = Image.Exif()
exif[0x0112], exif[0x010E] = 6, "a description"
tiff = encoded(pixels(0), "TIFF", compression="tiff_deflate")
broken_strip, samples = bytearray(tiff), bytearray(tiff)
broken_strip[40] ^= 255
at = tiff.index(b"\\x15\\x01\\x03\\0")
samples[at + 8] = 200
for data in (encoded(pixels(0), exif=exif.tobytes()[:-9]), tiff[:-40], bytes(broken_strip), bytes(samples)):
    try:
        decode(data)
    except Undecodable as error:
        print(error.kind)
"""


@pytest.mark.slow
def test_nothing_of_the_libraries_within_goes_to_standard_error():
    done = subprocess.run([sys.executable, "-c", NOISY], capture_output=True, text=True, check=True)
    assert len(done.stdout.split()) == 3 and done.stderr == ""
