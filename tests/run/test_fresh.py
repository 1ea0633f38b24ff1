"""Which folder a run without output= goes to: its own again, or the next number; never another one's."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from seer.cli import config as words
from seer.parallel.world import World
from seer.run import fresh
from seer.run.config import RunConfig
from tests.messages import says

ALONE = World(0, 1, 0, torch.device("cpu"))


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Returns the config of words, with the default folder inside of the test's own."""
    monkeypatch.chdir(tmp_path)

    def of(*more: str) -> RunConfig:
        values = words.read("pretrain", ["recipe=sample", *more])
        values.pop("replay")
        return RunConfig.of(values)

    return of


def left(folder: str, config: RunConfig, exit_status: int | None = None, **resolved) -> Path:
    """Makes a run folder as `claim` and a checkpoint leave it."""
    path = Path(folder)
    (path / "checkpoints").mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config.replace(output=folder, **resolved).plain()))
    if exit_status is not None:
        (path / "result.json").write_text(json.dumps({"exit": exit_status}))
    return path


def chosen(config: RunConfig) -> str:
    return fresh.choose(config, ALONE)[0].output


def test_the_first_run_has_the_plain_name(asked):
    assert chosen(asked()) == "runs/sample"


def test_another_request_gets_the_next_number_and_its_own_folder_again(asked):
    one, two, three = asked("steps=1"), asked("steps=2"), asked("steps=3")
    left(chosen(one), one, 0)
    left(chosen(two), two, 75)
    left(chosen(three), three)
    assert [chosen(one), chosen(two), chosen(three)] == ["runs/sample", "runs/sample-2", "runs/sample-3"]
    folder, why = fresh.choose(asked("steps=4"), ALONE)
    assert folder.output == "runs/sample-4" and says(why, "runs/sample-4", "steps: 1 -> 4")


def test_what_the_machine_decides_and_what_may_change_does_not_make_another_run(asked):
    one = asked("groups=null")
    left("runs/sample", one, 75, precision={"dtype": "bf16"}, groups=[{"pattern": "x"}])
    assert chosen(asked("groups=null", "every.log=3", "data.threads=1")) == "runs/sample"
    assert chosen(asked("groups=null", "precision=fp32")) == "runs/sample-2"
    assert chosen(asked("groups=[]")) == "runs/sample-2"


def test_other_images_are_another_run(asked):
    one = asked("data.source=a")
    left("runs/sample", one, 75)
    assert chosen(asked("data.source=a")) == "runs/sample"
    folder, why = fresh.choose(asked("data.source=b"), ALONE)
    assert folder.output == "runs/sample-2" and says(why, "data.source: a -> b")


def test_the_unfinished_of_two_is_gone_on_with_and_a_number_is_not_given_twice(asked):
    one = asked("steps=1")
    left("runs/sample", one, 0)
    left("runs/sample-7", one, 75)
    assert chosen(one) == "runs/sample-7" and chosen(asked("steps=2")) == "runs/sample-8"


def test_a_refused_start_leaves_a_name_free_and_what_is_no_run_is_left_alone(asked):
    Path("runs/sample").mkdir(parents=True)
    (Path("runs/sample") / "train.log").write_text("")
    assert chosen(asked("steps=1")) == "runs/sample"
    (Path("runs/sample") / "letter.txt").write_text("")
    assert chosen(asked("steps=1")) == "runs/sample-2"
    Path("runs/sample-2").write_text("a file")
    assert chosen(asked("steps=1")) == "runs/sample-3"
    (Path("runs/sample") / "config.yaml").write_text("{: no yaml")
    assert chosen(asked("steps=1")) == "runs/sample-3"
