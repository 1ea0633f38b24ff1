"""A recipe of one's own may set what words may set, is checked as they are, and can run nothing."""

import os
from pathlib import Path

import pytest
import yaml

from seer.cli import config
from seer.cli.help import print_config
from seer.core.build import build
from seer.core.errors import RequestError
from seer.run.older import renewed
from tests.messages import naming, says

PACKAGED = sorted(p.stem for p in (Path(config.folder()) / "recipe").glob("*.yaml"))


def written(folder: Path, text: str, name: str = "mine.yaml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return f"recipe={folder / name}"


def refused(*words: str) -> str:
    with pytest.raises(RequestError) as caught:
        config.read("pretrain", words)
    return str(caught.value)


@pytest.mark.parametrize("recipe", PACKAGED)
def test_a_copy_of_a_packaged_recipe_means_the_same(tmp_path, recipe):
    text = (Path(config.folder()) / "recipe" / f"{recipe}.yaml").read_text(encoding="utf-8")
    verb, more = ("adapt", ["weights=w"]) if "seer adapt" in text else ("pretrain", [])
    if verb == "adapt" and "override /heads" not in text:
        more = ["heads=classify", *more]
    copied, packaged = (
        config.read(verb, [one, *more], whole=False) for one in (written(tmp_path, text), f"recipe={recipe}")
    )
    assert copied == packaged


@pytest.mark.parametrize(
    "words",
    [
        ["recipe=cifar", "task.epsilon=0.03"],
        ["recipe=seer_regnety_10b"],
        ["task=heads", "augment=one_view", "optim=sgd"],
    ],
)
def test_a_printed_config_is_a_recipe_and_words_beside_it_win(tmp_path, words):
    mine, before = written(tmp_path, print_config("pretrain", words)), config.read("pretrain", words)
    assert config.read("pretrain", [mine]) == before
    after = config.read("pretrain", [mine, "batch=48", "optim.weight_decay=0.5"])
    assert (after["batch"], after["optim"]["weight_decay"]) == (48, 0.5)
    assert {**after, "batch": 0, "optim": 0} == {**before, "batch": 0, "optim": 0}


def test_a_choice_beside_a_printed_config_replaces_that_group_alone(tmp_path):
    mine = written(tmp_path, print_config("pretrain", ["recipe=cifar"]))
    after, before = config.read("pretrain", [mine, "optim=sgd"]), config.read("pretrain", ["recipe=cifar", "optim=sgd"])
    assert after == before


def test_the_config_of_an_earlier_version_is_taken_in_todays_words(tmp_path):
    old = yaml.safe_load(print_config("pretrain", ["recipe=cifar"]))
    old["optim"]["lr"], old["model"]["device"], old["replay"] = 0.0, None, None
    old["task"]["queue_from"] = "0ep"
    written(tmp_path, yaml.safe_dump(old), "config.yaml")
    assert config.read("pretrain", [f"recipe={tmp_path}"]) == config.read("pretrain", ["recipe=cifar"])


def test_a_run_folder_is_a_recipe_also_without_a_slash(tmp_path, monkeypatch):
    (tmp_path / "first").mkdir()
    written(tmp_path / "first", "recipe: cifar\nbatch: 24\n", "config.yaml")
    (tmp_path / "cifar").mkdir()
    written(tmp_path / "cifar", "batch: 25\n", "config.yaml")
    monkeypatch.chdir(tmp_path)
    assert config.read("pretrain", ["recipe=first"])["batch"] == 24
    assert config.read("pretrain", ["recipe=cifar"])["batch"] not in (24, 25)  # a packaged name is itself


def test_a_recipe_may_start_from_another_and_name_choices_and_dotted_keys(tmp_path):
    written(tmp_path, "recipe: cifar\nbatch: 64\ntask.prototypes: 99\n", "base.yaml")
    mine = written(tmp_path, f"recipe: {tmp_path}/base.yaml\noptim: sgd\nschedule: {{peak: 1e-3}}\n")
    found = config.read("pretrain", [mine, "seed=4"])
    packaged = config.read(
        "pretrain", ["recipe=cifar", "optim=sgd", "schedule.peak=0.001", "task.prototypes=99", "batch=64", "seed=4"]
    )
    assert found == packaged and type(found["schedule"]["peak"]) is float


def test_paths_in_a_recipe_are_as_words(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    mine = written(tmp_path, "data: {source: [~/a, b]}\noutput: ~/runs/x\nweights: w\n")
    found = config.read("pretrain", [mine])
    assert found["data"]["source"] == ["/home/somebody/a", "b"] and found["output"] == "/home/somebody/runs/x"
    assert found["weights"] == "w"


def test_a_leading_tilde_is_the_home_folder_in_every_path_word(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    for verb, words in {
        "pretrain": ["output", "weights", "data.source", "data.exclude", "eval.train", "eval.test", "replay"],
        "shard": ["source", "output"],
        "evaluate": ["weights", "data.train", "data.test", "output"],
        "export": ["weights", "output", "source"],
    }.items():
        given = [f"{key}=~/x/{key}" for key in words] + (["to=all"] if verb == "export" else [])
        found = config.flat(config.read(verb, given))
        assert {key: found[key] for key in words} == {key: f"/home/somebody/x/{key}" for key in words}
    listed = config.read("shard", ["source=~/a,b,~/c", "output=~"])
    assert (listed["source"], listed["output"]) == (["/home/somebody/a", "b", "/home/somebody/c"], "/home/somebody")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("bacth: 64\n", "batch"),
        ("batch: many\n", "batch"),
        ("batch: 0.5\n", "batch"),
        ("data: {threads: two}\n", "data.threads"),
        ("task: {prototype: 5}\n", "task.prototypes"),
        ("task: {prototypes: many}\n", "task.prototypes"),
        ("optim: {lr: 0.1}\n", "optim"),
        ("task: dino\n", "swav"),
        ("model: {_target_: seer.models.zoo.build, name: regnety_400mf, depth: 4}\n", "model.depth"),
        ("replay: 5\n", "replay"),
        ("batch: 4\nbatch: 8\n", "batch"),
        ("- a\n", "keys and values"),
        ("just a word", "just a word"),
        ("a: [\n", "YAML"),
        ("5: 6\n", "5"),
        ("defaults: [{override /model: nothing}]\n", "nothing"),
        ("recipe: nothing\n", "nothing"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_told_with_its_file(tmp_path, text, named):
    assert says(refused(written(tmp_path, text)), "mine.yaml", named)


HOSTILE = {
    "task: {_target_: os.system, command: 'touch HERE'}": "os.system",
    "optim: {_target_: seer.cli.export.run}": "seer.cli.export.run",
    "model: {_target_: torch.hub.load}": "torch.hub.load",
    "data: {_target_: os.mkdir, path: HERE}": "os.mkdir",
    "data: {source: {_target_: os.mkdir, path: HERE}}": "os.mkdir",
    "surgery: {steps: [{_target_: os.mkdir, path: HERE}]}": "os.mkdir",
    "task: {_target_: seer.tasks.swav.SwAVTask, hidden: {_target_: os.mkdir}}": "os.mkdir",
    "task: {_target_: seer.tasks.swav.SwAVTask, _partial_: true}": "_partial_",
    "task: {_target_: seer.tasks.swav.SwAVTask, backbone: x}": "backbone",
    "task: {_target_: ..}": "_target_",
    "task: {_target_: ''}": "_target_",
    "task: {_target_: 5}": "_target_",
    "task._target_: os.system": "os.system",
    "groups: [{_target_: os.mkdir}]": "os.mkdir",
    "hydra: {run: {dir: HERE}}": "hydra",
    "hydra.run.dir: HERE": "hydra",
    "defaults: [{override /hydra/launcher: basic}]": "hydra/launcher",
    "defaults: [/task/swav@_global_]": "defaults",
    "defaults: [{override /task: ../../etc/passwd}]": "passwd",
    "batch: !!python/object/apply:os.mkdir [HERE]": "YAML",
    "output: {x: 1}": "output",
}


@pytest.mark.parametrize(("text", "named"), HOSTILE.items())
def test_a_hostile_recipe_is_refused_and_runs_nothing(tmp_path, text, named):
    here = tmp_path / "made"
    said = refused(written(tmp_path, text.replace("HERE", str(here))))
    assert says(said, named) and sorted(os.listdir(tmp_path)) == ["mine.yaml"]


def test_a_path_through_an_imported_module_is_refused_where_it_is_followed(tmp_path):
    here = tmp_path / "made"
    text = f"optim: {{_target_: torch.optim.optimizer.torch.os.mkdir, path: {here}}}"
    found = config.read("pretrain", [written(tmp_path, text)])
    with pytest.raises(RequestError, match=naming("mkdir")):
        build("optim", found["optim"])
    assert not here.exists()


def test_recipes_that_start_from_themselves_and_files_that_are_none_are_refused(tmp_path):
    loop = written(tmp_path, f"recipe: {tmp_path}/mine.yaml\n")
    assert says(refused(loop), "mine.yaml", "themselves")
    (tmp_path / "large.yaml").write_bytes(b"#" * 2_000_000)
    assert says(refused(f"recipe={tmp_path / 'large.yaml'}"), "large.yaml", "bytes")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert says(refused(f"recipe={tmp_path / 'binary.yaml'}"), "binary.yaml", "YAML")
    assert says(refused(f"recipe={tmp_path / 'nowhere.yaml'}"), "nowhere.yaml", "path")
    assert says(refused(f"recipe={tmp_path}"), "config.yaml")


def test_what_was_read_does_not_stay_in_the_process(tmp_path):
    config.read("pretrain", [written(tmp_path, "batch: 3\n")])
    assert config.read("pretrain", [])["batch"] == 256 and "no such choice" in refused("recipe=_own")


def test_a_config_of_a_time_when_optim_had_a_rate_means_what_it_did(tmp_path):
    """The schedule wrote over it before the first step, so another number was no other run."""
    old = config.read("pretrain", ["recipe=cifar"])
    old.pop("replay")
    assert "lr" not in old["optim"]
    with_rate = {**old, "optim": {**old["optim"], "lr": 0.1}}
    assert renewed(with_rate) == renewed(old) == old


def test_a_choice_goes_on_by_the_name_that_it_had(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    today = config.read("pretrain", ["recipe=sample", "data=images", "data.source=x"])
    assert today["data"]["source"] == "x" and today["data"]["drawn"] == 0
    (tmp_path / "flat.yaml").write_text("recipe: sample\ndata: pictures\n")
    (tmp_path / "listed.yaml").write_text("defaults:\n  - override /data: pictures\n")
    for words in (["recipe=sample", "data=pictures"], ["recipe=./flat.yaml"]):
        found = config.read("pretrain", [*words, "data.source=x"])
        assert found == today and config.chosen("pretrain", words)["data"] == "images"
    assert config.read("pretrain", ["recipe=./listed.yaml", "data.source=x"])["data"]["source"] == "x"
    assert config.read("plan", ["data=pictures"])["data"]["source"] is None
    with pytest.raises(RequestError, match=naming("data=picture", "images")):
        config.read("pretrain", ["data=picture"])


def test_a_folder_that_is_called_as_a_choice_is_meant_where_nothing_else_is_the_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.read("plan", ["data=images"])["data"]["source"] is None
    (tmp_path / "images").mkdir()
    assert config.read("pretrain", ["data=images"])["data"]["source"] == "images"
    assert config.read("adapt", ["data=images", "heads=classify"])["data"]["source"] == "images"
    assert config.read("pretrain", ["data=images", "data.source=x"])["data"]["source"] == "x"
    (tmp_path / "pictures").mkdir()
    assert config.read("plan", ["data=pictures"])["data"]["source"] is None  # as ever
