"""Colors of images with a profile, against littlecms' own conversion of what Pillow reads."""

import io
import struct
import threading

import numpy as np
import pytest
from PIL import Image, ImageCms

from seer.data import color_profiles, icc_matrix
from seer.data.decode import decode
from tests.data import profiles
from tests.data.image_files import encoded, pixels


def colorful(height: int = 90, width: int = 70) -> Image.Image:
    return Image.fromarray(pixels(4, height, width))


def built_in(kind: str) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(kind)).tobytes()


def by_littlecms(data: bytes, profile: bytes, mode: str | None = None) -> np.ndarray:
    image = Image.open(io.BytesIO(data))
    image = image if mode is None else image.convert(mode)
    source, srgb = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    return np.asarray(ImageCms.profileToProfile(image, source, srgb, outputMode="RGB"))


OTHERS = {
    "Display P3": profiles.rgb(profiles.P3, None),
    "Adobe RGB": profiles.rgb(profiles.ADOBE, 2.2),
    "gamma 1.8": profiles.rgb(profiles.SRGB, 1.8),
    "channels turned round": profiles.rgb(profiles.SRGB[::-1], 2.2),
}
FORMS = {
    "JPEG": {"quality": 95},
    "progressive": {"progressive": True},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "AVIF": {"quality": 90},
}


def written(image: Image.Image, form: str, profile: bytes | None, **how: object) -> bytes:
    more = {"icc_profile": profile} if profile else {}
    return encoded(image, "JPEG" if form == "progressive" else form, **FORMS[form], **more, **how)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", OTHERS)
def test_colors_of_another_profile_become_what_littlecms_makes_of_them(form, name):
    profile = OTHERS[name]
    data = written(colorful(), form, profile)
    expected = by_littlecms(data, profile)
    assert np.abs(expected.astype(int) - decode(written(colorful(), form, None))).mean() > 0.5  # it matters
    assert np.abs(decode(data).astype(int) - expected).mean() <= 0.05
    scratch = np.empty(100_000, np.uint8)
    np.testing.assert_array_equal(decode(data, scratch), decode(data))


CURVES = {
    **{f"parametric {kind}": profiles.parametric(kind, numbers) for kind, numbers in profiles.PARAMETRIC.items()},
    "straight": b"curv" + bytes(8),
    "gamma 2.2": b"curv" + bytes(4) + struct.pack(">IH", 1, round(2.2 * 256)),
    "few steps": b"curv" + bytes(4) + struct.pack(">I5H", 5, 0, 3000, 15000, 35000, 65535),
}


@pytest.mark.parametrize("curve", CURVES)
def test_curves_and_a_matrix_turn_every_pixel_to_within_a_level_of_littlecms(curve):
    profile = profiles.rgb(profiles.ADOBE, CURVES[curve])
    found = color_profiles.conversion(profile, "RGB")
    assert found is not None and found.quick is not None
    image = np.random.default_rng(0).integers(
        0, 256, (300, 211, 3), dtype=np.uint8
    )  # not whole strips, not whole vectors
    expected = np.asarray(found.transform.apply(Image.fromarray(image))).astype(int)
    off = np.abs(np.asarray(found(Image.fromarray(image))) - expected)
    assert off.max() <= 1 and off.mean() <= 0.05 and np.abs(expected - image).mean() > 2
    found.rows(rows := image.copy(), 256)
    np.testing.assert_array_equal(rows, np.asarray(found(Image.fromarray(image))))
    found.rows(late := image[77:].copy(), 256)
    np.testing.assert_array_equal(late, rows[77:])


def test_older_versions_of_opencv_turn_the_same_pixels(monkeypatch):
    found = color_profiles.conversion(OTHERS["Display P3"], "RGB")
    image = pixels(3, 100, 70)
    found.rows(new := image.copy(), 256)
    monkeypatch.setattr(icc_matrix, "_WIDE_TABLES", False)
    found.rows(old := image.copy(), 256)
    np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "profile",
    [
        profiles.rgb(profiles.ADOBE, 2.2, A2B0=profiles.table()),
        profiles.rgb(profiles.ADOBE, profiles.parametric(2, profiles.PALE)),
    ],
    ids=["a table that says something else", "a black that is none"],
)
def test_what_littlecms_does_otherwise_than_curves_and_matrix_say_is_left_to_it(profile):
    found = color_profiles.conversion(profile, "RGB")
    assert icc_matrix.read(profile) is not None and found.quick is None
    data = written(colorful(), "PNG", profile)
    np.testing.assert_array_equal(decode(data), by_littlecms(data, profile))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("profile", [built_in("sRGB"), profiles.rgb(profiles.SRGB, None, "an sRGB of another maker")])
