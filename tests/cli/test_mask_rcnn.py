"""`seer adapt heads=mask_rcnn`: from a folder and a file of COCO's form as they are, to a head in the bundle and pycocotools' figures.

The backbone is the bundle that commit d7ff748 made from drawn images (`tests/models/bundles_1/run`), the data are drawn.
"""

import io
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from seer.cli import config
from seer.cli.adapt import _as_the_weights
from seer.models.bundle import read_description, read_heads
from seer.tasks.heads import HeadsTask
from tests.messages import says
from tests.program import seer, start, wait

BASE = Path(__file__).resolve().parents[1] / "models" / "bundles_1" / "run"
SHARED = Path(__file__).parents[3] / "shared" / "data"
FEW = (
    "batch=4", "steps=4", "every.log=1", "every.evaluate=0", "every.checkpoint=2", "log.tensorboard=false", "data.threads=1",
    "precision=fp32", "parallel.device=cpu", "augment.size=64",
)  # fmt: skip
SMALL = (
    "heads.mask_rcnn.stages=[stage1,stage2]", "heads.mask_rcnn.width=8", "heads.mask_rcnn.anchors=[12,24,48]",
    "heads.mask_rcnn.regions=16",
)  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[Path, Path]:
    """Twelve images of 80 x 60 with a bright and a dark thing each; a crowd, a box of no area, one outside, an image unlisted."""
    folder, g = tmp_path_factory.mktemp("drawn"), np.random.default_rng(0)
    (folder / "images").mkdir()
    rows, images = [], []
    for i in range(12):
        pixels = g.integers(100, 140, (60, 80, 3), dtype=np.uint8)
        for category, color, first in ((3, (230, 60, 60), 0), (8, (20, 40, 160), 40)):
            left, top = first + int(g.integers(2, 8)), int(g.integers(4, 16))
            right, bottom = left + int(g.integers(18, 28)), top + int(g.integers(18, 36))
            pixels[top:bottom, left:right] = color
            outline = [[left, top, right, top, right, bottom, left, bottom]]
            rows.append(
                {
                    "image_id": i,
                    "category_id": category,
                    "bbox": [left, top, right - left, bottom - top],
                    "segmentation": outline,
                }
            )
        data = io.BytesIO()
        Image.fromarray(pixels).save(data, "png")
        (folder / "images" / f"{i}.png").write_bytes(data.getvalue())
        images.append({"id": i, "file_name": f"{i}.png", "width": 80, "height": 60})
    rows.append(
        {
            "image_id": 0,
            "category_id": 3,
            "bbox": [0, 0, 80, 60],
            "iscrowd": 1,
            "segmentation": {"size": [60, 80], "counts": [0, 4800]},
        }
    )
    rows.append({"image_id": 1, "category_id": 3, "bbox": [5, 5, 0, 0], "segmentation": [[5, 5, 5, 5, 5, 5]]})
    rows.append({"image_id": 1, "category_id": 3, "bbox": [90, 5, 9, 9], "segmentation": [[90, 5, 99, 5, 99, 14]]})
    content = {
        "images": images[:11],
        "annotations": [{"id": n, **row} for n, row in enumerate(rows) if row["image_id"] < 11],
        "categories": [{"id": 3, "name": "bright"}, {"id": 8, "name": "dark"}],
    }
    (folder / "things.json").write_text(json.dumps(content))
    bare = {
        **content,
        "annotations": [{k: v for k, v in row.items() if k != "segmentation"} for row in content["annotations"]],
    }
    (folder / "bare.json").write_text(json.dumps(bare))
    return folder / "images", folder / "things.json"


