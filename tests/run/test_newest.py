"""`weights=RUN` is the newest whole state of the run. The truth is read from the checkpoint's file by safetensors alone."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from seer.cli.main import main
from seer.core.errors import RequestError, StorageError
from seer.core.log import setup
from seer.data import synthetic as sample
from seer.data.shards.writer import write_shards
from seer.models.bundle import card_of, read_bundle
from seer.models.pretrained import load_backbone
from seer.models.regnet import RegNet
from seer.run import newest as run_weights
from seer.run import weights
from seer.run.weights import start_from, state
from seer.tasks.swav import SwAVTask
from tests.engine.checkpoints import flip
from tests.messages import naming, says
from tests.program import ROOT, SMALL, Ended, last_of_each, seer

pytestmark = pytest.mark.slow
WORDS = ("pretrain", *SMALL, "model=regnety_tiny", "steps=6", "every.checkpoint=1", "every.keep=9")
SHAPE = {k: v for k, v in yaml.safe_load((ROOT / "configs/model/regnety_tiny.yaml").read_text()).items() if k[0] != "_"}
TENSORS = "shard-00001-model-00001-of-00001.safetensors"


def struck(step: int, number: int) -> Callable[[SwAVTask, int], None]:
    """An `after_step` that sends a signal so that the run stops with `step` steps done."""
    after_step = SwAVTask.after_step

    def strike(task: SwAVTask, done: int) -> None:
        after_step(task, done)
        if done + 1 == step:
            signal.raise_signal(number)

    return strike


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run that Ctrl-C stopped at step 2, with its bundle, and SIGTERM at step 4; RUN-done is the same, gone on to its end."""
    folder = tmp_path_factory.mktemp("made")
    write_shards(sample.samples(48, seed=1), folder / "pictures", total=48, per_shard=48)
    words = (*WORDS, f"data.source={folder / 'pictures'}", f"output={folder / 'run'}")
    with pytest.MonkeyPatch.context() as patch:
        for step, number in ((2, signal.SIGINT), (4, signal.SIGTERM)):
            patch.setattr(SwAVTask, "after_step", struck(step, number))
            assert main(last_of_each(words)) == 75
            patch.undo()
            if number == signal.SIGINT:  # as it was before small bundles came with every checkpoint
                shutil.copytree(folder / "run" / "bundle", folder / "of-step-2")
        shutil.rmtree(folder / "run" / "bundle", ignore_errors=True)
        shutil.copytree(folder / "of-step-2", folder / "run" / "bundle")
        shutil.copytree(folder / "run", folder / "done", symlinks=True)
        assert main([word.replace(str(folder / "run"), str(folder / "done")) for word in last_of_each(words)]) == 0
    return folder


@pytest.fixture(autouse=True)
def aloud():
    """The program's words go to the standard error of the test that runs now."""
    setup()


