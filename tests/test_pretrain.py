"""The whole way, at the smallest size: images in, a backbone out, through the program's own words."""

import json
from pathlib import Path

import pytest
import torch
import torchvision

from seer.data import synthetic as sample
from seer.data.shards.open import open_shards
from seer.data.shards.writer import write_shards
from seer.evals.features import LabelledImages, extract
from seer.evals.linear import linear_top1
from seer.models.pretrained import load_backbone
from seer.run.weights import load
from tests.program import SMALL, last_of_each, seer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of loose JPEGs in class folders, one of them cut short; and labelled shards beside it."""
    folder = tmp_path_factory.mktemp("pictures")
    for key, fields in sample.samples(60, seed=1):
        place = folder / "loose" / f"kind{fields['cls'].decode()}" / f"{key}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(fields["jpg"])
    broken = folder / "loose" / "kind0" / "broken.jpg"
    broken.write_bytes(place.read_bytes()[:300])
    for part, first in (("train", 100), ("test", 200)):
        write_shards(sample.samples(40, seed=1, first=first), folder / part, total=40, per_shard=25)
    return folder


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 8 steps over two epochs, with a probe."""
    from seer.cli.main import main

    folder = tmp_path_factory.mktemp("runs") / "first"
    probe = (f"eval.train={images / 'train'}", f"eval.test={images / 'test'}", "eval.k=5")
    words = (f"data.source={images / 'loose'}", f"output={folder}", "steps=8", "every.evaluate=50%")
    assert main(last_of_each(("pretrain", *SMALL, *probe, *words))) == 0
    return folder


def test_the_result_names_what_was_asked_for(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    assert result["exit"] == 0 and result["steps"] == 8 and result["images"] == 128
    for key in ("loss", "images_per_s", "seconds", "knn_top1", "knn_top1_untrained", "knn_pixels", "knn_colours"):
        assert isinstance(result[key], float), key
    assert len(result["knn_curve"]) == 3  # untrained, half way, at the end
    assert Path(result["checkpoint"], "manifest.json").exists()


def test_the_run_folder_holds_what_the_design_lists(run: Path) -> None:
    names = {p.name for p in run.iterdir()}
    assert {
        "config.yaml",
        "environment.json",
        "train.log",
        "metrics.jsonl",
        "skipped.jsonl",
        "result.json",
        "checkpoints",
        "bundle",
    } <= names
    assert (run / "checkpoints" / "last").resolve().name == "step-00000008"


def test_every_logged_step_has_the_names_of_the_design(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(8))
    wanted = "epoch images loss lr weight_decay grad_norm images_per_s data_wait step_ms peak_memory_gb skipped"
    assert set(wanted.split()) | {"codes/entropy", "codes/used_prototypes", "codes/residual"} <= set(steps[0])


def test_an_undecodable_image_is_skipped_counted_and_named(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert {row["member"] for row in rows} == {"kind0/broken.jpg"} and all(row["reason"] for row in rows)
    assert json.loads((run / "result.json").read_text())["skipped"] == len(rows) >= 2  # it comes once an epoch


def test_the_same_command_on_a_finished_run_repeats_its_result(run: Path, images: Path, capfd) -> None:
    before = json.loads((run / "result.json").read_text())
    probe = (f"eval.train={images / 'train'}", f"eval.test={images / 'test'}", "eval.k=5")
    words = (f"data.source={images / 'loose'}", f"output={run}", "steps=8", "every.evaluate=50%")
    again = seer(capfd, "pretrain", *SMALL, *probe, *words)
    assert again.status == 0 and again.result["knn_curve"] == before["knn_curve"] and "complete" in again.words


def test_evaluate_gives_the_figure_that_the_probe_gave(run: Path, images: Path, capfd) -> None:
    data = (f"data.train={images / 'train'}", f"data.test={images / 'test'}")
    knn = seer(capfd, "evaluate", "eval=knn", "eval.k=5", f"weights={run}", *data)
    assert knn.result["knn_top1"] == json.loads((run / "result.json").read_text())["knn_top1"]
    linear = seer(capfd, "evaluate", "eval=linear", f"weights={run}", *data)
    backbone, card = load(str(run))
    sets = [LabelledImages(open_shards(images / part), size=card["input_size"]) for part in ("train", "test")]
    how = {"mean": tuple(card["mean"]), "std": tuple(card["std"])}
    known, asked = (extract(backbone.eval(), one, **how) for one in sets)
    assert linear.status == 0 and linear.result["linear_top1"] == linear_top1(*known, *asked)


def test_the_export_loads_strictly_into_torchvision_and_gives_the_same_features(run: Path, tmp_path, capfd) -> None:
    ended = seer(capfd, "export", f"weights={run}", "to=torchvision", f"output={tmp_path / 'backbone.pth'}")
    assert ended.status == 0 and ended.result["parity"] <= 1e-5
    shape = torchvision.models.regnet.BlockParams(
        **{k: v for k, v in ended.result["block_params"].items() if k != "se_ratio"}, se_ratio=0.25
    )
    theirs = torchvision.models.RegNet(shape)
    theirs.fc = torch.nn.Identity()
    theirs.load_state_dict(torch.load(tmp_path / "backbone.pth", weights_only=True), strict=True)
    ours, x = load_backbone(run).eval(), torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(theirs.eval()(x), ours(x), rtol=1e-5, atol=1e-5)


def test_a_stride_1_stem_is_refused_by_torchvision_export_and_kept_by_safetensors(images, tmp_path, capfd) -> None:
    words = ("model.stem_stride=1", f"data.source={images / 'train'}", f"output={tmp_path / 'run'}", "steps=1")
    assert seer(capfd, "pretrain", *SMALL, *words).status == 0
    refused = seer(capfd, "export", f"weights={tmp_path / 'run'}", "to=torchvision", f"output={tmp_path / 'x.pth'}")
    assert refused.status == 78 and "stem_stride=1" in refused.words and not (tmp_path / "x.pth").exists()
    kept = seer(capfd, "export", f"weights={tmp_path / 'run'}", "to=safetensors", f"output={tmp_path / 'bundle'}")
    assert kept.status == 0 and load_backbone(tmp_path / "bundle").stem_stride == 1  # type: ignore[attr-defined]
