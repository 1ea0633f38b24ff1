"""`seer adapt`: heads on a backbone that stays to the bit, added one after another, whole networks, and words that are refused.

The backbone is the bundle that commit d7ff748 made from drawn images (`tests/models/bundles_1/run`), the data are drawn.
"""

import io
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from seer.cli import config
from seer.core.errors import RequestError
from seer.data import synthetic as sample
from seer.data.shards.writer import write_shards
from seer.models.bundle import read_bundle, read_description, read_heads
from seer.models.head_files import hash_of_tensors
from seer.models.multi_head import MultiHead
from seer.tasks.heads import HeadsTask
from tests.program import finished, seer

BASE = Path(__file__).resolve().parents[1] / "models" / "bundles_1" / "run"
FEW = (
    "batch=16", "steps=6", "every.log=1", "every.evaluate=0", "every.checkpoint=2", "log.tensorboard=false", "data.threads=1",
    "precision=fp32", "parallel.device=cpu",
)  # fmt: skip
MAP, DETECT = (
    "heads.map.classes=[ground,thing]",
    ("heads.detect.classes=[thing]", "heads.detect.stages=[stage1,stage2]"),
)


def with_targets(count: int, seed: int):
    """Drawn images with a mask (the middle is a thing), a box around that and a number."""
    for key, fields in sample.samples(count, seed=seed):
        width, height = Image.open(io.BytesIO(fields["jpg"])).size
        left, top, right, bottom = width // 4, height // 4, 3 * width // 4, 3 * height // 4
        mask, data = np.zeros((height, width), np.uint8), io.BytesIO()
        mask[top:bottom, left:right] = 1
        Image.fromarray(mask).save(data, "png")
        box = json.dumps([[left, top, right, bottom, 0]]).encode()
        yield key, {**fields, "mask.png": data.getvalue(), "boxes.json": box, "value.json": b"0.5"}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    write_shards(with_targets(48, 3), folder, total=48, per_shard=24, card={"classes": list(sample.SHAPE_CLASSES)})
    return folder


