"""Masks and others in a folder of their own, beside a folder or a list of images: each image gets the file of its name."""

import logging
from pathlib import Path

import pytest

from seer.core.errors import RequestError
from seer.data.shards.open import open_shards
from seer.data.shards.shard import fingerprint
from seer.data.transforms.targets import mask
from tests.data.image_files import encoded, jpeg, pixels, png, write_tar
from tests.messages import naming
from tests.program import seer

NAMES = ["a/1.jpg", "a/2.JPG", "b/c/1.png", "3.v2.jpg"]


def mask_of(i: int) -> bytes:
    return encoded(pixels(50 + i)[:, :, 0] // 32, "PNG")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for i, name in enumerate(NAMES):
        stem = name.rpartition(".")[0]
        for path, content in (
            (f"images/{name}", jpeg(i)),
            (f"masks/{stem}.png", mask_of(i)),
            (f"m2/{stem}_mask.png", b"m%d" % i),
        ):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(content)
    return tmp_path


def rows(source, **how) -> dict[str, dict[str, bytes]]:
    shards = open_shards(source, **how)
    return {one.key: one.fields for n, s in enumerate(shards) for one in (s.read(n, r) for r in range(len(s)))}


TRUTH = {name.rpartition(".")[0]: mask_of(i) for i, name in enumerate(NAMES)}


@pytest.mark.parametrize("kind", ["folder", "list", "absolute list", "list below", "images"])
def test_each_image_has_the_mask_of_its_name(data, kind):
    source: object = data / "images"
    if kind == "images":
        source = [data / "images" / name for name in NAMES]
    elif kind != "folder":
        prefix = {"list": "images/", "absolute list": f"{data}/images/", "list below": ""}[kind]
        source = data / ("images" if kind == "list below" else ".") / "l.txt"
        source.write_text("\n".join(prefix + name for name in NAMES))
    found = rows(source, fields={"mask": f"{data}/masks/"})
    assert {
        key.removeprefix(str(data)).lstrip("/").removeprefix("images/"): f["mask.png"] for key, f in found.items()
    } == TRUTH
    assert all(len(fields) == 2 for fields in found.values())


def test_a_suffix_and_two_fields_and_what_training_reads(data):
    found = rows(data / "images", fields={"mask": f"{data}/masks/", "second": f"{data}/m2/*_mask.png", "third": "txt"})
    second = {name.rpartition(".")[0]: b"m%d" % i for i, name in enumerate(NAMES)}
    assert {key: fields["second"] for key, fields in found.items()} == second
    (shard,) = open_shards(data / "images", fields={"mask": f"{data}/masks/"})
    row = shard.keys().index("a/1")
    assert (mask(shard.read(0, row), 24, 20) == pixels(50)[:, :, 0] // 32).all()


def test_images_without_one_are_told_with_their_share_and_have_none(data, caplog):
    (data / "masks" / "a" / "1.png").unlink()
    with caplog.at_level(logging.WARNING):
        found = rows(data / "images", fields={"mask": f"{data}/masks/"})
    assert "mask.png" not in found["a/1"] and "mask.png" in found["a/2"]
    assert any("1 of 4" in r.getMessage() and "'a/1'" in r.getMessage() for r in caplog.records)


def test_the_request_is_part_of_the_fingerprint_and_where_the_folder_lies_is_not(data):
    plain = fingerprint(open_shards(data / "images"))
    asked = fingerprint(open_shards(data / "images", fields={"mask": f"{data}/masks/"}))
    (data / "moved").mkdir()
    (data / "masks").rename(data / "moved" / "masks")
    assert asked == fingerprint(open_shards(data / "images", fields={"mask": f"{data}/moved/masks/"})) != plain
    assert plain == fingerprint(open_shards(data / "images"))


@pytest.mark.parametrize(
    ("fields", "facts"),
    [
        ({"mask": "{d}/none/"}, ["none", "folder"]),
        ({"mask": "{d}/m2/"}, ["m2/", "none has", "_mask.png"]),
        ({"mask": "{d}/images/a/"}, ["lies in"]),
        ({"cls": "{d}/masks/"}, ["labels"]),
        ({"mask": "{d}/masks/x"}, ["ending", "masks/"]),
        ({"mask": "{d}/masks/*"}, ["ending", "masks/"]),
    ],
)
def test_what_cannot_be_meant_is_refused(data, fields, facts):
    with pytest.raises(RequestError, match=naming(*facts)):
        open_shards(data / "images", fields={name: place.format(d=data) for name, place in fields.items()})


def test_a_tar_has_no_folder_beside_it_and_shards_keep_the_masks(data, tmp_path, capfd):
    write_tar(data / "x.tar", [("1.png", png(0))])
    with pytest.raises(RequestError, match=naming("x.tar", "seer shard")):
        open_shards(data / "x.tar", fields={"mask": f"{data}/masks/"})
    ended = seer(
        capfd,
        "shard",
        f"source={data}/images",
        f"output={tmp_path / 'o'}",
        f"fields={{mask: {data}/masks/}}",
        "processes=1",
    )
    assert ended.status == 0, ended.words
    assert sorted(fields["mask.png"] for fields in rows(tmp_path / "o").values()) == sorted(TRUTH.values())
