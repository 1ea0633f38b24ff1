"""What is run on a GPU machine, here on a CPU at toy size: that every part gives its figures, and that failures are failures."""

import importlib.util
import json
import lzma
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.program import ROOT, SMALL
from tests.two_classes import dark_and_light

# by its path: some installed packages bring a `benchmarks` of their own
SPEC = importlib.util.spec_from_file_location("gpu_report", ROOT / "benchmarks" / "gpu.py")
gpu = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(gpu)


def script(name: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)


@pytest.fixture
def in_here(monkeypatch):
    """Runs the report in this process. Returns exit status."""

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["gpu.py", "device=cpu", *words])
        return gpu.main()

    return run


@pytest.mark.slow
def test_the_report_has_every_part(in_here, tmp_path, capsys):
    path = tmp_path / "deep" / "gpu.json"
    equal = "tests/gpu/test_equal.py::test_cublas_was_told_to_be_repeatable_before_its_first_product"
    assert in_here(f"output={path}", f"equalities={equal}", "limit=2000") == 0
    report = json.loads(path.read_text())
    assert report["card"] == "CPU" and report["toy"] and report["left_out"] == []
    assert report["equalities"]["status"] == 0 and "1 passed" in report["equalities"]["words"]
    assert min(report["ceilings"].values()) > 0
    assert [(r["group_width"], r["dtype"]) for r in report["layouts"]] == [
        (w, d) for w in (8, 16) for d in ("bfloat16", "float16")
    ]
    assert all(r[r["faster"]] == min(r["NCHW"], r["NHWC"]) > 0 for r in report["layouts"])
    (step,) = report["steps"]
    assert step["images_per_s"] == pytest.approx(step["batch"] / step["seconds"])
    assert step["of_matmul"] == pytest.approx(step["flops"] / step["seconds"] / report["ceilings"]["flops_per_s"])
    assert step["of_bandwidth"] == pytest.approx(step["bytes"] / step["seconds"] / report["ceilings"]["bytes_per_s"])
    assert len(report["layers"]) == 6 and all(row["share"] > 0 for row in report["layers"])
    assert "CPU, torch" in capsys.readouterr().out


@pytest.mark.slow
def test_a_failed_equality_fails_the_report_and_parts_without_time_are_told(in_here, tmp_path):
    path, wrong = tmp_path / "gpu.json", tmp_path / "test_wrong.py"
    wrong.write_text("import pytest\n\n@pytest.mark.gpu\ndef test_it():\n    assert False\n")
    assert in_here(f"output={path}", f"equalities={wrong}", "limit=100") == 1
    assert json.loads(path.read_text())["equalities"]["status"] == 1
    assert in_here(f"output={path}", f"equalities={wrong}", "limit=0") == 0
    report = json.loads(path.read_text())
    parts = {what.split(":")[0].split(" of ")[0] for what in report["left_out"]}
    assert parts == {"equalities", "steps", "layouts", "layers"}
    assert report["equalities"]["status"] is None and report["steps"] == report["layouts"] == report["layers"] == []


def test_flops_are_those_that_torch_counts_and_the_zoo_tells():
    found = gpu.distinct_layers("regnety_16gf", [(1, 3, 224, 224)])
    flops = sum(count * gpu.cost(*key)[0] for key, count in found.items())
    assert flops == pytest.approx(6 * 15.91e9, rel=0.005)  # docs/zoo.md


@pytest.mark.parametrize("groups", [1, 3])
def test_a_convolution_costs_what_torch_counts_and_reads_each_tensor_as_told(groups):
    numbers, shape = (24, 48, 3, 2, groups), (2, 24, 9, 9)
    layer, x = gpu.layer_of("conv", numbers), torch.randn(shape, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        y = layer(x)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    told, moved = gpu.cost("conv", numbers, shape)
    assert told == 3 * forward.get_total_flops()
    if groups == 1:  # torch counts the weights' gradient as if there were no groups
        assert told == forward.get_total_flops() + backward.get_total_flops()
    assert moved == 2 * (3 * x.numel() + 2 * y.numel() + 3 * layer.weight.numel())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["gpu", "gpu_speed"])
def test_without_a_gpu_one_line_says_so(name):
    ended = script(name)
    assert ended.returncode == 0 and len(ended.stdout.splitlines()) == 1 and "No GPU" in ended.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("target", ["gpu", "gpu-speed"])
def test_the_targets_end_well_without_a_gpu(target):
    command = ["make", "-s", target, f"PYTHON={sys.executable}"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 0 and "No GPU" in ended.stdout and ended.stderr == ""


def tar_of(folder: Path, tar: Path) -> Path:
    with tarfile.open(tar, "w") as goal:
        for path in sorted(folder.rglob("*.png")):
            goal.add(path, path.relative_to(folder))
    return tar


@pytest.fixture(scope="module")
def tar(tmp_path_factory) -> Path:
    folder = dark_and_light(tmp_path_factory.mktemp("labelled"))
    return tar_of(folder, folder.parent / "tiny-train.tar")


def test_what_is_carried_is_packed_tight_and_held_against_the_limit(tmp_path, tar):
    words = (f"output={tmp_path}", f"cifar={tar}", "wheels=false")
    ended = script("gpu_pack", *words)
    assert ended.returncode == 0, ended.stderr
    packed = tmp_path / "tiny-train.tar.xz"
    assert lzma.decompress(packed.read_bytes()) == tar.read_bytes()
    assert packed.stat().st_size < tar.stat().st_size
    assert script("gpu_pack", *words, "limit=0.1").returncode == 1
    assert "no such file" in script("gpu_pack", f"output={tmp_path}", "cifar=nowhere.tar").stderr


@pytest.mark.slow
def test_the_speedrun_of_a_gpu_at_toy_size(tmp_path, tar):
    packed = tmp_path / "tiny-train.tar.xz"
    packed.write_bytes(lzma.compress(tar.read_bytes()))
    skipped = ("steps", "output", "data.", "every.evaluate", "parallel.device")
    small = [word for word in SMALL if not word.startswith(skipped)]
    words = ["device=cpu", f"data={packed}", "time=1s", "held_out=20%", "recipe=none", f"output={tmp_path}", *small]
    ended = script("gpu_speed", *words)
    assert ended.returncode == 0, ended.stderr
    report = json.loads((tmp_path / "gpu-speed.json").read_text())
    assert report["card"] == "CPU" and report["runs"][0]["pretrain"]["steps"] >= 1
    assert report["knn"] == [report["runs"][0]["evaluate"]["knn_top1"]]
    assert json.loads(ended.stdout.splitlines()[-1])["knn"] == report["knn"]
    late = script("gpu_speed", *words, "limit=1")
    assert late.returncode == 1 and "limit=1" in late.stdout
