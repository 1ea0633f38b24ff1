"""What a run tells people at its start and its end, and what it writes beside, seen once from the command line."""

import json
import math
import re
from types import SimpleNamespace

import pytest

from seer.cli import config as words
from seer.run import ended
from seer.run.config import RunConfig
from tests.messages import says
from tests.program import SMALL, seer

RESULT = {
    "steps": 625, "images": 80000, "loss": 3.25, "knn_top1": 0.62, "knn_top1_untrained": 0.164, "knn_pixels": 0.195,
    "knn_colours": 0.166, "skipped": 0, "alarms": [], "output": "runs/my run", "checkpoint": "/x/checkpoints/step-625",
    "bundle": "runs/my run/bundle",
}  # fmt: skip
SPENT = {"starting": 4.0, "drawing": 20.0, "warm start": 0.01, "training": 100.0}


def probed(train=None, test=None):
    return SimpleNamespace(eval=SimpleNamespace(train=train, test=test))


def test_five_lines_say_what_how_long_how_good_where_and_what_next():
    lines = ended.lines(RESULT, probed("a", "b"), 6000, SPENT, 1000, ["torchvision"])
    assert [line.partition(":")[0] for line in lines] == ["done", "time", "good", "where", "next"]
    assert says(lines[0], "625", "80,000", "13.3")
    assert lines[1].startswith("time:  2 min 4 s (training 1 min 40 s, drawing 20 s, starting 4 s)")
    assert says(lines[2], "0.620", f"± {math.sqrt(0.62 * 0.38 / 1000):.3f}", "0.164", "0.195", "0.166", "3.250")
    assert says(lines[3], "runs/my run/bundle")
    assert says(lines[4], "seer evaluate eval=linear", "weights='runs/my run'", "seer.load('runs/my run')")


def test_without_labels_the_lines_say_that_nothing_tells_the_worth_and_export_is_next():
    plain = {k: v for k, v in RESULT.items() if not k.startswith("knn")}
    lines = ended.lines(
        {**plain, "alarms": ["uniform codes"], "skipped": 3}, probed(), 6000, SPENT, 0, ["safetensors", "onnx"]
    )
    assert says(lines[2], "eval.train", "uniform codes", "3 images skipped")
    assert says(lines[4], "seer export to=safetensors") and "torchvision" not in lines[4]


def test_without_a_target_that_takes_the_network_the_last_line_is_how_python_loads_it():
    (*_, last) = ended.lines(RESULT, probed(), 6000, SPENT, 0, [])
    assert last.startswith("next:  Python: ") and "seer export" not in last


@pytest.fixture(scope="module")
def runs(tmp_path_factory, images):
    """Three calls without output=: a run, the same again, another one."""
    return tmp_path_factory.mktemp("runs"), [*SMALL, f"data.source={images}", "steps=2"]


@pytest.mark.slow
def test_a_run_from_the_command_line(runs, capfd, monkeypatch):
    folder, given = runs
    monkeypatch.chdir(folder)
    one = seer(capfd, "pretrain", *given, "schedule.peak=0.3@256")
    assert one.status == 0 and one.result["output"] == "runs/pretrain", one.words
    rows = dict(re.findall(r"^  ([a-z ]{14})(\S.*)$", one.words, flags=re.M))
    rows = {name.strip(): row for name, row in rows.items()}
    assert says(rows["learning rate"], 0.3 * 16 / 256, "0.3 x 16 / 256")
    assert says(rows["prototypes"], "16") and says(rows["chance loss"], f"{math.log(16):.2f}", "ln of the prototypes")
    assert says(rows["steps"], "2", "steps=2", "32", "1.6") and says(rows["batch"], "16", "1 rank")
    assert {"model", "data", "precision", "readers", "log", "evaluate", "checkpoint", "its course"} <= rows.keys()
    steps = re.findall(r"^step (\d+)/2", one.words, flags=re.M)
    assert steps == ["1", "2"]
    assert sum(one.words.count(f"\n{name}: ") for name in ("done", "time", "good", "where", "next")) == 5
    assert one.result["seconds_of"].keys() >= {"training", "saving"}

    environment = json.loads((folder / "runs" / "pretrain" / "environment.json").read_text())
    assert environment["ranks"] == 1 and environment["torch"]
    log = (folder / "runs" / "pretrain" / "train.log").read_text()
    assert len(re.findall(r" step [12]/2  .*loss \d", log)) == 2

    again = seer(capfd, "pretrain", *given, "schedule.peak=0.3@256")
    assert again.status == 0 and says(again.words, "runs/pretrain", "complete")
    assert again.result["output"] == "runs/pretrain" and again.result["steps"] == 2
    other = seer(capfd, "pretrain", *given, "schedule.peak=0.2@256")
    assert other.status == 0 and other.result["output"] == "runs/pretrain-2", other.words
    assert says(other.words, "runs/pretrain-2", "schedule.peak: 0.3@256 -> 0.2@256")
    named = seer(capfd, "pretrain", *given, "schedule.peak=0.1@256", "output=runs/pretrain")
    assert named.status == 78 and says(named.result["error"], "output=runs/pretrain", "schedule.peak")


def test_no_secret_of_a_url_is_in_the_config_of_a_run_nor_in_an_error(capfd):
    values = words.read("pretrain", ["data.source=x", "weights=https://me:s3cret@h/w.pth?sig=s3cret"])
    values.pop("replay")
    assert RunConfig.of(values).weights.count("s3cret") == 2
    assert RunConfig.of(values).plain()["weights"] == "https://h/w.pth"
    told = seer(capfd, "pretrain", "data.source=https://me:s3cret@h/a.tar?sig=s3cret")
    assert told.status == 78 and "s3cret" not in told.words and "s3cret" not in json.dumps(told.result)
