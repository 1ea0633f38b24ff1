"""Every key of `shard`, `evaluate`, `export` and `measure` is read by the verb that takes it, seen while it works."""

import importlib
from pathlib import Path
from typing import Any

import pytest

from seer.cli import config
from seer.core.build import build
from seer.core.errors import RequestError
from seer.evals import probe
from tests.cli.test_evaluate import weights  # noqa: F401  # a fixture
from tests.data.image_files import jpeg

pytestmark = pytest.mark.slow


class Noting(dict[str, Any]):
    """A config that notes what is asked of it; `**config` asks for nothing."""

    def __init__(self, values: dict[str, Any]):
        super().__init__(values)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)


def unread(verb: str, *words: str) -> set[str]:
    wanted = Noting(config.read(verb, words))
    importlib.import_module(f"seer.cli.{verb}").run(wanted, [])
    return set(wanted) - wanted.read


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    for i in range(8):
        (tmp_path / "images" / f"c{i % 2}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / f"c{i % 2}" / f"{i}.jpg").write_bytes(jpeg(i, 60, 60))
    return tmp_path / "images"


def test_shard_reads_every_key(classes, tmp_path):
    assert unread("shard", f"source={classes}", f"output={tmp_path / 'o'}", "processes=1") == set()


def test_export_reads_every_key(tmp_path, weights):  # noqa: F811
    words = (f"weights={weights}", "to=safetensors", f"output={tmp_path / 'o'}", "pictures=1", "licence=MIT")
    # of preprocessing=inside, tests/export/test_programs.py, and of int8=true, tests/export/test_export_of_heads.py
    assert unread("export", *words) == {"pixels", "calibration", "calibration_images"}


def test_measure_reads_every_key(tmp_path, weights):  # noqa: F811
    words = (f"weights={weights}", "to=torch_export", f"output={tmp_path / 'o'}", "pictures=1")
    importlib.import_module("seer.cli.export").run(config.read("export", words), [])
    file = tmp_path / "o" / "model.pt2"
    assert unread("measure", f"file={file}", f"against={file}", "runs=1", f"output={tmp_path / 'm'}") == set()


def test_evaluate_reads_every_key(classes, tmp_path, weights):  # noqa: F811
    words = (
        f"weights={weights}",
        f"data.train={classes}",
        f"data.test={classes}",
        f"output={tmp_path / 'o'}",
        "data.size=32",
    )
    assert unread("evaluate", *words) == set()


def test_another_value_of_a_key_of_evaluate_gives_other_images_or_another_evaluator(classes):
    words = ["weights=w", f"data.train={classes}", f"data.test={classes}", "data.size=32"]
    asked: set[str] = set()

    class Spy:
        def __getattr__(self, key: str) -> Any:
            asked.add(key)
            return config.read("evaluate", words)["data"][key]

    images = probe.labelled(Spy(), 32)
    assert asked == set(config.read("evaluate", words)["data"])
    how = dict(mean=(0, 0, 0), std=(1, 1, 1), batch=2, threads=1, dtype=None)
    for kind, others in {
        "knn": {"k": 3, "temperature": 0.5},
        "linear": {"penalty": 0.5, "iterations": 7, "stages": ["stage1"], "several": True, "draws": 3},
        "lowshot": {"parts": [0.2], "draws": 2, "seed": 1, "penalties": [0.1], "iterations": 7},
        "rankme": {"most": 9},
    }.items():
        node = config.read("evaluate", [*words, f"eval={kind}"])["eval"]
        assert set(node) == {"_target_", *others}
        for key, value in others.items():
            if key == "several":  # other images are opened for it: tests/evals/test_linear_tags.py
                with pytest.raises(RequestError):
                    build("eval", {**node, key: value}, *images, **how)
                continue
            before, after = build("eval", node, *images, **how), build("eval", {**node, key: value}, *images, **how)
            assert {k: v for k, v in vars(before).items()} != vars(after)
