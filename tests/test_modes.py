"""One process, DDP, FSDP and fairscale through the program: the same losses, and checkpoints of any go on under any other."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch

from seer.data import sample
from seer.data.shards import write_shards
from seer.models.bundle import read_bundle
from tests.program import SMALL, Ended, losses, start, wait

pytestmark = pytest.mark.slow
# In float32 an untrained deep network multiplies rounding errors by ten a step: three blocks, NCHW and a small rate, as in
# tests/test_resume.py; RegNetY-200MF is held against what rounding alone does to it, below
THREE_BLOCKS = (
    "pretrain",
    *(w for w in SMALL if not w.startswith(("model=", "batch="))),
    *(
        "model=regnety_tiny",
        "batch=64",
        "augment.sizes=[48,32]",
        "task.queue=128",
        "steps=20",
        "schedule.peak=0.05@256",
    ),
    *("every.checkpoint=10", "every.keep=9", "parallel.channels_last=false"),
)
ONE = ("auto", 1)
SAVED = (ONE, ("ddp", 2), ("fsdp", 2), ("fairscale", 2))
GOES_ON = (ONE, ("ddp", 2), ("fsdp", 2), ("fairscale", 2), ("ddp", 4), ("fsdp", 4))
SOON = {
    *((ONE, ("fsdp", 2)), (("fsdp", 2), ONE), (("ddp", 2), ("fsdp", 4)), (("fsdp", 2), ("ddp", 2))),
    *((("fairscale", 2), ("fsdp", 2)), (ONE, ("fairscale", 2))),
}
PAIRS = [
    pytest.param(a, b, id=f"{a}-{b}", marks=() if (a, b) in SOON else pytest.mark.long)
    for a, b in itertools.product(SAVED, GOES_ON)
]


def train(pictures: Path, run: Path, how: tuple[str, int], words: tuple[str, ...] = THREE_BLOCKS) -> Ended:
    mode, ranks = how
    ended = wait(start(*words, f"data.source={pictures}", f"output={run}", f"parallel.mode={mode}", ranks=ranks))
    assert ended.status == 0, ended.words
    return ended


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_shards(sample.samples(200, seed=3), folder, total=200, per_shard=200)
    return folder


@pytest.fixture(scope="module")
def runs(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    folder = tmp_path_factory.mktemp("runs")
    made = {how: folder / f"{how[0]}-{how[1]}" for how in SAVED}
    for how, run in made.items():
        train(pictures, run, how)
    return made


def weights(run: Path) -> torch.Tensor:
    """All parameters of a run's backbone in one row."""
    return torch.cat([p.detach().flatten() for p in read_bundle(run / "bundle")[0].parameters()])


def norms(run: Path) -> list[float]:
    """The gradient norm of every step."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["grad_norm"] for row in rows if "grad_norm" in row]


def apart(run: Path, other: Path) -> float:
    return float((weights(run) - weights(other)).norm())


@pytest.mark.parametrize("how", SAVED[1:], ids=str)
def test_every_mode_gives_the_losses_and_the_backbone_of_one_process(runs, how):
    truth = losses(runs[ONE])
    assert len(truth) == 20 and max(truth) - min(truth) > 1e-3  # they moved, so agreeing says something
    assert losses(runs[how]) == pytest.approx(truth, abs=1e-4)
    assert norms(runs[how]) == pytest.approx(norms(runs[ONE]), rel=2e-3)
    assert apart(runs[how], runs[ONE]) < 1e-3 * float(weights(runs[ONE]).norm())


@pytest.mark.parametrize(("saved", "goes_on"), PAIRS)
def test_a_checkpoint_goes_on_in_another_mode_on_another_number_of_ranks(runs, pictures, tmp_path, saved, goes_on):
    run = tmp_path / "run"
    shutil.copytree(runs[saved], run, symlinks=True)
    shutil.rmtree(run / "checkpoints" / "step-00000020")
    ended = train(pictures, run, goes_on)
    assert "going on from step 10" in ended.words
    manifest = json.loads((run / "checkpoints" / "step-00000010" / "manifest.json").read_text())
    assert manifest["ranks"] == saved[1]
    assert losses(run) == pytest.approx(losses(runs[ONE]), abs=1e-4)
    manifest = json.loads((run / "checkpoints" / "step-00000020" / "manifest.json").read_text())
    assert manifest["ranks"] == goes_on[1]


def test_statistics_of_fewer_images_than_before_are_refused(runs, pictures, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs[ONE], run, symlinks=True)
    words = (*THREE_BLOCKS, f"data.source={pictures}", f"output={run}", "parallel.batch_norm_group=1")
    ended = wait(start(*words, ranks=2))
    assert "were those of 64 images" in ended.words and "parallel.batch_norm_group=2" in ended.words
    assert json.loads((run / "result.json").read_text())["exit"] == 78


@pytest.mark.long
def test_regnety_200mf_comes_no_further_apart_than_by_rounding_alone(pictures, tmp_path):
    """Rounding alone: one process in channels_last, where torch's batch norm adds up in another order."""
    words = ("pretrain", *SMALL, "batch=32", "augment.sizes=[64,48]", "task.queue=64", "steps=20", "every.checkpoint=0")
    hows = {"one": ONE, "rounded": ONE, "ddp": ("ddp", 2), "fsdp": ("fsdp", 2)}
    for name, how in hows.items():
        layout = f"parallel.channels_last={str(name == 'rounded').lower()}"
        train(pictures, tmp_path / name, how, (*words, layout))
    first, *_ = losses(tmp_path / "one")
    rounding = apart(tmp_path / "rounded", tmp_path / "one")
    for name in ("ddp", "fsdp"):
        assert losses(tmp_path / name)[0] == pytest.approx(first, abs=1e-5)
        assert apart(tmp_path / name, tmp_path / "one") <= 1.5 * rounding
        print(f"{name}: {apart(tmp_path / name, tmp_path / 'one') / rounding:.2f} of what rounding does")
