"""Fine-tuning: the published recipe number by number, and its switches, by `seer adapt` on drawn images."""

import inspect
import json
import shutil
import signal
from contextlib import closing
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from seer.cli import config
from seer.core.build import find
from seer.data import synthetic as sample
from seer.data.augment import normalize
from seer.data.holdout import chosen
from seer.data.shards.open import open_shards
from seer.data.shards.writer import write_shards
from seer.data.transforms.multi_crop import MultiCrop
from seer.engine.checkpoint_files import read_part
from seer.evals.features import short_side
from seer.models.bundle import read_heads
from seer.parallel.world import World
from seer.run import assemble, network_input
from seer.run.config import PlateauConfig, RunConfig
from seer.run.kept_out import kept_out
from seer.run.opened import open_run
from seer.run.schedule import Durations, schedule
from seer.run.weights import load
from seer.tasks.heads import HeadsTask
from tests.program import seer, start, wait, went_on_from

BASE = Path(__file__).resolve().parents[1] / "models" / "bundles_1" / "run"
IMAGENET = 1_281_167  # training images of ILSVRC-2012


@pytest.mark.parametrize(("recipe", "side", "short"), [("finetune", 224, 256), ("finetune_384", 384, 384)])
def test_the_recipe_is_the_article_s_number_by_number(recipe, side, short):
    found = config.read("adapt", [f"recipe={recipe}", "weights=w", "data.train=d"])
    assert found["steps"] == "35ep" and found["batch"] == 256 and found["surgery"]["steps"] == []
    optim = found["optim"]
    assert optim["_target_"] == "torch.optim.SGD" and (optim["momentum"], optim["weight_decay"]) == (0.9, 1e-4)
    assert not optim["nesterov"] and optim["dampening"] == 0
    lengths = Durations(found["steps"], found["batch"], IMAGENET)
    rate, _ = schedule(found["schedule"], PlateauConfig(), lengths)
    epoch = IMAGENET / 256
    assert lengths.total == pytest.approx(35 * epoch, abs=1)
    assert [rate(0), rate(int(30 * epoch) - 1)] == [0.0125, 0.0125]
    assert [rate(int(30 * epoch) + 2), rate(lengths.total - 1)] == pytest.approx([0.00125, 0.00125])
    large = inspect.signature(MultiCrop).parameters  # SwAV's views; `augment=swav` says no more than that
    view = found["augment"]
    for name in ("jitter", "brightness", "contrast", "saturation", "hue", "grayscale", "blur", "flip"):
        assert view[name] == large[name].default, name
    assert (view["hue"], view["jitter"], view["grayscale"], view["blur"]) == (0.2, 0.8, 0.2, 0.5)
    assert tuple(view["scale"]) == large["scales"].default[0] == (0.14, 1.0)
    assert tuple(view["blur_sigma"]) == (0.1, 2.0) and tuple(view["aspect"]) == (3 / 4, 4 / 3)
    assert view["size"] == side and view["train"]
    # judged on the center of the whole image
    judged = found["eval"]["size"] or view["size"]
    assert judged == side and (found["eval"]["resize"] or short_side(judged)) == short
    find("augment", view["_target_"])(**{k: v for k, v in view.items() if k != "_target_"})


FEW = (
    "batch=16", "steps=8", "every.log=1", "every.evaluate=0", "every.checkpoint=3", "log.tensorboard=false", "data.threads=1",
    "precision=fp32", "parallel.device=cpu", "surgery=none", "optim=sgd", "schedule=step_decay", "schedule.peak=0.05",
)  # fmt: skip
ALL = (
    "layer_decay=0.5",
    "task.heads_first=3",
    "ema=0.8",
    "task.mixup=0.4",
    "task.cutmix=1.0",
    "heads.classify.smoothing=0.1",
)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    write_shards(
        sample.samples(48, seed=3), folder, total=48, per_shard=24, card={"classes": list(sample.SHAPE_CLASSES)}
    )
    return folder


def tensors(run: Path) -> dict[str, torch.Tensor]:
    bundle = run / "bundle"
    heads = {
        f"{file.stem}.{n}": t for file in (bundle / "heads").glob("*.safetensors") for n, t in load_file(file).items()
    }
    return {**load_file(bundle / "backbone.safetensors"), **heads}