@pytest.fixture
def run(made, tmp_path) -> Path:
    """The stopped run, to be spoilt."""
    shutil.copytree(made / "run", tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def truth(run: Path, step: int) -> dict[str, torch.Tensor]:
    """The backbone in the file of a checkpoint, of one process."""
    found = load_file(checkpoint(run, step) / TENSORS)
    names = {name: name.removeprefix("statistics-00000/") for name in found}
    start = "task/backbone."
    return {plain.removeprefix(start): found[name] for name, plain in names.items() if plain.startswith(start)}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def features(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    network = RegNet(**SHAPE)
    network.load_state_dict(tensors)
    with torch.no_grad():
        return network.eval()(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(5)))


def export(capfd, place: Path, output: Path) -> Ended:
    return seer(capfd, "export", "to=safetensors", f"weights={place}", f"output={output}", "pictures=2")


def test_a_run_stopped_by_sigterm_gives_its_newest_checkpoint_and_never_the_older_bundle(run, tmp_path, capfd):
    ended = export(capfd, run, tmp_path / "taken")
    assert ended.status == 0, ended.words
    assert (ended.result["weights_step"], ended.result["weights_from"]) == (4, "checkpoint")
    taken = load_file(tmp_path / "taken" / "backbone.safetensors")
    assert same(taken, truth(run, 4)) and not same(taken, load_file(run / "bundle" / "backbone.safetensors"))
    assert torch.equal(features(taken), features(truth(run, 4)))
    assert not torch.equal(features(taken), features(truth(run, 2)))
    assert says(ended.words, "checkpoint", "step 4", "bundle", "step 2")
    described = json.loads((tmp_path / "taken" / "bundle.json").read_text())["provenance"]
    assert (described["step"], described["images_seen"]) == (4, 64)


def test_evaluate_reads_it_as_well_and_says_which_it_was(made, run, capfd):
    words = (f"data.train={made / 'pictures'}", f"data.test={made / 'pictures'}")
    shutil.rmtree(run / "bundle")
    found = [seer(capfd, "evaluate", "eval=rankme", f"weights={w}", *words) for w in (run, checkpoint(run, 2))]
    assert [one.status for one in found] == [0, 0], found[0].words
    assert [one.result["weights_step"] for one in found] == [4, 2]
    assert found[0].result["rankme"] != found[1].result["rankme"]
    of_bundle = seer(capfd, "evaluate", "eval=rankme", f"weights={made / 'of-step-2'}", *words)
    assert of_bundle.result["rankme"] == found[1].result["rankme"]
    assert (of_bundle.result["weights_step"], of_bundle.result["weights_from"]) == (2, "bundle")


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoints/step-00000003", 3),
        ("checkpoints/last", 4),
        ("checkpoints", 4),
        (f"checkpoints/step-00000003/{TENSORS}", 3),
        ("link", 4),
    ],
)
def test_a_checkpoint_by_name_is_that_one(run, name, step):
    (run / "link").symlink_to(run)
    found = state(str(run / name))
    assert (found.step, found.kind) == (step, "checkpoint")
    assert same(dict(found.backbone.state_dict()), truth(run, step))


def test_of_equal_step_it_is_the_bundle_and_what_is_made_from_the_checkpoint_says_the_same(made):
    bundle, checkpointed = state(str(made / "done")), state(str(made / "done" / "checkpoints" / "last"))
    assert (bundle.step, bundle.kind) == (6, "bundle")
    assert (checkpointed.step, checkpointed.kind) == (6, "checkpoint")
    assert same(dict(bundle.backbone.state_dict()), dict(checkpointed.backbone.state_dict()))
    # which commit trained stands in no checkpoint; a bundle leaves out a ground that is black
    assert {"ground": 0, **bundle.card, "metrics": {}, "commit": None} == checkpointed.card
    assert bundle.backbone.architecture == checkpointed.backbone.architecture


def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_it_taken(run, told):
    flip(checkpoint(run, 4) / TENSORS, -1)
    found = state(str(run))
    assert found.step == 3 and same(dict(found.backbone.state_dict()), truth(run, 3))
    assert says(told.text, "step-00000004")
    with pytest.raises(StorageError, match=naming("step-00000004", "checksum")):
        state(str(checkpoint(run, 4)))
    flip(checkpoint(run, 3) / "state.json", 9)
    found = state(str(run))
    assert (found.step, found.kind) == (2, "bundle")
    (run / "bundle" / "backbone.safetensors").write_bytes(b"{}")
    found = state(str(run))
    assert (found.step, found.kind) == (2, "checkpoint")
    for step in (1, 2):
        os.truncate(checkpoint(run, step) / "manifest.json", 40)
    with pytest.raises(StorageError, match=naming(run, 5)):
        state(str(run))


def test_a_checkpoint_deleted_while_it_is_read_gives_way_to_the_newest_then(run, made, monkeypatch):
    read = run_weights.read_part

    def overtaken(folder: Path, prefix: str):
        if folder.name == "step-00000004":  # the run has saved two more meanwhile
            for step in (5, 6):
                shutil.copytree(checkpoint(made / "done", step), checkpoint(run, step), dirs_exist_ok=True)
            (run / "checkpoints" / "last").unlink()
            (run / "checkpoints" / "last").symlink_to("step-00000006")
            shutil.rmtree(folder)
        return read(folder, prefix)

    monkeypatch.setattr(run_weights, "read_part", overtaken)
    shutil.copytree(run, run.with_name("other"), symlinks=True)
    found = state(str(run))
    assert found.step == 6 and same(dict(found.backbone.state_dict()), truth(made / "done", 6))
    run = run.with_name("other")
    assert state(str(run / "checkpoints" / "last")).step == 6