def words(drawn: tuple[Path, Path], run: Path, *more: str) -> tuple[str, ...]:
    return (
        "adapt", f"weights={BASE}", "heads=mask_rcnn", *SMALL, *FEW, f"data.source={drawn[0]}", f"data.labels={drawn[1]}",
        f"output={run}", *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def first(drawn, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("mask_rcnn") / "first"
    ended = wait(start(*words(drawn, run)))
    assert ended.status == 0, ended.words
    assert "1 of the 12 images are not listed" in ended.words
    assert (
        ended.result["labels_left_out"] == {"of no area": 1, "outside their image": 1} and ended.result["classes"] == 2
    )
    return run


def test_the_size_of_images_is_not_that_of_the_weights(drawn, tmp_path):
    given = [word for word in words(drawn, tmp_path / "run") if not word.startswith("augment.size")]
    found = _as_the_weights(config.read("adapt", given[1:]))
    assert found["augment"]["size"] == 800 and found["model"]["widths"] == list(
        read_description(BASE)["architecture"]["widths"]
    )


@pytest.mark.slow
def test_the_head_is_a_file_of_the_bundle_and_a_frozen_backbone_stays_to_the_bit(first):
    parent, now = (load_file(folder / "backbone.safetensors") for folder in (BASE, first / "bundle"))
    assert parent.keys() == now.keys() and all(torch.equal(parent[key], now[key]) for key in parent)
    described, (head,) = read_description(first / "bundle"), read_heads(first / "bundle").values()
    assert described["version"] == 2 and described["input_size"] == 64
    assert (
        head.card.classes == ("bright", "dark") and head.card.anchors == (12, 24, 48) and head.card.kind == "mask_rcnn"
    )
    assert head.build().fpn is not None
    rows = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert all(
        np.isfinite(row[f"mask_rcnn/{name}"])
        for row in rows
        if "loss" in row
        for name in ("mask", "objectness", "box_reg")
    )


@pytest.mark.slow
def test_it_is_judged_on_whole_images_twice_alike(first, drawn, tmp_path, capfd):
    pytest.importorskip("pycocotools")
    asked = (
        "evaluate",
        "eval=head",
        f"weights={first}",
        f"data.test={drawn[0]}",
        f"data.labels={drawn[1]}",
        "device=cpu",
        "batch=5",
    )
    ended = seer(capfd, *asked, f"output={tmp_path}", "eval.draws=20")
    assert ended.status == 0, ended.words
    found = ended.result
    assert found["images"] == 11 and found["left_out"] == {"target": 1}
    assert found["labels_left_out"] == {"of no area": 1, "outside their image": 1}
    assert (
        0 <= found["mask_rcnn/ap50"] <= 1
        and 0 <= found["mask_rcnn/mask_ap50"] <= 1
        and "mask_rcnn/ap50" in found["interval95"]
    )
    assert (tmp_path / "mask_rcnn-per-class.csv").read_text().splitlines()[1].startswith("bright,11,")
    again = seer(capfd, *asked, "eval.draws=20").result
    assert {k: v for k, v in again.items() if k.startswith("mask")} == {
        k: v for k, v in found.items() if k.startswith("mask")
    }


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_to_the_same_head(first, drawn, tmp_path, monkeypatch, capfd):
    after = HeadsTask.after_step

    def stop(task: HeadsTask, step: int) -> None:
        after(task, step)
        if step == 1:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(HeadsTask, "after_step", stop)
        assert seer(capfd, *words(drawn, tmp_path / "run")).status == 75
    assert seer(capfd, *words(drawn, tmp_path / "run")).status == 0
    for file in (first / "bundle" / "heads").iterdir():
        assert (tmp_path / "run" / "bundle" / "heads" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.slow
def test_in_bfloat16_with_parts_of_a_batch_it_is_judged_while_it_trains(drawn, tmp_path, capfd):
    pytest.importorskip("pycocotools")
    more = (
        "precision=bf16",
        "accumulate=2",
        "surgery=none",
        "every.evaluate=2",
        f"eval.test={drawn[0]}",
        f"eval.labels={drawn[1]}",
    )
    ended = seer(capfd, *words(drawn, tmp_path / "run", *more))
    assert ended.status == 0, ended.words
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "mask_rcnn/mask_ap50" in row] == [0, 1, 3]
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_ranks_train_backbone_and_head_with_shared_statistics(drawn, tmp_path, mode):
    more = (
        "surgery=none",
        "heads.mask_rcnn.batch_norm=true",
        f"parallel.mode={mode}",
        "parallel.batch_norm_group=2",
        "steps=2",
    )
    for run in ("run", "again")[: 2 if mode == "ddp" else 1]:
        ended = wait(start(*words(drawn, tmp_path / run, *more), ranks=2))
        assert ended.status == 0, ended.words
    if mode == "ddp":
        for file in (tmp_path / "run" / "bundle" / "heads").iterdir():
            assert (tmp_path / "again" / "bundle" / "heads" / file.name).read_bytes() == file.read_bytes()
    (head,) = read_heads(tmp_path / "run" / "bundle").values()
    moved = [
        name
        for name, tensor in head.build().state_dict().items()
        if name.endswith("running_var") and (tensor != 1).any()
    ]
    assert any(name.startswith("fpn.") for name in moved) and any("box_head" in name for name in moved)


@pytest.mark.slow
def test_shards_are_learned_from_by_the_names_that_their_images_had(drawn, tmp_path, capfd):
    pytest.importorskip("pycocotools")
    assert (
        seer(capfd, "shard", f"source={drawn[0]}", f"output={tmp_path / 'shards'}", "processes=1", "per_shard=5").status
        == 0
    )
    ended = seer(capfd, *words((tmp_path / "shards", drawn[1]), tmp_path / "run", "steps=1"))
    assert ended.status == 0 and "1 of the 12 images are not listed" in ended.words, ended.words
    asked = (f"data.test={tmp_path / 'shards'}", f"data.labels={drawn[1]}", "device=cpu", "eval.draws=0")
    ended = seer(capfd, "evaluate", "eval=head", f"weights={tmp_path / 'run'}", *asked)
    assert ended.status == 0 and ended.result["images"] == 11 and ended.result["left_out"] == {"target": 1}


@pytest.mark.slow
def test_detect_learns_from_the_same_folder_and_file(drawn, tmp_path, capfd):
    given = [word for word in words(drawn, tmp_path / "run") if "mask_rcnn" not in word]
    ended = seer(capfd, *given, "heads=detect", "heads.detect.stages=[stage1,stage2]", "heads.detect.width=8")
    assert ended.status == 0 and ended.result["classes"] == 2, ended.words
    asked = (
        "evaluate",
        "eval=head",
        f"weights={tmp_path / 'run'}",
        f"data.test={drawn[0]}",
        f"data.labels={drawn[1]}",
        "device=cpu",
    )
    ended = seer(capfd, *asked, "eval.draws=0")
    assert ended.status == 0 and ended.result["images"] == 11 and 0 <= ended.result["detect/ap50"] <= 1, ended.words


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["data.labels=auto"], "data.labels=FILE.json"),
        (["data.labels=bare.json"], "no outlines"),
        (["augment=one_view"], "augment=whole_image"),
        (["heads=[mask_rcnn,classify]"], "classify"),
        (["heads.mask_rcnn.anchors=[8,16]"], "3 sides"),
        (["heads.mask_rcnn.classes=[bird]"], "bird"),
        (["heads.mask_rcnn.regions=0"], "regions=0"),
        (["eval.test=FOLDER"], "eval.labels"),
        (["parallel.remat=budget=8"], "parallel.remat=block"),
    ],
)
def test_what_cannot_be_is_a_wrong_request_and_leaves_no_folder(more, named, drawn, tmp_path, capfd):
    more = [
        word.replace("bare.json", str(drawn[1].with_name("bare.json"))).replace("FOLDER", str(drawn[0]))
        for word in more
    ]
    ended = seer(capfd, *words(drawn, tmp_path / "run", *more))
    assert ended.status == 78 and named in ended.result["error"], ended.result
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_it_is_no_part_of_a_program_and_its_features_are(first, tmp_path, capfd):
    given = ("export", f"weights={first}", "to=torch_export", "pictures=2")
    for more in ((), ("outputs=[mask_rcnn]",), ("outputs=[features,mask_rcnn]",)):
        ended = seer(capfd, *given, f"output={tmp_path / 'program'}", *more)
        assert ended.status == 78 and says(ended.result["error"], "mask_rcnn", "outputs=features"), ended.result
    assert not (tmp_path / "program").exists()
    assert seer(capfd, *given, f"output={tmp_path / 'program'}", "outputs=features").status == 0