def test_an_image_in_srgb_keeps_every_bit(form, profile):
    np.testing.assert_array_equal(decode(written(colorful(), form, profile)), decode(written(colorful(), form, None)))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_gray_images_and_inks_are_converted_by_profiles_of_their_kind(form):
    gray = colorful().convert("L")
    data = written(gray, form, profiles.gray(1.0))
    expected = by_littlecms(data, profiles.gray(1.0))
    assert np.abs(decode(data).astype(int) - expected).max() <= 1 and expected.mean() > 1.2 * np.asarray(gray).mean()
    data = written(gray, form, OTHERS["gamma 1.8"])  # a gray image in an RGB space, as cameras write it
    assert np.abs(decode(data).astype(int) - by_littlecms(data, OTHERS["gamma 1.8"], "RGB")).mean() <= 0.05
    if form != "PNG":
        data = written(colorful().convert("CMYK"), form, profiles.cmyk())
        expected = by_littlecms(data, profiles.cmyk())
        assert np.abs(expected.astype(int) - decode(written(colorful().convert("CMYK"), form, None))).mean() > 3
        assert np.abs(decode(data).astype(int) - expected).mean() <= 0.05


def test_palettes_and_transparency_are_converted_before_they_are_laid_on_the_ground():
    profile = OTHERS["channels turned round"]
    clear = colorful().convert("RGBA")
    clear.putalpha(128)
    flat = by_littlecms(encoded(colorful(), "PNG", icc_profile=profile), profile)
    found = decode(encoded(clear, "PNG", icc_profile=profile))
    assert np.abs(found - flat * (128 / 255)).max() <= 1.5
    few = colorful().quantize(32)
    data = encoded(few, "PNG", icc_profile=profile)
    assert np.abs(decode(data).astype(int) - by_littlecms(data, profile, "RGB")).max() <= 1


@pytest.mark.parametrize("form", FORMS)
def test_a_profile_that_is_broken_or_of_other_pixels_is_ignored(form):
    plain = decode(written(colorful(), form, None))
    whole = OTHERS["Display P3"]
    for broken in (bytes(300), whole[:200], b"x" * 40, profiles.gray(1.0), profiles.cmyk(), whole[:128] + bytes(900)):
        np.testing.assert_array_equal(decode(written(colorful(), form, broken)), plain)


def test_a_damaged_profile_never_costs_an_image():
    random, whole = np.random.default_rng(0), OTHERS["Adobe RGB"]
    for _ in range(150):
        damaged = bytearray(whole)
        for at in random.integers(0, len(whole), 8).tolist():
            damaged[at] = int(random.integers(256))
        for form in ("JPEG", "PNG"):
            assert decode(written(colorful(24, 20), form, bytes(damaged))).shape == (24, 20, 3)


def test_a_profile_that_unpacks_to_more_than_pillow_allows_is_ignored():
    data = encoded(colorful(), "PNG", icc_profile=OTHERS["Adobe RGB"] + bytes(3 << 20))
    with pytest.raises(ValueError, match="MAX_TEXT_CHUNK"):
        Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(decode(data), decode(encoded(colorful(), "PNG")))


def test_a_long_profile_in_several_segments_of_a_jpeg_is_put_together():
    long = OTHERS["Adobe RGB"] + bytes(150_000)
    long = len(long).to_bytes(4, "big") + long[4:]
    data = written(colorful(), "JPEG", long)
    assert data.count(b"ICC_PROFILE\0") == 3
    assert np.abs(decode(data).astype(int) - by_littlecms(data, long)).mean() <= 0.05


def test_a_turned_jpeg_is_converted_as_well():
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = OTHERS["gamma 1.8"]
    straight, turned = (written(colorful(), "JPEG", profile, **how) for how in ({}, {"exif": exif}))
    np.testing.assert_array_equal(decode(turned), np.rot90(decode(straight), -1))


def test_conversions_are_kept_to_a_bound_and_made_once(monkeypatch):
    monkeypatch.setattr(color_profiles, "_kept", {})
    made = []
    real = color_profiles._made
    monkeypatch.setattr(color_profiles, "_made", lambda *how: made.append(how) or real(*how))
    data = written(colorful(24, 20), "JPEG", OTHERS["Adobe RGB"])
    for _ in range(5):
        decode(data)
    assert len(made) == 1
    for i in range(color_profiles.MOST_KEPT + 20):
        color_profiles.conversion(profiles.rgb(profiles.P3, None, f"number {i}"), "RGB")
    assert len(color_profiles._kept) <= color_profiles.MOST_KEPT


def test_threads_that_share_a_conversion_get_the_pixels_of_one():
    data = [written(Image.fromarray(pixels(i, 200, 200)), "JPEG", OTHERS["Display P3"]) for i in range(8)]
    expected, wrong = [decode(one) for one in data], []

    def work() -> None:
        for _ in range(10):
            wrong.extend(i for i, one in enumerate(data) if not np.array_equal(decode(one), expected[i]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong
