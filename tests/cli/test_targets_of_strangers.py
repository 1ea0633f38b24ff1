"""`seer shard`, `seer adapt` and `seer evaluate` on targets as strangers have them: right, one line, or the ledger's way."""

import json

import numpy as np
import pytest

from seer.data.shards.writer import write_shards
from tests.data.image_files import encoded
from tests.program import seer

TINY = (
    "adapt", "weights=null", "surgery=none", "model=regnety_tiny", "model.widths=[8,16,24]", "model.group_widths=[8,8,8]",
    "augment.size=32", "batch=4", "steps=2", "every.evaluate=0", "log.tensorboard=false", "data.threads=1",
    "parallel.device=cpu",
)  # fmt: skip
JUDGE = ("evaluate", "eval=head", "eval.draws=0", "device=cpu", "threads=1")


def images(folder, masks):
    """Noise of 32 pixels, each with a mask."""
    g = np.random.default_rng(0)
    for i, mask in enumerate(masks):
        for kind, pixels in (("images", g.integers(0, 255, (32, 32, 3)).astype(np.uint8)), ("masks", mask)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            (folder / kind / f"{i:02d}.png").write_bytes(encoded(pixels, "PNG"))


@pytest.mark.slow
def test_a_mask_with_a_class_that_the_head_does_not_know_goes_the_ledgers_way(tmp_path, capfd):
    """cross_entropy's IndexError ended the run with status 70."""
    masks = [np.full((32, 32), 1 + i % 2, dtype=np.uint8) for i in range(8)]
    masks[2][5, 5], masks[4][:3] = 3, 255  # one pixel of a fourth class; void is fine
    masks[6] = np.zeros((16, 16), dtype=np.uint8)  # of another size
    images(tmp_path, masks)
    folder = (f"source={tmp_path / 'images'}", f"fields={{mask: {tmp_path / 'masks'}/}}")
    assert seer(capfd, "shard", *folder, f"output={tmp_path / 's'}", "processes=1").status == 0
    head = ("heads=map", "heads.map.classes=[x,y,z]", "heads.map.stages=[stage1]")
    ended = seer(capfd, *TINY, *head, f"data.source={tmp_path / 's'}", f"output={tmp_path / 'run'}", "steps=4")
    assert ended.status == 0, ended.words
    rows = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert {row["kind"] for row in rows} == {"target"} and len({(row["shard"], row["row"]) for row in rows}) == 2
    judged = seer(capfd, *JUDGE, f"weights={tmp_path / 'run'}", f"data.test={tmp_path / 's'}")
    assert judged.status == 0, judged.words
    assert (judged.result["images"], judged.result["left_out"]) == (6, {"target": 2})


@pytest.mark.slow
def test_boxes_whose_manifest_numbers_the_classes_otherwise_are_a_wrong_request_of_both_verbs(tmp_path, capfd):
    """They were learned under each other's names, and nothing said so."""
    g = np.random.default_rng(0)
    for name, classes in (("uv", ["u", "v"]), ("vu", ["v", "u"])):
        rows = []
        for i in range(8):
            image = encoded(g.integers(0, 255, (32, 32, 3)).astype(np.uint8), "PNG")
            rows.append((f"{i}", {"png": image, "boxes.json": json.dumps([[4, 4, 20, 20, i % 2]]).encode()}))
        write_shards(rows, tmp_path / name, total=8, per_shard=8, card={"box_classes": classes})
    for classes, status in (("[v,u]", 78), ("[v]", 78), ("[cell]", 0), ("[u,v]", 0)):
        head = ("heads=detect", f"heads.detect.classes={classes}", "heads.detect.stages=[stage2,stage3]")
        run = tmp_path / f"run{classes}"
        ended = seer(capfd, *TINY, *head, f"data.source={tmp_path / 'uv'}", f"output={run}")
        assert ended.status == status and run.exists() == (status == 0), ended.words
        assert status == 0 or "u, v" in ended.words
    for name, status in (("uv", 0), ("vu", 78)):
        ended = seer(capfd, *JUDGE, f"weights={tmp_path / 'run[u,v]'}", f"data.test={tmp_path / name}")
        assert ended.status == status, ended.words
