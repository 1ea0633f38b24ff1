"""Ground, limit and channels of images, from words on the command line to a run, its bundle and shards."""

import io
import json

import numpy as np
import pytest
import yaml
from PIL import Image

from seer.data.shards.open import open_shards
from seer.data.shards.shard import image_of
from tests.data.image_files import encoded, jpeg
from tests.data.test_channels import bands, tiff
from tests.data.test_ground_and_limits import drawing, large
from tests.program import SMALL, seer


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 5])
def test_a_run_on_other_channels_trains_probes_and_says_so_in_its_bundle(channels, tmp_path, capfd):
    for i in range(16):
        (tmp_path / "d" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        data = jpeg(i, 60, 50) if channels == 1 else tiff(np.roll(bands(5), i, axis=1), packed=True)
        (tmp_path / "d" / "ab"[i % 2] / f"{i}.png").write_bytes(data)
    source = tmp_path / "d"
    words = (*SMALL, f"data.source={source}", f"eval.train={source}", f"eval.test={source}", "steps=1")
    done = seer(
        capfd, "pretrain", *words, f"output={tmp_path / 'run'}", f"data.channels={channels}", "data.ground=white"
    )
    assert done.status == 0 and done.result["skipped"] == 0 and "knn_top1" in done.result
    described = json.loads((tmp_path / "run" / "bundle" / "bundle.json").read_text())
    assert described["architecture"]["in_channels"] == channels and described["ground"] == 255
    assert len(described["normalisation"]["mean"]) == channels
    judged = seer(
        capfd, "evaluate", "eval=knn", f"weights={tmp_path / 'run'}", f"data.train={source}", f"data.test={source}",
        "device=cpu",
    )  # fmt: skip
    assert judged.status == 0 and judged.result["train"] == 16
    written = seer(capfd, "export", f"weights={tmp_path / 'run'}", "to=torchvision", f"output={tmp_path / 'w.pth'}")
    assert written.status == 78 and "safetensors" in written.result["error"]
    again = seer(capfd, "pretrain", *words, f"output={tmp_path / 'o'}", f"weights={tmp_path / 'run'}")
    assert again.status == 78 and f"data.channels={channels}" in again.result["error"]


@pytest.mark.slow
def test_a_run_folder_from_before_these_words_goes_on(tmp_path, capfd):
    for i in range(16):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i, 60, 50))
    words = (*SMALL, f"data.source={tmp_path}/*.jpg", f"output={tmp_path / 'run'}", "steps=1")
    assert seer(capfd, "pretrain", *words).status == 0
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    for key in ("ground", "max_pixels", "channels"):
        del config["data"][key]
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    assert seer(capfd, "pretrain", *words).status == 0
    other = seer(capfd, "pretrain", *words, "data.ground=white")
    assert other.status == 78 and "data.ground" in other.result["error"]


def test_shards_lay_transparent_images_on_the_ground_asked_for_and_tell_of_those_that_vanish(tmp_path, capfd):
    (tmp_path / "d").mkdir()
    for i in range(3):
        (tmp_path / "d" / f"{i}.png").write_bytes(drawing(compress_level=i))
    found = {}
    for ground in ("black", "white"):
        out = tmp_path / ground
        done = seer(
            capfd, "shard", f"source={tmp_path / 'd'}", f"output={out}", "quality=95", f"ground={ground}", "processes=1"
        )
        assert done.status == 0 and ("ground=white" in done.words) == (ground == "black")
        found[ground] = np.asarray(Image.open(io.BytesIO(image_of(open_shards(out)[0].read(0, 0)))))
    assert found["black"].max() == 0 and found["white"].max() == 255


def test_a_jpeg_above_the_limit_is_stored_small_and_without_max_side_left_out(tmp_path, capfd):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "large.jpg").write_bytes(large())
    (tmp_path / "d" / "large.png").write_bytes(encoded(Image.new("L", (960, 641)), "PNG"))
    (tmp_path / "d" / "small.jpg").write_bytes(jpeg(1))
    words = ("shard", f"source={tmp_path / 'd'}", "max_pixels=500000", "processes=1")
    small = seer(capfd, *words, f"output={tmp_path / 'a'}", "max_side=100")
    assert small.status == 0 and (small.result["pictures"], small.result["skipped"]) == (2, 1)
    for wrong in ("max_pixels=3", "ground=pink", "ground=300"):
        refused = seer(capfd, *words, f"output={tmp_path / 'b'}", wrong)
        assert refused.status == 78 and not (tmp_path / "b").exists()


def test_built_in_images_have_no_bands_of_their_own(tmp_path, capfd):
    done = seer(capfd, "pretrain", *SMALL, "data.drawn=20", "data.channels=4", f"output={tmp_path / 'r'}")
    assert done.status == 78 and "data.channels=4" in done.result["error"]
