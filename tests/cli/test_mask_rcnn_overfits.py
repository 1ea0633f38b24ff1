"""`mask_rcnn` learns eight images of COCO by heart, and runs on all of them, from their folder and file as they are."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from tests.program import seer

SHARED = Path(__file__).parents[3] / "shared" / "data"
SMALL = (
    "weights=null", "surgery=none", "model=regnety_tiny", "model.widths=[16,32,64,128]", "model.depths=[1,1,1,1]",
    "model.group_widths=[8,8,8,8]", "batch=8", "every.log=10", "every.evaluate=0", "every.checkpoint=0", "log.tensorboard=false",
    "data.threads=1", "parallel.device=cpu", "precision=fp32", "schedule.peak=0.002",
)  # fmt: skip
HEAD = ("width=64", "regions=32", "batch_norm=true", "anchors=[8,16,32,64,128]")


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> tuple[Path, Path]:
    """The folder and the file as they come."""
    pytest.importorskip("pycocotools")
    if not (SHARED / "coco-mini-train.tar").exists():
        pytest.skip("the folder of real images is not beside the checkout")
    folder = tmp_path_factory.mktemp("coco")
    with tarfile.open(SHARED / "coco-mini-train.tar") as tar:
        tar.extractall(folder, filter="data")
    return folder / "coco-mini" / "train2017", folder / "coco-mini" / "annotations" / "instances_train2017.json"


@pytest.mark.long
def test_eight_images_without_crowds_are_learned_by_heart(coco, tmp_path, capfd):
    content = json.loads(coco[1].read_text())
    of = {
        row["id"]: [one for one in content["annotations"] if one["image_id"] == row["id"]] for row in content["images"]
    }
    plain = [
        row["file_name"]
        for row in content["images"]
        if of[row["id"]] and all(not one["iscrowd"] and min(one["bbox"][2:]) >= 16 for one in of[row["id"]])
    ]
    (tmp_path / "eight").mkdir()
    for name in sorted(plain)[:8]:
        shutil.copy(coco[0] / name, tmp_path / "eight")
    data = (f"data.source={tmp_path / 'eight'}", f"data.labels={coco[1]}", f"output={tmp_path / 'run'}")
    head = [f"heads.mask_rcnn.{word}" for word in HEAD]
    ended = seer(
        capfd, "adapt", "heads=mask_rcnn", *SMALL, *head, *data, "augment.size=160", "augment.train=false", "steps=200"
    )
    assert ended.status == 0, ended.words
    asked = (
        f"weights={tmp_path / 'run'}",
        f"data.test={tmp_path / 'eight'}",
        f"data.labels={coco[1]}",
        "device=cpu",
        "batch=8",
    )
    found = seer(capfd, "evaluate", "eval=head", *asked, "eval.draws=0").result
    assert found["images"] == 8 and found["mask_rcnn/ap50"] >= 0.9 and found["mask_rcnn/mask_ap50"] >= 0.5, found


@pytest.mark.long
@pytest.mark.parametrize("head", ["detect", "mask_rcnn"])
def test_all_images_are_learned_from_as_they_are_crowds_left_out(coco, tmp_path, capfd, head):
    data = (
        f"data.source={coco[0]}",
        f"data.labels={coco[1]}",
        f"output={tmp_path / 'run'}",
        "augment.size=128",
        "steps=4",
    )
    inside = [f"heads.mask_rcnn.{word}" for word in HEAD] if head == "mask_rcnn" else ["heads.detect.width=32"]
    ended = seer(capfd, "adapt", f"heads={head}", *SMALL, *inside, *data)
    assert ended.status == 0 and ended.result["skipped"] == 0 and "731 things and 8 crowds of 80 classes" in ended.words
    asked = (f"weights={tmp_path / 'run'}", f"data.test={coco[0]}", f"data.labels={coco[1]}", "device=cpu", "batch=8")
    ended = seer(capfd, "evaluate", "eval=head", *asked, "eval.draws=0")
    assert ended.status == 0 and ended.result["images"] == 80 and 0 <= ended.result[f"{head}/ap50"] <= 1
