"""Images for evaluation: the center cut against Pillow, where labels come from, and what is left out."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from seer.core.errors import RequestError
from seer.core.log import log
from seer.data.shards.open import open_shards
from seer.evals import features
from seer.evals.features import LabelledImages, center, extract
from tests.data.image_files import encoded, pixels, png, write_tar
from tests.messages import naming


class Sum(torch.nn.Module):
    """Features from which the pixels can be told: the mean of each channel and the corner pixel."""

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        return torch.cat([x.mean((2, 3)), x[:, :, 0, 0]], 1) * self.one


def labels_of(images: LabelledImages, **how) -> list[int]:
    return torch.cat([b.labels for b in images.batches(**how)]).tolist()


@pytest.fixture
def folders(tmp_path):
    for name in ("cat/a", "dog/b", "cat/c", "ant/deep/d"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.png").write_bytes(png(len(name)))
    return tmp_path


@pytest.fixture
def members(tmp_path):
    rows = [(f"{i}.{e}", d) for i, label in enumerate((3, 0, 7)) for e, d in (("png", png(i)), ("cls", b"%d" % label))]
    return write_tar(tmp_path / "x.tar", rows)


@pytest.mark.parametrize(
    ("height", "width", "short", "size"), [(60, 90, 40, 32), (90, 60, 40, 32), (40, 40, 40, 40), (20, 31, 48, 48)]
)
def test_the_center_cut_is_that_of_pillow(height, width, short, size):
    image = pixels(0, height, width)
    scale = short / min(height, width)
    tall, wide = round(height * scale), round(width * scale)
    resized = np.asarray(Image.fromarray(image).resize((wide, tall), Image.Resampling.BILINEAR))
    top, left = (tall - size) // 2, (wide - size) // 2
    found = center(image, short, size).permute(1, 2, 0).numpy().astype(int)
    assert found.shape == (size, size, 3)
    assert np.abs(found - resized[top : top + size, left : left + size]).max() <= 1


def test_the_shorter_side_is_256_for_224_and_small_images_are_not_cut(members):
    shards = open_shards(members)
    assert LabelledImages(shards, size=224).short == 256
    assert LabelledImages(shards, size=32).short == 32
    assert LabelledImages(shards, size=32, resize=40).short == 40


def test_labels_come_from_the_members_of_the_samples(members):
    for how in ("auto", "member"):
        images = LabelledImages(open_shards(members), size=16, labels=how)
        assert images.classes == ["0", "3", "7"] and labels_of(images) == [1, 0, 2]


def test_labels_come_from_the_first_folders_in_the_order_of_names(folders):
    """A folder inside that of a class was a class of its own: ant/deep/d was a `deep`."""
    for how, classes in (
        ("auto", ["ant", "cat", "dog"]),
        ("folder", ["ant", "cat", "dog"]),
        ("folder:1", ["ant", "cat", "dog"]),
    ):
        images = LabelledImages(open_shards(folders), size=16, labels=how)
        assert images.classes == classes
        assert labels_of(images) == [0, 1, 1, 2]  # ant/deep/d, cat/a, cat/c, dog/b
    direct = LabelledImages(open_shards(folders), size=16, labels="folder:-1")
    assert direct.classes == ["cat", "deep", "dog"] and labels_of(direct) == [1, 0, 0, 2]


def test_test_images_take_the_classes_of_the_training_images(folders, tmp_path_factory):
    other = tmp_path_factory.mktemp("test")
    (other / "dog").mkdir()
    (other / "dog/x.png").write_bytes(png(0))
    train = LabelledImages(open_shards(folders), size=16)
    assert labels_of(LabelledImages(open_shards(other), size=16, like=train)) == [2]


def test_no_labels_at_all_is_a_wrong_request(tmp_path):
    (tmp_path / "a.png").write_bytes(png(0))
    with pytest.raises(RequestError, match=naming("`cls`", "class folders")):
        LabelledImages(open_shards(tmp_path), size=16)
    with pytest.raises(RequestError, match=r"`cls`"):
        LabelledImages(open_shards(tmp_path), size=16, labels="member")
    with pytest.raises(RequestError, match="labels=name"):
        LabelledImages(open_shards(tmp_path), size=16, labels="name")


@pytest.mark.parametrize("label", [b"", b"cat", b"-1", b"1.0", b"1" * 5000])
def test_a_sample_whose_label_is_no_number_is_named(tmp_path, label):
    rows = [("a.png", png(0)), ("a.cls", b"1"), ("b.png", png(1)), ("b.cls", label)]
    with pytest.raises(RequestError, match=naming("b in ", "x.tar", "`cls`")):
        labels_of(LabelledImages(open_shards(write_tar(tmp_path / "x.tar", rows)), size=16))


@pytest.mark.parametrize(("most", "expected"), [(0, 10), (3, 3), (10, 10), (99, 10)])
def test_so_many_at_the_most_are_spread_evenly_over_the_whole(tmp_path, most, expected):
    rows = [(f"{i}.{e}", d) for i in range(10) for e, d in (("png", png(i)), ("cls", b"%d" % i))]
    images = LabelledImages(open_shards(write_tar(tmp_path / "x.tar", rows)), size=16, most=most)
    found = labels_of(images, batch=4)
    assert len(images) == len(found) == expected
    assert [images.classes[label] for label in found] == (list("036") if most == 3 else list("0123456789"))


def test_a_broken_image_is_left_out_with_its_label_and_told(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(log, "propagate", True)
    rows = [
        (f"{i}.{e}", d) for i in range(4) for e, d in (("png", b"broken" if i == 2 else png(i)), ("cls", b"%d" % i))
    ]
    with caplog.at_level(logging.WARNING):
        assert labels_of(LabelledImages(open_shards(write_tar(tmp_path / "x.tar", rows)), size=16)) == [0, 1, 3]
    assert "row 2 is left out" in caplog.text


@pytest.mark.parametrize("batch", [1, 3, 100, None])
def test_features_are_those_of_normalized_center_cuts_in_the_order_of_rows_whatever_the_batch(
    tmp_path, batch, monkeypatch
):
    monkeypatch.setattr(
        "seer.evals.features.PIXELS_A_THREAD", 640 // max(2, torch.get_num_threads())
    )  # two images and a half
    rows = [
        (f"{i}.{e}", d) for i in range(7) for e, d in (("png", encoded(pixels(i, 16, 16), "PNG")), ("cls", b"%d" % i))
    ]
    images = LabelledImages(open_shards(write_tar(tmp_path / "x.tar", rows)), size=16)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    model, passes = Sum(), []
    model.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    features, labels = extract(model, images, mean=mean, std=std, batch=batch, threads=3)
    assert passes == {1: [1] * 7, 3: [3, 3, 1], 100: [7], None: [2, 2, 2, 1]}[batch]
    x = (np.stack([pixels(i, 16, 16) for i in range(7)]) / 255 - mean) / std  # [7, h, w, 3]
    expected = np.concatenate([x.mean((1, 2)), x[:, 0, 0]], 1)
    assert labels.tolist() == list(range(7)) and not features.requires_grad
    torch.testing.assert_close(features, torch.from_numpy(expected).float(), rtol=1e-5, atol=1e-5)


def test_a_forward_pass_on_a_cpu_takes_fewer_images_the_larger_they_are(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    cpu = torch.device("cpu")
    assert [features.at_once(cpu, side) for side in (16, 32, 96, 224, 4096)] == [256, 256, 28, 5, 1]
    assert {features.at_once(torch.device("cuda"), side) for side in (32, 384)} == {256}


def test_no_readable_image_is_a_wrong_request(tmp_path):
    rows = [(f"{i}.{e}", d) for i in range(2) for e, d in (("png", b"broken"), ("cls", b"1"))]
    images = LabelledImages(open_shards(write_tar(tmp_path / "x.tar", rows)), size=16)
    with pytest.raises(RequestError, match=naming("images for evaluation")):
        extract(Sum(), images, mean=(0.5,) * 3, std=(0.5,) * 3)


def test_cut_images_stay_in_memory_up_to_a_limit_and_are_the_same_again(tmp_path, monkeypatch):
    rows = [(f"{i}.{e}", d) for i in range(10) for e, d in (("png", png(i)), ("cls", b"%d" % (i % 2)))]
    shards, reads = open_shards(write_tar(tmp_path / "x.tar", rows)), []
    read = type(shards[0]).read
    monkeypatch.setattr(type(shards[0]), "read", lambda self, shard, row: reads.append(row) or read(self, shard, row))
    monkeypatch.setattr(features, "KEPT", 3 * 8 * 8 * 4)  # four of ten
    images = LabelledImages(shards, size=8)
    reads.clear()
    first, again = (torch.cat([b.pixels for b in images.batches(4)]) for _ in range(2))
    assert torch.equal(first, again) and first.shape == (10, 3, 8, 8)
    assert len(reads) == 10 + 6
    assert labels_of(images) == [i % 2 for i in range(10)]
