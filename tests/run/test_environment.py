"""RUN/environment.json: what a run was started with, and nothing that lets someone in."""

import json
import platform
import shlex
import subprocess
from datetime import datetime

import torch

from seer.parallel.world import World
from seer.run.environment import NAME, commit_of, made_by, record

ALONE = World(0, 1, 0, torch.device("cpu"))


def test_it_holds_command_versions_host_device_date_and_commit_and_those_of_earlier_starts(tmp_path):
    words = ["seer", "pretrain", "data.source=a b", "weights=https://me:s3cret@h/w?sig=s3cret"]
    record(tmp_path, ALONE, words)
    record(tmp_path, ALONE, ["second"])
    record(tmp_path, ALONE, ["third"])
    text = (tmp_path / NAME).read_text()
    now = json.loads(text)
    assert now["command"] == "third" and [one["command"] for one in now["earlier"][1:]] == ["second"]
    first = now["earlier"][0]
    assert shlex.split(first["command"]) == [*words[:3], "weights=https://h/w"] and "s3cret" not in text
    assert (now["torch"], now["python"], now["host"]) == (torch.__version__, platform.python_version(), platform.node())
    assert (now["device"], now["ranks"]) == ("cpu", 1) and now["cores"] >= 1 and now["processor"]
    assert abs((datetime.now().astimezone() - datetime.fromisoformat(now["date"])).total_seconds()) < 60
    assert sorted(path.name for path in tmp_path.iterdir()) == [NAME]


def test_a_file_that_a_kill_cut_short_is_begun_anew(tmp_path):
    (tmp_path / NAME).write_text('{"comm')
    record(tmp_path, ALONE, ["again"])
    assert json.loads((tmp_path / NAME).read_text())["earlier"] == []


def test_the_commit_is_gits_and_none_where_there_is_no_checkout(tmp_path):
    def git(*words):
        who = ["-c", "user.name=x", "-c", "user.email=x@y"]
        return subprocess.run(["git", *who, *words], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert commit_of(tmp_path) == (None, None)
    commit_of.cache_clear()
    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "one")
    assert commit_of(tmp_path) == (git("rev-parse", "HEAD").strip(), False)
    commit_of.cache_clear()
    (tmp_path / "a").write_text("2")
    assert commit_of(tmp_path)[1] is True
    commit_of.cache_clear()


def test_what_a_result_says_of_its_making_is_short_and_holds_no_password():
    found = made_by(ALONE, ["seer", "evaluate", "weights=https://me:s3cret@h/w"])
    assert found["command"].endswith("weights=https://h/w") and found["arithmetic_threads"] == torch.get_num_threads()
    assert {"seer", "commit", "changed", "torch", "device", "date"} <= set(found) and "host" not in found
