"""`seer measure`: the file is run in a process of its own, in pairs with another, and judged as `seer evaluate` judges the run.

The truths are other programs': the status file of the process under /proc, `seer evaluate eval=head` of the run that the program is of,
and a runtime that this file feeds itself.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from seer.data import synthetic as sample
from seer.data.shards.writer import write_shards
from seer.evals.figures import wilson
from seer.export import device, program_file
from seer.export.measure import Running, timed
from seer.models import cost
from seer.models.bundle import read_bundle, read_heads
from seer.models.multi_head import MultiHead
from tests.cli.test_adapt import BASE, DETECT, FEW, MAP, with_targets
from tests.messages import says
from tests.program import ROOT, seer

pytestmark = pytest.mark.slow
KINDS = {"classify": "classify", "map": "map", "detect": "detect", "regress": "regress"}


class Named(nn.Module):
    """A network and its heads as one program; inside: it normalizes uint8 itself."""

    def __init__(self, model: MultiHead, colors: dict[str, list[float]], inside: bool):
        super().__init__()
        self.model, self.inside = model, inside
        self.register_buffer("mean", torch.tensor(colors["mean"])[:, None, None])
        self.register_buffer("std", torch.tensor(colors["std"])[:, None, None])

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        said = self.model((images.float() / 255 - self.mean) / self.std if self.inside else images)
        found = {name: one for name, one in said.items() if name != "detect"}
        if "detect" in said:
            found |= {"detect_scores": said["detect"].scores, "detect_edges": said["detect"].edges}
        return found


def write_program(bundle: Path, file: Path, *, inside: bool, heads: tuple[str, ...] = ()) -> dict[str, Any]:
    """Writes a bundle's heads as a program, by torch alone, and its description beside it."""
    backbone, card = read_bundle(bundle)
    stored = {name: one for name, one in read_heads(bundle).items() if not heads or name in heads}
    program = Named(
        MultiHead(backbone, {name: one.build() for name, one in stored.items()}), card["normalisation"], inside
    )
    side = card["input_size"]
    images = torch.zeros(2, 3, side, side, dtype=torch.uint8 if inside else torch.float32)
    free = {"images": {0: torch.export.Dim("batch", min=1, max=64)}}
    with torch.no_grad():
        shapes = {name: list(one.shape) for name, one in program.eval()(images).items()}
        traced = torch.export.export(program, (images,), dynamic_shapes=free)
    if file.suffix == ".onnx":
        made = torch.onnx.export(
            traced, (), dynamo=True, verbose=False, input_names=["images"], output_names=list(shapes)
        )
        made.save(str(file), external_data=False)
    else:
        torch.export.save(traced, file)
    described = {
        "format": program_file.FORMAT,
        "version": program_file.VERSION,
        "target": "onnx" if file.suffix == ".onnx" else "torch_export",
        "file": file.name,
        "bytes": file.stat().st_size,
        "sha256": program_file.sha256(file),
        "input": {
            "name": "images",
            "dtype": "uint8" if inside else "float32",
            "shape": ["batch", 3, side, side],
            "values": "0 to 255" if inside else "normalized",
        },
        "preprocessing": {
            "inside": inside,
            **card["normalisation"],
            "resize": {"shorter_side": side if side < 64 else round(side * 256 / 224)},
            "crop": {"center": side},
            "ground": 0,
        },
        "outputs": [
            {
                "name": name,
                "shape": ["batch", *shape[1:]],
                "dtype": "float32",
                "head": name.partition("_")[0],
                "kind": KINDS[name.partition("_")[0]],
                "part": name.partition("_")[2] or None,
            }
            for name, shape in shapes.items()
        ],
        "labels": {name: list(one.card.classes) for name, one in stored.items() if one.card.classes},
        "batch": {"least": 1, "most": 64},
        "cost": cost.of(backbone.architecture, side),
    }
    program_file.beside(file).write_text(json.dumps(described))
    return described


