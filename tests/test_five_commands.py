"""The README's five commands, from unlabelled images and 500 labelled ones to a measured program, run as they stand but smaller.

Its own lines are read; what is changed is the network, its length, and the format where ExecuTorch is not installed.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from seer.data import synthetic as sample
from seer.evals.figures import wilson
from tests.program import ROOT, environment
from tests.test_commands import commands

pytestmark = [pytest.mark.long, pytest.mark.alone]
CPU = ("parallel.device=cpu", "data.threads=1", "log.tensorboard=false")
# verb -> words that are left out, words that take their place
SMALLER = {
    "shard": ((), ("processes=1",)),
    "pretrain": (
        ("recipe", "weights", "model"),
        ("recipe=sample", "data=pictures", "steps=30kimg", "every.evaluate=0", *CPU),
    ),
    "adapt": ((), ("steps=40ep", "batch=64", "schedule.peak=0.01", "every.evaluate=0", *CPU)),
    "export": ((), ("pictures=4",)),
    "measure": ((), ()),
}


def five(folder: Path) -> list[tuple[str, list[str]]]:
    """The commands of the README's section, in their order. folder: for a copy of it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index("## From photos to a program") :]
    (folder / "section.md").write_text(section[: section.index("\n## ", 4)], encoding="utf-8")
    return commands(folder / "section.md")


def installed() -> tuple[str, str]:
    """(target, ending) of the first format whose libraries are here."""
    for target, ending, modules in (
        ("executorch", "pte", ("executorch", "torchao")),
        ("onnx", "onnx", ("onnx", "onnxscript", "onnxruntime")),
    ):
        if all(importlib.util.find_spec(module) for module in modules):
            return target, ending
    return "torch_export", "pt2"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """photos/ without labels in their names, labelled/train with 400 and labelled/test with 100 images in folders of classes."""
    for i in range(2000):
        _save(sample.draw(i * 7 % 10, 10_000 + i), tmp_path / "photos" / f"{i % 7}" / f"img_{i:05}.jpg")
    for part, count, seed in (("train", 40, 50_000), ("test", 10, 60_000)):
        for kind, name in enumerate(sample.SHAPE_CLASSES):
            for i in range(count):
                _save(sample.draw(kind, seed + 100 * kind + i), tmp_path / "labelled" / part / name / f"{i}.jpg")
    return tmp_path


def _save(pixels, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file, quality=92)


def made_smaller(verb: str, words: list[str], target: str, ending: str) -> list[str]:
    gone, more = SMALLER[verb]
    kept = [word for word in words if word.partition("=")[0] not in gone]
    if verb == "export" and target != "executorch":
        kept = [word.replace("to=executorch", f"to={target}") for word in kept if word != "int8=true"]
    if verb == "measure":
        kept = [word.replace(".pte", f".{ending}") for word in kept]
    return [verb, *kept, *more]


def test_the_five_commands_lead_from_photos_to_a_measured_program(photos):
    lines, (target, ending) = five(photos), installed()
    assert [verb for verb, _ in lines] == ["shard", "pretrain", "adapt", "export", "measure"]
    found = {}
    for verb, words in lines:
        command = [sys.executable, "-m", "seer", *made_smaller(verb, words, target, ending)]
        paths = f"{ROOT}:{environment()['PYTHONPATH']}:{':'.join(p for p in sys.path if p)}"
        ended = subprocess.run(
            command,
            cwd=photos,
            env={**environment(), "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=1500,
        )
        assert ended.returncode == 0, f"{command}\n{ended.stderr}"
        found[verb] = json.loads(ended.stdout.splitlines()[-1])
    program, told = photos / "product" / f"model.{ending}", found["measure"]
    assert told["file_mb"] == program.stat().st_size / 1e6 < 5
    assert found["export"]["budget"]["limits"][0]["ok"] is told["budget"]["limits"][0]["ok"] is True
    top1, (low, high) = told["accuracy"]["classify/top1"], told["accuracy"]["interval95"]["classify/top1"]
    assert told["accuracy"]["images"] == 100 and (low, high) == pytest.approx(wilson(round(100 * top1), 100))
    assert low > 0.1, f"chance is 0.1; {top1} of 100 images is between {low} and {high}"
    described = json.loads(Path(f"{program}.json").read_text())
    assert sorted(described["labels"]["classify"]) == sorted(sample.SHAPE_CLASSES)
    shutil.rmtree(photos / "shards")  # the program needs nothing of what it was made from
    print(f"{target}: top1 {top1} ({low:.3f} to {high:.3f}), {told['file_mb']:.3f} MB, {told['median_ms']} ms")
