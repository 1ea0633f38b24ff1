"""`detect` learns eight images by heart, through `seer shard`, `seer adapt` and `seer evaluate`: drawn ones, and blood cells."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.program import seer

SHARED = Path(__file__).parents[3] / "shared" / "data"
SMALL = (
    "weights=null", "surgery=none", "model=regnety_tiny", "augment.train=false", "batch=8", "every.log=20", "every.evaluate=0",
    "every.checkpoint=0", "log.tensorboard=false", "data.threads=1", "parallel.device=cpu", "precision=fp32",
)  # fmt: skip


def drawn(folder: Path, count: int = 8, side: int = 64) -> tuple[Path, Path]:
    """Images of one bright and one dark rectangle on noise, and a file of COCO's form that says where they lie."""
    g, images, rows = np.random.default_rng(0), [], []
    (folder / "images").mkdir()
    for i in range(count):
        pixels = g.integers(100, 140, (side, side, 3), dtype=np.uint8)
        for category, color in ((5, (230, 60, 60)), (9, (20, 40, 160))):
            width, height = (int(n) for n in g.integers(14, 30, 2))
            left, top = int(g.integers(0, side - width)), int(g.integers(0, side // 2 - height + 1))
            top += 0 if category == 5 else side // 2  # each in its own half, so that neither hides the other
            pixels[top : top + height, left : left + width] = color
            box = [left, top, width, height]
            rows.append({"id": len(rows) + 1, "image_id": i, "category_id": category, "bbox": box})
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "png")
        (folder / "images" / f"{i}.png").write_bytes(data.getvalue())
        images.append({"id": i, "file_name": f"{i}.png", "width": side, "height": side})
    categories = [{"id": 5, "name": "bright"}, {"id": 9, "name": "dark"}]
    (folder / "boxes.json").write_text(json.dumps({"images": images, "annotations": rows, "categories": categories}))
    return folder / "images", folder / "boxes.json"


def learned(capfd, folder: Path, images: Path, boxes: Path, size: int, *words: str) -> dict:
    """What the head is worth on the images that it learned."""
    shards, run = folder / "shards", folder / "run"
    ended = seer(capfd, "shard", f"source={images}", f"labels={boxes}", f"output={shards}", "processes=1")
    assert ended.status == 0, ended.words
    cut = (f"augment.size={size}", f"augment.resize={size}")
    ended = seer(capfd, "adapt", "heads=detect", *SMALL, *cut, f"data.source={shards}", f"output={run}", *words)
    assert ended.status == 0, ended.words
    cut = (f"data.size={size}", f"data.resize={size}", "eval.draws=50", "device=cpu")
    ended = seer(capfd, "evaluate", "eval=head", f"weights={run}", f"data.test={shards}", *cut)
    assert ended.status == 0 and ended.result["images"] == 8, ended.words
    return ended.result


@pytest.mark.slow
def test_eight_drawn_images_are_learned_by_heart(tmp_path, capfd):
    shape = ("model.widths=[16,32,64]", "model.depths=[1,1,1]", "model.group_widths=[8,8,8]", "heads.detect.width=32")
    found = learned(capfd, tmp_path, *drawn(tmp_path), 64, *shape, "augment.flip=0", "steps=120", "schedule.peak=0.005")
    assert found["detect/ap50"] >= 0.9 and found["detect/ap"] >= 0.5, found
    low, high = found["interval95"]["detect/ap50"]
    assert low <= found["detect/ap50"] <= high


@pytest.mark.long
def test_eight_images_of_blood_cells_are_learned_by_heart(tmp_path, capfd):
    if not (SHARED / "bccd-train.tar").exists():
        pytest.skip("the folder of real images is not beside the checkout")
    with tarfile.open(SHARED / "bccd-train.tar") as tar:
        names = sorted(name for name in tar.getnames() if name.endswith(".jpg"))[:8]
        tar.extractall(tmp_path, [*names, "bccd/train/annotations.json"], filter="data")
    shape = ("model.widths=[16,32,64,128]", "model.depths=[1,1,1,1]", "model.group_widths=[8,8,8,8]")
    source = tmp_path / "bccd" / "train"
    words = (*shape, "steps=200", "schedule.peak=0.003")
    found = learned(capfd, tmp_path, source / "images", source / "annotations.json", 128, *words)
    assert found["detect/ap50"] >= 0.9, found