def children() -> list[str]:
    """Returns the command lines of this process's children that run."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = status.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                found.append((status.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it ended while it was looked at
            continue
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run with four heads, `run`, and labelled images that it has not seen, `test`."""
    folder = tmp_path_factory.mktemp("measure")
    classes = list(sample.SHAPE_CLASSES)
    for name, seed in (("train", 3), ("test", 4)):
        write_shards(with_targets(48, seed), folder / name, total=48, per_shard=24, card={"classes": classes})
    words = ["adapt", f"weights={BASE}", "heads=[classify,map,detect,regress]", MAP, *DETECT]
    words += [f"data.train={folder / 'train'}", f"output={folder / 'run'}", *FEW, "schedule.peak=0.02"]
    ended = subprocess.run(
        [sys.executable, "-m", "seer", *words], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    write_program(folder / "run" / "bundle", folder / "outside.pt2", inside=False)
    write_program(folder / "run" / "bundle", folder / "inside.pt2", inside=True, heads=("classify",))
    return folder


@pytest.fixture(scope="module")
def judged(folder) -> dict[str, Any]:
    words = [
        "evaluate",
        "eval=head",
        f"weights={folder / 'run'}",
        f"data.test={folder / 'test'}",
        "device=cpu",
        "threads=1",
    ]
    ended = subprocess.run(
        [sys.executable, "-m", "seer", *words], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    return json.loads(ended.stdout.splitlines()[-1])


def test_the_file_is_as_often_right_as_evaluate_says_of_the_run(capfd, folder, judged):
    ended = seer(capfd, "measure", f"file={folder / 'outside.pt2'}", f"data.test={folder / 'test'}", "runs=3")
    assert ended.status == 0, ended.words
    found = ended.result["accuracy"]
    assert 0 < found["classify/top1"] < 1, "a truth that any program would meet"
    for name in ("classify/top1", "map/miou", "map/pixel", "detect/ap50", "regress/error"):
        assert found[name] == pytest.approx(judged[name], abs=2e-4 if name != "classify/top1" else 0), name
    right = round(found["classify/top1"] * 48)
    assert found["interval95"]["classify/top1"] == pytest.approx(list(wilson(right, 48)))
    assert ended.result["data"]["fingerprint"] == judged["data"]["test"]["fingerprint"]
    assert says(ended.words, f"{found['classify/top1']:.4f}", f"{wilson(right, 48)[0]:.4f}")


def test_two_programs_are_timed_in_turn_and_their_answers_paired(capfd, folder, judged):
    words = [f"file={folder / 'inside.pt2'}", f"against={folder / 'outside.pt2'}", f"data.test={folder / 'test'}"]
    ended = seer(capfd, "measure", *words, "runs=9", "budget.drop=0.5", "budget.latency_ms=0.0001", "budget.arena_mb=1")
    found = ended.result
    assert ended.status == 0, "a broken budget is told, and no failure"
    assert (
        found["accuracy"]["classify/top1"] == judged["classify/top1"] == found["against"]["accuracy"]["classify/top1"]
    )
    assert found["drop"] == {
        name: {"drop": 0.0, **({"interval95": [0.0, 0.0]} if name == "classify/top1" else {})} for name in found["drop"]
    }
    assert [(row["limit"], row["ok"]) for row in found["budget"]["limits"]] == [
        ("arena_mb", None),
        ("latency_ms", False),
        ("drop", True),
    ]
    assert found["budget"]["pass"] is False
    assert found["times_as_fast"] > 1, "four heads take longer than one"
    for row in (found, found["against"]):
        assert 0 < row["median_ms"] <= row["p90_ms"] and row["load_ms"] > 0 and row["first_ms"] > 0
        assert row["file_mb"] == Path(row["file"]).stat().st_size / 1e6
        assert 0 < row["rss_mb"] <= row["rss_peak_mb"] < row["idle_mb"]
        assert row["cores_used"] < 1.2
    assert found["machine"].keys() >= {"processor", "instructions", "cores", "load", "load_after"}
    assert found["threads"] == 1 and found["batch"] == 1 and found["runs"] == 9


@pytest.mark.parametrize("how", ["cut", "altered"])
def test_a_file_that_is_not_the_one_described_is_refused_before_it_is_run(capfd, folder, tmp_path, how, monkeypatch):
    from seer.export import measure

    monkeypatch.setattr(measure, "Running", lambda *given: pytest.fail("it was run"))
    data = bytearray((folder / "inside.pt2").read_bytes())
    if how == "cut":
        del data[-1:]
    else:
        data[len(data) // 2] ^= 1
    (tmp_path / "inside.pt2").write_bytes(data)
    (tmp_path / "inside.pt2.json").write_text((folder / "inside.pt2.json").read_text())
    ended = seer(capfd, "measure", f"file={tmp_path / 'inside.pt2'}")
    assert ended.status == 65
    assert says(ended.words, "inside.pt2", "bytes" if how == "cut" else "sha256")


def test_a_program_without_heads_cannot_be_judged(capfd, folder, tmp_path):
    words = ["to=torch_export", "outputs=[features]", f"output={tmp_path}", "pictures=1"]
    assert seer(capfd, "export", f"weights={folder / 'run'}", *words).status == 0
    ended = seer(capfd, "measure", f"file={tmp_path}", f"data.test={folder / 'test'}")
    assert ended.status == 78 and says(ended.words, "features", "eval=knn")
    ended = seer(capfd, "measure", f"file={tmp_path}", "runs=1", f"output={tmp_path / 'told'}")
    assert ended.status == 0 and json.loads((tmp_path / "told" / "result.json").read_text()) == ended.result


def test_an_onnx_file_is_run_without_torch_and_is_as_often_right(capfd, folder, judged):
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")
    for inside in (True, False):
        file = folder / f"{inside}.onnx"
        write_program(folder / "run" / "bundle", file, inside=inside, heads=("classify",))
        ended = seer(capfd, "measure", f"file={file}", f"data.test={folder / 'test'}", "runs=3")
        assert ended.status == 0, ended.words
        assert ended.result["torch"] is False and ended.result["runtime"].startswith("onnxruntime ")
        assert ended.result["accuracy"]["classify/top1"] == judged["classify/top1"]
        assert ended.result["idle_mb"] < 150  # of which torch alone would be more


def test_a_runtime_that_is_not_installed_is_named_with_what_installs_it(capfd, folder, tmp_path):
    described = json.loads((folder / "inside.pt2.json").read_text()) | {"target": "executorch"}
    (tmp_path / "m.pte").write_bytes((folder / "inside.pt2").read_bytes())
    (tmp_path / "m.pte.json").write_text(json.dumps(described))
    ended = seer(capfd, "measure", f"file={tmp_path / 'm.pte'}")
    assert ended.status == 78
    assert not [one for one in children() if "device.py" in one], "its process is left"
    try:
        import executorch.runtime  # noqa: F401
    except ImportError:
        assert says(ended.words, "m.pte", "seer-pretrain[device]")
    else:
        assert says(ended.words, "m.pte", "load")  # a file of another runtime


def test_the_process_holds_its_runtime_alone_and_says_what_linux_says_of_its_memory(folder):
    file, described = folder / "inside.pt2", json.loads((folder / "inside.pt2.json").read_text())
    with Running(file, described, 1) as program:
        (row,) = timed([program], 2)
        pid = program._process.pid
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        maps = Path(f"/proc/{pid}/maps").read_text()
        levels = np.random.default_rng(1).integers(0, 256, (5, 3, 96, 96), dtype=np.uint8)
        side = described["input"]["shape"][2]
        found = program.run(levels[:, :, :side, :side])
    resident = int(status["VmRSS"].split()[0]) * 1024 / 1e6
    assert row["idle_mb"] + row["rss_mb"] == pytest.approx(resident, rel=0.02)
    assert "onnxruntime" not in maps and "libtorch" in maps
    loaded = torch.export.load(file).module()
    with torch.no_grad():
        wanted = loaded(torch.from_numpy(levels[:, :, :side, :side].copy()))["classify"].numpy()
    assert np.abs(found["classify"] - wanted).max() <= 1e-5 * np.abs(wanted).max()
    assert not Path(f"/proc/{pid}").exists()


def test_threads_are_those_that_were_asked_for(folder):
    """Seen by the processor time that the process itself spent beside the time that passed."""
    described = json.loads((folder / "outside.pt2.json").read_text())
    with Running(folder / "outside.pt2", described, 1) as program:
        (row,) = timed([program], 5)
    assert row["cores_used"] <= 1.1


@pytest.mark.parametrize("values", ["0 to 255", "0 to 1", "normalized"])
def test_levels_become_what_the_description_asks_for(values):
    from seer.data.augment import normalize

    levels = np.arange(48, dtype=np.uint8).reshape(1, 3, 4, 4) * 5
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    found = device.given(levels, values, mean, std)
    wanted = torch.from_numpy(levels.copy())
    if values != "0 to 255":
        wanted = wanted.float() / 255
    if values == "normalized":
        wanted = normalize(wanted, mean, std)
    assert found.dtype == wanted.numpy().dtype
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-6, atol=1e-7)