def same(a: Path, b: Path) -> bool:
    one, two = tensors(a), tensors(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def all_switches(labelled, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("switches") / "run"
    ended = wait(start("adapt", f"weights={BASE}", *FEW, *ALL, f"data.train={labelled}", f"output={run}"))
    assert ended.status == 0, ended.words
    return run


@pytest.mark.slow
@pytest.mark.parametrize("stopped_after", [2, 5])  # before and after the border of heads_first
def test_a_run_of_all_switches_goes_on_to_the_same_bits(
    all_switches, labelled, tmp_path, monkeypatch, capfd, stopped_after
):
    after = HeadsTask.after_step

    def stop(task: HeadsTask, step: int) -> None:
        after(task, step)
        if step == stopped_after - 1:
            signal.raise_signal(signal.SIGTERM)

    words = ("adapt", f"weights={BASE}", *FEW, *ALL, f"data.train={labelled}", f"output={tmp_path / 'run'}")
    with monkeypatch.context() as patch:
        patch.setattr(HeadsTask, "after_step", stop)
        assert seer(capfd, *words).status == 75
    ended = seer(capfd, *words)
    assert ended.status == 0 and went_on_from(ended) == stopped_after
    assert same(tmp_path / "run", all_switches)


@pytest.mark.slow
def test_the_backbone_rests_with_its_statistics_until_the_border_and_moves_then(labelled, tmp_path, capfd):
    words = ("adapt", f"weights={BASE}", *FEW, "task.heads_first=4", f"data.train={labelled}")
    parent = load_file(BASE / "backbone.safetensors")
    for steps, rests in ((4, True), (5, False)):
        run = tmp_path / str(steps)
        assert seer(capfd, *words, f"steps={steps}", f"output={run}").status == 0
        now = load_file(run / "bundle" / "backbone.safetensors")
        moved = {name for name in now if not torch.equal(now[name], parent[name])}
        statistics = {name for name in now if name.endswith(("running_mean", "running_var"))}
        assert moved == set() if rests else statistics <= moved and len(moved) > len(now) / 2
    # and heads learned what they learn on a backbone that never moves, whose batches are the same
    frozen = tmp_path / "frozen"
    assert seer(capfd, *words[:2], *FEW, "surgery=freeze", words[-1], "steps=4", f"output={frozen}").status == 0
    assert same(frozen, tmp_path / "4")


@pytest.mark.slow
def test_what_is_handed_over_is_the_average_and_weights_of_a_run_are_too(all_switches, labelled, tmp_path, capfd):
    average, _manifest = read_part(all_switches / "checkpoints" / "step-00000008", "ema/")
    plain, _ = read_part(all_switches / "checkpoints" / "step-00000008", "task/")
    found = load_file(all_switches / "bundle" / "backbone.safetensors")
    assert all(torch.equal(found[name], average[f"backbone.{name}"]) for name in found)
    assert any(not torch.equal(found[name], plain[f"backbone.{name}"]) for name in found)
    shutil.copytree(all_switches, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "bundle")
    backbone, _ = load(str(tmp_path / "run"))  # from the checkpoint, where there is no bundle
    assert all(torch.equal(tensor, found[name]) for name, tensor in backbone.state_dict().items())
    assert torch.equal(open_run(tmp_path / "run").task.head.weight, average["classify.weight"])
    ended = seer(capfd, "evaluate", "eval=head", f"weights={tmp_path / 'run'}", f"data.test={labelled}", "device=cpu")
    assert ended.status == 0 and ended.result["classify/top1"] >= 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_ranks_make_what_one_process_makes(all_switches, labelled, tmp_path, mode):
    run = tmp_path / "two"
    words = ("adapt", f"weights={BASE}", *FEW, *ALL, f"data.train={labelled}", f"parallel.mode={mode}", f"output={run}")
    ended = wait(start(*words, ranks=2))
    assert ended.status == 0, ended.words
    one, two = tensors(all_switches), tensors(run)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name].float(), two[name].float(), atol=2e-4, rtol=2e-3, msg=name)


@pytest.mark.slow
def test_from_scratch_and_supervised_pretraining_go_by_the_same_words(labelled, tmp_path, capfd):
    tiny = (
        "model=regnety_tiny",
        "model.widths=[8,16]",
        "model.depths=[1,1]",
        "model.group_widths=[8,8]",
        "augment.size=32",
    )
    scratch = ("adapt", *tiny, *FEW, *ALL, f"data.train={labelled}", f"output={tmp_path / 'scratch'}")
    assert seer(capfd, *scratch).status == 0
    assert json.loads((tmp_path / "scratch" / "bundle" / "bundle.json").read_text())["lineage"]["parent"] is None
    supervised = ("pretrain", "task=heads", "augment=one_view", *tiny, *FEW, f"data.source={labelled}")
    ended = seer(capfd, *supervised, f"output={tmp_path / 'supervised'}")
    assert ended.status == 0, ended.words
    more = ("adapt", f"weights={tmp_path / 'supervised'}", *FEW, "surgery=freeze", f"data.train={labelled}")
    assert seer(capfd, *more, f"output={tmp_path / 'more'}").status == 0
    parent = load_file(tmp_path / "supervised" / "bundle" / "backbone.safetensors")
    assert all(
        torch.equal(parent[n], t) for n, t in load_file(tmp_path / "more" / "bundle" / "backbone.safetensors").items()
    )


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["layer_decay=0"], "layer_decay"),
        (["layer_decay=1.1"], "layer_decay"),
        (["ema=1"], "ema"),
        (["task.mixup=-1"], "task.mixup"),
        (["mixup=0.2"], "task.mixup=0.2"),
        (["holdout=100%"], "holdout"),
        (["task.mixup=0.2", "batch=9"], "batch=9"),
        (["task.mixup=0.2", "heads=[classify,map]", "heads.map.classes=[a,b]"], "heads.map"),
        (["surgery=freeze", "task.heads_first=2"], "task.heads_first"),
    ],
)
def test_a_switch_that_cannot_be_is_a_wrong_request_and_leaves_no_folder(words, named, labelled, tmp_path, capfd):
    ended = seer(
        capfd, "adapt", f"weights={BASE}", *FEW, f"data.train={labelled}", *words, f"output={tmp_path / 'run'}"
    )
    assert ended.status == 78 and named in ended.result["error"], ended.result
    assert not (tmp_path / "run").exists()