@pytest.fixture(scope="module")
def first(labelled, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("adapt") / "first"
    words = ("heads=[classify,map]", MAP, "heads.map.stages=[stage1]", f"data.train={labelled}", f"output={run}")
    ended = finished("adapt", f"weights={BASE}", *FEW, *words)
    assert ended.status == 0, ended.words
    return run


def answers(folder: Path) -> dict[str, list[torch.Tensor]]:
    """What every head of a bundle says of the same images."""
    model = MultiHead(read_bundle(folder)[0], {name: head.build() for name, head in read_heads(folder).items()}).eval()
    x = (torch.arange(2 * 3 * 32 * 32).reshape(2, 3, 32, 32) % 97).float() / 97 - 0.5
    with torch.no_grad():
        return {name: list(found) if isinstance(found, tuple) else [found] for name, found in model(x).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
def test_heads_learn_and_the_backbone_with_its_statistics_stays_to_the_bit(first):
    parent, now = (load_file(folder / "backbone.safetensors") for folder in (BASE, first / "bundle"))
    assert same(parent, now)
    described, heads = read_description(first / "bundle"), read_heads(first / "bundle")
    digest = hash_of_tensors(parent)
    assert described["version"] == 2 and described["lineage"]["parent"] == described["lineage"]["backbone"] == digest
    assert list(heads) == ["classify", "map"] and heads["classify"].card.classes == tuple(sorted(sample.SHAPE_CLASSES))
    assert heads["map"].card.stages == ("stage1",) and heads["map"].card.classes == ("ground", "thing")
    losses = [json.loads(line) for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1]["map/loss"] < losses[0]["map/loss"] < 1
    # the weights said what network they are of and what images it takes
    assert described["architecture"] == read_description(BASE)["architecture"] and described["input_size"] == 32


@pytest.mark.slow
def test_a_head_added_later_leaves_outputs_and_files_of_the_earlier_ones_alone(first, labelled, tmp_path, capfd):
    words = ("heads=detect", *DETECT, f"data.train={labelled}", f"output={tmp_path / 'more'}")
    ended = seer(capfd, "adapt", f"weights={first}", *FEW, *words)
    assert ended.status == 0, ended.words
    before, after = first / "bundle", tmp_path / "more" / "bundle"
    files = sorted(path.name for path in (before / "heads").iterdir())
    assert files == ["classify.json", "classify.safetensors", "map.json", "map.safetensors"]
    assert all((after / "heads" / name).read_bytes() == (before / "heads" / name).read_bytes() for name in files)
    assert {n: read_description(after)["heads"][n] for n in ("classify", "map")} == read_description(before)["heads"]
    old, new = answers(before), answers(after)
    assert list(new) == ["classify", "map", "detect"]
    assert all(torch.equal(a, b) for name in old for a, b in zip(old[name], new[name], strict=True))


@pytest.mark.slow
def test_a_backbone_that_is_trained_too_leaves_earlier_heads_behind_and_says_so(first, labelled, tmp_path, capfd):
    words = ("heads=regress", "surgery=none", f"data.train={labelled}", f"output={tmp_path / 'fine'}")
    ended = seer(capfd, "adapt", f"weights={first}", *FEW, *words)
    assert ended.status == 0 and "classify, map" in ended.words, ended.words
    lineage = read_description(tmp_path / "fine" / "bundle")["lineage"]
    assert lineage["parent"] == read_description(first / "bundle")["lineage"]["backbone"] != lineage["backbone"]
    assert list(read_heads(tmp_path / "fine" / "bundle")) == ["regress"]


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_to_the_same_head(first, labelled, tmp_path, monkeypatch, capfd):
    after = HeadsTask.after_step

    def stop(task: HeadsTask, step: int) -> None:
        after(task, step)
        if step == 3:
            signal.raise_signal(signal.SIGTERM)

    words = (
        "heads=[classify,map]",
        MAP,
        "heads.map.stages=[stage1]",
        f"data.train={labelled}",
        f"output={tmp_path / 'run'}",
    )
    with monkeypatch.context() as patch:
        patch.setattr(HeadsTask, "after_step", stop)
        assert seer(capfd, "adapt", f"weights={BASE}", *FEW, *words).status == 75
    assert [head.card.kind for head in read_heads(tmp_path / "run" / "bundle").values()] == ["classify", "map"]
    assert seer(capfd, "adapt", f"weights={BASE}", *FEW, *words).status == 0
    for file in (first / "bundle" / "heads").iterdir():
        assert (tmp_path / "run" / "bundle" / "heads" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_ranks_keep_earlier_heads_and_make_the_head_of_one_process(first, labelled, tmp_path, mode, capfd):
    words = ("adapt", f"weights={first}", *FEW, "heads=regress", f"data.train={labelled}")
    alone = seer(capfd, *words, f"output={tmp_path / 'alone'}")
    assert alone.status == 0, alone.words
    ended = finished(*words, f"parallel.mode={mode}", f"output={tmp_path / 'two'}", ranks=2)
    assert ended.status == 0, ended.words
    one, two = (read_heads(tmp_path / run / "bundle") for run in ("alone", "two"))
    assert list(one) == list(two) == ["classify", "map", "regress"] and one["map"] == two["map"]
    a, b = one["regress"].build().state_dict(), two["regress"].build().state_dict()
    assert all(torch.allclose(a[key], b[key], atol=1e-4) for key in a)


@pytest.mark.slow
def test_from_scratch_and_as_published(labelled, tmp_path, capfd):
    tiny = (
        "model=regnety_tiny",
        "model.widths=[8,16]",
        "model.depths=[1,1]",
        "model.group_widths=[8,8]",
        "augment.size=32",
    )
    words = ("recipe=finetune", *tiny, *FEW, "batch=24", "steps=4", "schedule.lowered_at=[3]", f"data.train={labelled}")
    ended = seer(capfd, "adapt", *words, f"output={tmp_path / 'run'}")
    assert ended.status == 0, ended.words
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [row["lr"] for row in rows if "lr" in row]
    assert rates == pytest.approx([0.0125 * 24 / 256] * 3 + [0.00125 * 24 / 256])
    assert read_description(tmp_path / "run" / "bundle")["lineage"]["parent"] is None


@pytest.mark.slow
def test_a_damaged_earlier_head_stops_a_run_before_it_has_a_folder(first, labelled, tmp_path, capfd):
    shutil.copytree(first / "bundle", tmp_path / "bundle")
    file = tmp_path / "bundle" / "heads" / "map.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    words = ("heads=regress", f"data.train={labelled}", f"output={tmp_path / 'run'}")
    ended = seer(capfd, "adapt", f"weights={tmp_path / 'bundle'}", *FEW, *words)
    assert ended.status == 78 and "map" in ended.result["error"] and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["heads=map"], "task.heads.map.classes"),
        (["heads=[]"], "heads"),
        (["heads=[classify,classify]"], "classify"),
        (["heads=clasify"], "classify"),
        (["heads.classify.wdth=3"], "task.heads.classify"),
        (["task=swav"], "task"),
        (["recipe=cifar"], "recipe"),
        (["weights=null"], "surgery=none"),
        (["heads=classify", "heads.classify.stages=[stage9]"], "stage9"),
        (["data.train=null"], "data.source"),
    ],
)
def test_what_cannot_be_is_a_wrong_request_and_leaves_no_folder(words, named, labelled, tmp_path, capfd):
    given = {word.partition("=")[0]: word for word in (f"weights={BASE}", f"data.train={labelled}", *words)}
    ended = seer(capfd, "adapt", *FEW, *given.values(), f"output={tmp_path / 'run'}")
    assert ended.status == 78 and named in ended.result["error"], ended.result
    assert not (tmp_path / "run").exists()


def test_words_of_heads_are_keys_of_the_task_and_a_recipe_of_heads_is_not_of_pretrain():
    found = config.read("adapt", ["heads=detect", *DETECT, "data.train=x"])
    assert found["task"]["heads"]["detect"]["classes"] == ["thing"] and found["data"]["source"] == "x"
    assert list(found["task"]["heads"]) == ["detect"] and found["optim"]["_target_"] == "torch.optim.AdamW"
    published = config.read("adapt", ["recipe=finetune"])
    assert published["optim"]["momentum"] == 0.9 and published["optim"]["weight_decay"] == 1e-4
    assert published["schedule"]["peak"] == "0.0125@256" and published["schedule"]["lowered_at"] == ["30ep"]
    assert (published["steps"], published["batch"], published["surgery"]["steps"]) == ("35ep", 256, [])
    with pytest.raises(RequestError):
        config.read("pretrain", ["recipe=finetune"])
