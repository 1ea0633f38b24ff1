"""From images with a COCO file or a folder of masks to shards that heads learn from: numbers by hand, and CamVid's known shares."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from seer.data.decode import decode_mask
from seer.data.shards.open import box_classes, open_shards
from tests.data.image_files import jpeg
from tests.messages import says
from tests.program import seer

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def annotated(tmp_path) -> Path:
    (tmp_path / "images").mkdir()
    for i in range(4):
        (tmp_path / "images" / f"{i}.jpg").write_bytes(jpeg(i, 64, 128))
    content = {
        "categories": [{"id": 90, "name": "late"}, {"id": 2, "name": "early"}],
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 128, "height": 64} for i in range(3)],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 90, "bbox": [16, 8, 32, 16]},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [0, 0, 128, 64]},
            {"id": 3, "image_id": 1, "category_id": 2, "bbox": [5, 5, 0, 4]},
        ],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return tmp_path


def boxes_of(folder: Path) -> dict[str, list | None]:
    found = {}
    for shard in open_shards(folder):
        for row in range(len(shard)):
            fields = shard.read(0, row).fields
            lines = (shard.path.parent / f"{shard.path.name}.names.jsonl").read_text().splitlines()
            name = json.loads(lines[row])["member"]
            found[name] = json.loads(fields["boxes.json"]) if "boxes.json" in fields else None
    return found


def test_boxes_of_a_coco_file_lie_beside_their_images_and_shrink_with_them(annotated, capfd):
    words = ("shard", f"source={annotated / 'images'}", f"labels={annotated / 'boxes.json'}", "processes=1")
    ended = seer(capfd, *words, f"output={annotated / 'out'}", "max_side=64")
    assert ended.status == 0, ended.words
    assert ended.result["box_classes"] == ["early", "late"] and ended.result["boxes_left_out"] == {"of no area": 1}
    assert "1 of the 4 images" in ended.words
    found = boxes_of(annotated / "out")
    assert found == {"0.jpg": [[8, 4, 24, 12, 1]], "1.jpg": [[0, 0, 64, 32, 0]], "2.jpg": [], "3.jpg": None}
    assert box_classes(open_shards(annotated / "out")) == ("early", "late")
    assert seer(capfd, *words, f"output={annotated / 'out'}", "max_side=64").status == 0  # the same request
    assert seer(capfd, *words[:2], f"output={annotated / 'out'}", "max_side=64").status == 78  # another one


def test_a_coco_file_of_other_images_is_a_wrong_request(annotated, capfd):
    (annotated / "images").rename(annotated / "other")
    for file in (annotated / "other").iterdir():
        file.rename(file.with_name(f"x{file.name}"))
    ended = seer(
        capfd,
        "shard",
        f"source={annotated / 'other'}",
        f"labels={annotated / 'boxes.json'}",
        f"output={annotated / 'o'}",
    )
    assert (
        ended.status == 78
        and says(ended.result["error"], "none of the 4 images", "0.jpg")
        and not (annotated / "o").exists()
    )


@pytest.mark.slow
def test_a_head_for_boxes_takes_its_classes_from_the_shards(annotated, capfd):
    words = (
        "shard",
        f"source={annotated / 'images'}",
        f"labels={annotated / 'boxes.json'}",
        f"output={annotated / 'out'}",
    )
    assert seer(capfd, *words, "processes=1").status == 0
    ended = seer(
        capfd, "pretrain", "task=heads", "task.heads={things: {kind: detect, width: 8}}", "augment=one_view", "augment.size=32",
        "model=regnety_tiny", "optim=sgd", "schedule.peak=0.01", "schedule.warmup=0", "batch=2", "steps=2", "every.log=1",
        "every.evaluate=0", "data.max_bad=60%", "log.tensorboard=false", "data.threads=1", "parallel.device=cpu",
        f"data.source={annotated / 'out'}", f"output={annotated / 'run'}",
    )  # fmt: skip
    assert ended.status == 0, ended.words
    assert "- early\n" in (annotated / "run" / "config.yaml").read_text()


@pytest.mark.slow
def test_camvid_through_shards_has_the_known_shares_of_classes(tmp_path, capfd):
    if not (SHARED / "camvid-train.tar").exists():
        pytest.skip("the folder of real images is not beside the checkout")
    with tarfile.open(SHARED / "camvid-train.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    source = tmp_path / "camvid" / "train"
    words = (
        "shard",
        f"source={source / 'images'}",
        f"fields={{mask: {source / 'masks'}/}}",
        f"output={tmp_path / 'o'}",
    )
    ended = seer(capfd, *words, "processes=1")
    assert ended.status == 0 and ended.result["pictures"] == 367, ended.words
    counts = np.zeros(256, dtype=np.int64)
    for shard in open_shards(tmp_path / "o"):
        for row in range(len(shard)):
            counts += np.bincount(decode_mask(shard.read(0, row).fields["mask.png"]).ravel(), minlength=256)
    known = 100 * counts[:11] / counts[:11].sum()
    expected = [16.75, 23.23, 0.98, 31.79, 4.48, 9.71, 1.17, 1.13, 5.86, 0.64, 0.29]
    whole = 100 * counts[:12] / counts.sum()
    assert (np.abs(known - expected).max() < 0.01) or (np.abs(whole[:11] - expected).max() < 0.01)
    assert abs(whole[11] - 3.96) < 0.01 and counts[12:].sum() == 0