def tagged(count: int, seed: int):
    """Drawn images with tags: their class, and of every other one the last as well; none of every seventh."""
    for i, (key, fields) in enumerate(sample.samples(count, seed=seed)):
        numbers = [fields["cls"].decode()] + [str(len(sample.SHAPE_CLASSES))] * (i % 2 == 0)
        yield key, {**fields, "cls": " ".join(numbers if i % 7 else []).encode()}


@pytest.mark.slow
def test_images_held_out_are_not_trained_on_and_thresholds_are_those_of_best_f1_there(tmp_path, capfd):
    folder = tmp_path / "tagged"
    write_shards(tagged(60, 3), folder, total=60, per_shard=20, card={"classes": [*sample.SHAPE_CLASSES, "even"]})
    words = ("adapt", f"weights={BASE}", *FEW, "heads=tags", "holdout=20%", f"data.train={folder}")
    ended = seer(capfd, *words, "probe=[head]", "every.keep_best=tags/map", f"output={tmp_path / 'run'}")
    assert ended.status == 0, ended.words
    assert ended.result["best"]["metric"] == "tags/map" and Path(ended.result["best"]["checkpoint"]).is_dir()
    held = chosen([20, 20, 20], "20%", 0)
    said = ended.result["holdout"]
    assert said["images"] == 12 == len(held) and said["judged_on"] == "holdout"
    card = read_heads(tmp_path / "run" / "bundle")["tags"].card
    assert list(card.thresholds) == said["chosen"]["thresholds"]["tags"]
    # by hand: of all thresholds that part the scores, none has a higher F1
    run = open_run(tmp_path / "run")
    images = kept_out(run.config, run.task, run.shards)
    assert images is not None and images.rows == held
    fields = next(images.batches(64))
    run.task.model.eval()
    x = normalize(fields["pixels"].float().div(255), run.task.transform.mean, run.task.transform.std)
    with torch.no_grad():
        sure = run.task.model(x)["tags"].double().sigmoid()
    true = fields["labels"] > 0.5
    for y, threshold in enumerate(card.thresholds):
        if not true[:, y].any():
            assert threshold == 0.5
            continue
        f1 = {t: 2 * int((found & true[:, y]).sum()) / int(found.sum() + true[:, y].sum())
            for t in [*sure[:, y].tolist(), threshold] for found in [sure[:, y] >= t]}  # fmt: skip
        assert f1[threshold] == max(f1.values())
    row = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][-1]
    assert 0 <= row["tags/f1"] <= 1


def test_none_of_the_images_held_out_is_read(tmp_path, monkeypatch):
    folder = tmp_path / "labelled"
    write_shards(
        sample.samples(40, seed=3), folder, total=40, per_shard=20, card={"classes": list(sample.SHAPE_CLASSES)}
    )
    shards = open_shards(str(folder))
    held = set(chosen([20, 20], 10, 0))
    few = [word for word in FEW if not word.startswith(("data.threads", "batch"))]
    own = [
        "weights=null",
        "model=regnety_tiny",
        f"data.train={folder}",
        "augment.size=32",
        "data.threads=0",
        "batch=20",
    ]
    asked = RunConfig.of(config.read("adapt", [*few, *own]))
    data = assemble.data(asked, shards, network_input.transform(asked), World(0, 1, 0, torch.device("cpu")), held)
    read: list[tuple[int, int]] = []

    inner = type(shards[0]).read

    def reading(self, number, row, *more):
        read.append((number, row))
        return inner(self, number, row, *more)

    monkeypatch.setattr(type(shards[0]), "read", reading)
    with closing(data.loader.batches(0)) as batches:
        for _ in range(6):
            next(batches)
    assert len(set(read)) == 30 and not set(read) & held