def test_reading_a_run_that_goes_writes_nothing_and_leaves_what_is_being_written_alone(run):
    half_made = checkpoint(run, 5).with_name("step-00000005.0a0b0c0d.writing")
    half_made.mkdir()
    (half_made / "state.json").write_text("{")

    def seen() -> dict[str, tuple[int, int]]:
        return {str(p): (p.lstat().st_mtime_ns, p.lstat().st_size) for p in [run, *run.rglob("*")]}

    before = seen()
    assert state(str(run)).step == 4
    assert seen() == before


def test_a_run_without_anything_saved_and_a_step_that_is_not_there_are_wrong_requests(run):
    with pytest.raises(RequestError, match=naming("1, 2, 3, 4")):
        state(str(checkpoint(run, 7)))
    shutil.rmtree(run / "bundle")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RequestError, match=naming(run, "every.checkpoint=")):
        state(str(run))


def test_training_starts_from_the_newest_state_and_not_where_ranks_have_read_different_ones(run, monkeypatch):
    colors = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    backbone = RegNet(**SHAPE)
    start_from(str(run), backbone, **colors)
    assert same(dict(backbone.state_dict()), truth(run, 4))
    monkeypatch.setattr(weights, "gather_text", lambda mine, group: [mine, mine.replace("4", "5")])
    untouched = RegNet(**SHAPE)
    before = {name: tensor.clone() for name, tensor in untouched.state_dict().items()}
    with pytest.raises(RequestError, match=naming("step 4", "step 5")):
        start_from(str(run), untouched, **colors)
    assert same(dict(untouched.state_dict()), before)


def changed(run: Path, **nodes: object) -> None:
    """The run's config with other nodes; a checkpoint is newer than the bundle, so it is read."""
    wanted = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**wanted, **nodes}))


@pytest.mark.parametrize(
    "nodes",
    [
        {"model": {"_target_": "os.system", "command": "false"}},
        {"model": {"_target_": "seer.cli.main.main", "words": []}},
        {"model": {"_target_": "seer.models.bundle.write_bundle", "folder": "x", "backbone": None}},
        {"model": {"_target_": "seer.models.heads.swav.SwAVHead"}},
        {"model": "seer.models.zoo.build"},
        {"model": {"name": "regnety_tiny"}},
        {"augment": {"_target_": "seer.data.shards.open.write_shards", "samples": [], "folder": "x"}},
        {"surgery": {"steps": [{"_target_": "seer.models.bundle.write_bundle", "card": {}}]}},
        {"surgery": {"steps": ["seer.models.surgery.freeze_batch_norm"]}},
    ],
)
def test_a_config_that_names_anything_else_than_a_network_is_refused(run, nodes, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    changed(run, **nodes)
    with pytest.raises(RequestError):
        state(str(run))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_config_of_another_network_than_the_checkpoints_is_told(run):
    changed(run, model={"_target_": "seer.models.zoo.build", "name": "regnety_200mf", "device": None})
    with pytest.raises(ValueError, match=naming("architecture")):
        state(str(run))
    (run / "config.yaml").unlink()
    with pytest.raises(RequestError, match=naming("config.yaml")):
        state(str(run))


def test_frozen_batch_norms_have_no_bearing_on_reading(run):
    changed(run, surgery={"steps": [{"_target_": "seer.models.surgery.freeze_batch_norm"}]})
    found = state(str(run)).backbone
    assert same(dict(found.state_dict()), truth(run, 4)) and not found.training
    assert all(p.requires_grad for p in found.parameters())
    assert {type(m) for m in found.modules()} == {type(m) for m in RegNet(**SHAPE).modules()}


def test_the_licence_of_weights_that_training_started_from_stays_with_the_checkpoint(run, told):
    changed(run, weights="somebody.pth")
    manifest = json.loads((checkpoint(run, 4) / "manifest.json").read_text())
    assert manifest["licence"] is None  # what this version writes
    described = read_bundle(run / "bundle")[1]
    assert state(str(run)).card["licence"] == card_of(described)["licence"] is None


def test_a_bundle_asked_for_by_name_or_in_python_is_taken_and_its_age_told(run, told):
    assert state(str(run / "bundle")).step == 2 and says(told.text, "checkpoint", "step 4")
    told.clear()
    load_backbone(run)
    assert says(told.text, "checkpoint", "step 4")
