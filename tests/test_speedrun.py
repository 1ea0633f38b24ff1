"""The run against the clock, at toy size: its split, its clock, what it asks, and what it does with wrong words."""

import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.program import SMALL
from tests.two_classes import dark_and_light

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "speedrun.py"


@pytest.fixture(scope="module")
def labelled_folder(tmp_path_factory) -> Path:
    return dark_and_light(tmp_path_factory.mktemp("labelled"))


def speedrun(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)


@pytest.mark.slow
def test_each_seed_is_trained_for_the_time_and_asked_on_images_that_it_never_saw(tmp_path, labelled_folder):
    words = [word for word in SMALL if not word.startswith(("steps", "output", "data.", "every.evaluate"))]
    given = ["time=2s", "seeds=0,3", "held_out=20%", "recipe=none", f"output={tmp_path}", *words]
    ended = speedrun(str(labelled_folder), *given)
    assert ended.returncode == 0, ended.stderr
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [row["seed"] for row in rows] == [0, 3]
    for row in rows:
        assert row["pretrain"]["seconds_of"]["training"] < 60 and row["pretrain"]["steps"] >= 1
        assert row["knn"] == row["evaluate"]["knn_top1"]
        assert row["evaluate"]["weights"] == str(tmp_path / f"none-seed-{row['seed']}")
        assert row["pretrain"]["data"]["used"] == 64  # of 80: the others were held out
    found = [row["knn"] for row in rows]
    assert f"mean {statistics.mean(found):.4f}" in ended.stderr
    assert f"standard error {statistics.stdev(found) / math.sqrt(2):.4f}" in ended.stderr
    columns = [cell.strip() for cell in ended.stderr.strip().splitlines()[-1].strip("|").split("|")]
    assert len(columns) == 10 and columns[2] == "2s" and columns[5] == "2"
    assert columns[1].startswith("`recipe=none ") and columns[7] == f"{statistics.mean(found):.4f} (own split)"
    assert columns[6] == f"{statistics.mean(row['pretrain']['steps'] for row in rows) * 16:,.0f}"


@pytest.mark.parametrize(
    ("recipe", "size", "asked"), [("cifar_fast", "", "40"), ("cifar_fast", "48", "48"), ("cifar", "", None)]
)
def test_features_are_asked_for_at_the_size_given_or_at_that_of_the_recipe(monkeypatch, tmp_path, recipe, size, asked):
    spec = importlib.util.spec_from_file_location("speedrun_script", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    commands = []
    monkeypatch.setattr(script, "seer", lambda *words: commands.append(words) or {"knn_top1": 0.5})
    given = script.OURS | {"recipe": recipe, "size": size}
    script.one("0", tmp_path / "train", tmp_path / "test", tmp_path / "run", given, [])
    trained, judged = commands
    assert (trained[0], judged[0]) == ("pretrain", "evaluate")
    assert [w for w in judged if w.startswith("data.size=")] == ([] if asked is None else [f"data.size={asked}"])


# lightly's names that the peer's script uses, as they are called in its 1.6: a loop can be timed without the library
LIGHTLY = {
    "__init__.py": "",
    "loss.py": """
from torch import nn
class SwaVLoss(nn.Module):
    def forward(self, large, small):
        assert len(large) == 2 and len(small) == 2
        return -sum(x.log_softmax(1).mean() for x in [*large, *small])
""",
    "models/__init__.py": "",
    "models/modules.py": """
from torch import nn
class SwaVProjectionHead(nn.Sequential):
    def __init__(self, i, h, o):
        super().__init__(nn.Linear(i, h), nn.ReLU(), nn.Linear(h, o))
class SwaVPrototypes(nn.Linear):
    def __init__(self, i, n_prototypes):
        super().__init__(i, n_prototypes)
    def normalize(self):
        self.weight.data = nn.functional.normalize(self.weight.data, dim=1)
""",
    "transforms/__init__.py": "",
    "transforms/swav_transform.py": """
from torchvision.transforms.functional import to_tensor
class SwaVTransform:
    def __init__(self, crop_sizes, crop_counts, **numbers):
        self.sides = [s for s, n in zip(crop_sizes, crop_counts) for _ in range(n)]
        assert numbers["gaussian_blur"] == 0.0 and numbers["cj_bright"] == 0.4
    def __call__(self, image):
        return [to_tensor(image.resize((side, side))) for side in self.sides]
""",
}


def test_without_lightly_the_peer_says_what_to_install(tmp_path):
    (tmp_path / "lightly").mkdir()
    (tmp_path / "lightly" / "__init__.py").write_text("raise ImportError('made absent')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    script = [sys.executable, str(SCRIPT.with_name("lightly_swav.py")), "/no/shards", str(tmp_path / "out")]
    ended = subprocess.run(script, capture_output=True, text=True, env=environment)
    assert ended.returncode == 1 and "pip install" in ended.stderr and "made absent" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_peer_trains_for_the_same_time_on_the_same_split_and_is_asked_in_the_same_way(tmp_path):
    folder, draw = tmp_path / "images", np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for n in range(90):
            pixels = draw.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{n}.png")
    for name, text in LIGHTLY.items():
        (tmp_path / "lib" / "lightly" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lib" / "lightly" / name).write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "lib")}
    small = ["model.widths=[16,16]", "model.depths=[1,1]", "model.group_widths=[16,16]"]
    words = ["peer=lightly", "time=2s", "seeds=1", "held_out=20%", f"output={tmp_path / 'out'}", *small]
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), *words], capture_output=True, text=True, env=environment
    )
    assert ended.returncode == 0, ended.stderr
    (row,) = [json.loads(one) for one in ended.stdout.splitlines()]
    assert row["pretrain"]["peer"] == "lightly" and row["pretrain"]["seconds"] >= 2
    assert row["pretrain"]["images"] == 128 * row["pretrain"]["steps"]
    assert row["evaluate"]["train"] == 144 and row["evaluate"]["test"] == 36  # 128 a batch of 144 that are not held out
    assert "| `peer=lightly recipe=cifar model.widths=" in ended.stderr


def test_a_peer_that_is_not_known_is_refused():
    ended = speedrun("/no/such", "peer=nobody")
    assert ended.returncode == 1 and "peer=nobody" in ended.stderr and "lightly" in ended.stderr


@pytest.mark.slow
def test_a_wrong_word_ends_it_before_the_next_seed(tmp_path, labelled_folder):
    ended = speedrun(str(labelled_folder), "time=2s", "held_out=20%", f"output={tmp_path}", "optim.no_such=1")
    assert ended.returncode == 1 and "ended with 78" in ended.stderr and ended.stdout == ""


def test_without_images_it_says_how_it_is_called_and_that_nothing_was_run():
    ended = speedrun()
    assert ended.returncode == 0 and "cifar10-train.tar" in ended.stdout and "not run" in ended.stdout
