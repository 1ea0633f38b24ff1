"""`seer pretrain replay=…` gives the bits of the step that broke a run, names the module that broke first, and writes nothing."""

from pathlib import Path

import pytest

from seer.data import synthetic as sample
from seer.data.shards.writer import write_shards
from tests.messages import says
from tests.program import SMALL, Ended, finished, seer

WORDS = (*(w for w in SMALL if not w.startswith("model=")), "model=regnety_tiny", "steps=30", "schedule.warmup=0")
BREAKING = {
    "fp32, a queue that is full": ("task.queue=32", "optim=sgd", "schedule.peak=1e18", "groups=[]"),
    "bf16": ("precision=bf16", "optim=sgd", "schedule.peak=1e18", "groups=[]"),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_shards(sample.samples(64, seed=0), folder, total=64, per_shard=64)
    return folder


def files(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*")}


def check(broken: Ended, again: Ended, run: Path, before: dict[str, int]) -> None:
    assert again.status == 0, again.words
    assert again.result["same"] is True and again.result["then"]["loss"] == again.result["loss"]
    first = [again.result["first_activation"], again.result["first_gradient"]]
    assert any(name and name.startswith(("backbone", "head")) for name in first)
    assert f"at step {again.result['replayed']} " in broken.result["error"]
    assert files(run) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", BREAKING)
def test_the_step_that_broke_a_run_gives_the_same_numbers_again(name, images, tmp_path, capfd):
    run = tmp_path / "run"
    broken = seer(capfd, "pretrain", *WORDS, *BREAKING[name], f"data.source={images}", f"output={run}")
    assert broken.status == 70, broken.words
    (capture,) = run.glob("capture-*")
    before = files(run)
    check(broken, seer(capfd, "pretrain", f"replay={capture}", "parallel.device=cpu"), run, before)


@pytest.mark.slow
def test_two_ranks_repeat_what_two_ranks_did_and_one_is_refused(images, tmp_path, capfd):
    run = tmp_path / "run"
    words = (*WORDS, *BREAKING["fp32, a queue that is full"], f"data.source={images}", f"output={run}")
    broken = finished("pretrain", *words, ranks=2)
    assert broken.result["exit"] == 70, broken.words
    (capture,) = run.glob("capture-*")
    before = files(run)
    again = finished("pretrain", f"replay={capture}", "parallel.device=cpu", ranks=2)
    check(broken, again, run, before)
    alone = seer(capfd, "pretrain", f"replay={capture}", "parallel.device=cpu")
    assert alone.status == 78 and says(alone.result["error"], 2, "ranks", 1)


def test_what_is_no_capture_is_refused(tmp_path, capfd):
    ended = seer(capfd, "pretrain", f"replay={tmp_path}")
    assert ended.status == 78 and says(ended.result["error"], tmp_path, "capture")
    (tmp_path / "capture.json").write_text("{")
    ended = seer(capfd, "pretrain", f"replay={tmp_path}")
    assert ended.status == 78 and "is damaged" in ended.result["error"]
