"""One process, DDP, FSDP and fairscale through the program: the same losses, and checkpoints of any go on under any other."""

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch

from seer.data import synthetic as sample
from seer.data.shards.writer import write_shards
from seer.models.bundle import read_bundle
from seer.run.weights import state
from tests.messages import says
from tests.program import SMALL, Ended, finished, losses, went_on_from

pytestmark = pytest.mark.slow
# In float32 an untrained deep network multiplies rounding errors by ten a step: three blocks, NCHW and a small rate, as in
# tests/test_resume.py; RegNetY-200MF is trained a little first, below
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


def train(images: Path, run: Path, how: tuple[str, int], words: tuple[str, ...] = THREE_BLOCKS) -> Ended:
    mode, ranks = how
    ended = finished(*words, f"data.source={images}", f"output={run}", f"parallel.mode={mode}", ranks=ranks)
    assert ended.status == 0, ended.words
    return ended


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_shards(sample.samples(200, seed=3), folder, total=200, per_shard=200)
    return folder


@pytest.fixture(scope="module")
def runs(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    folder = tmp_path_factory.mktemp("runs")
    made = {how: folder / f"{how[0]}-{how[1]}" for how in SAVED}
    for how, run in made.items():
        train(images, run, how)
    return made


def weights(run: Path) -> torch.Tensor:
    """All parameters of a run's backbone in one row."""
    return torch.cat([p.detach().flatten() for p in read_bundle(run / "bundle")[0].parameters()])


def norms(run: Path) -> list[float]:
    """The gradient norm of every step."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["grad_norm"] for row in rows if "grad_norm" in row]


@pytest.mark.parametrize("how", SAVED[1:], ids=str)
def test_every_mode_gives_the_losses_and_the_backbone_of_one_process(runs, how):
    truth = losses(runs[ONE])
    assert len(truth) == 20 and max(truth) - min(truth) > 1e-3  # they moved, so agreeing says something
    assert losses(runs[how]) == pytest.approx(truth, abs=1e-4)
    assert norms(runs[how]) == pytest.approx(norms(runs[ONE]), rel=5e-3)  # 0.27 % by rounding with AVX2 alone
    assert float((weights(runs[how]) - weights(runs[ONE])).norm()) < 1e-3 * float(weights(runs[ONE]).norm())


@pytest.mark.parametrize("how", SAVED, ids=str)
def test_the_backbone_is_read_from_the_checkpoint_of_any_mode_by_one_process(runs, how):
    """Bit by bit what the bundle of that step has; of step 10 there is no bundle."""
    found = state(str(runs[how] / "checkpoints" / "last"))
    bundle = read_bundle(runs[how] / "bundle")[0].state_dict()
    assert found.kind == "checkpoint" and found.backbone.state_dict().keys() == bundle.keys()
    assert all(torch.equal(tensor, bundle[name]) for name, tensor in found.backbone.state_dict().items())
    earlier = state(str(runs[how] / "checkpoints" / "step-00000010"))
    assert earlier.step == 10 and not torch.equal(
        earlier.backbone.state_dict()["stem.conv.weight"], bundle["stem.conv.weight"]
    )


@pytest.mark.parametrize(("saved", "goes_on"), PAIRS)
def test_a_checkpoint_goes_on_in_another_mode_on_another_number_of_ranks(runs, images, tmp_path, saved, goes_on):
    run = tmp_path / "run"
    shutil.copytree(runs[saved], run, symlinks=True)
    shutil.rmtree(run / "checkpoints" / "step-00000020")
    ended = train(images, run, goes_on)
    assert went_on_from(ended) == 10
    manifest = json.loads((run / "checkpoints" / "step-00000010" / "manifest.json").read_text())
    assert manifest["ranks"] == saved[1]
    assert losses(run) == pytest.approx(losses(runs[ONE]), abs=1e-4)
    manifest = json.loads((run / "checkpoints" / "step-00000020" / "manifest.json").read_text())
    assert manifest["ranks"] == goes_on[1]


def test_in_float16_fsdp_skips_the_steps_that_ddp_skips_and_starts_prototypes_by_kmeans(images, tmp_path):
    """The loss scale's search is one for all ranks, though each sees its shards alone."""
    short = [w for w in THREE_BLOCKS if not w.startswith(("steps=", "every.checkpoint", "batch="))]
    words = (*short, "steps=6", "batch=16", "every.checkpoint=0", "precision=fp16", "task.kmeans=64")
    found = {}
    for mode in ("ddp", "fsdp"):
        train(images, tmp_path / mode, (mode, 2), words)
        rows = [json.loads(line) for line in (tmp_path / mode / "metrics.jsonl").read_text().splitlines()]
        found[mode] = [(row["loss_scale"], row["skipped_steps"]) for row in rows if "loss" in row]
    assert found["fsdp"] == found["ddp"] and found["ddp"][-1][1] > 0
    assert losses(tmp_path / "fsdp") == pytest.approx(losses(tmp_path / "ddp"), rel=0.01)


def test_statistics_of_fewer_images_than_before_are_refused(runs, images, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(runs[ONE], run, symlinks=True)
    words = (*THREE_BLOCKS, f"data.source={images}", f"output={run}", "parallel.batch_norm_group=1")
    ended = finished(*words, ranks=2)
    assert says(ended.words, "64 images", "parallel.batch_norm_group=1", "parallel.batch_norm_group=2")
    assert json.loads((run / "result.json").read_text())["exit"] == 78


@pytest.mark.long
def test_regnety_200mf_gives_the_same_losses_in_every_mode_once_it_has_learnt_a_little(images, tmp_path):
    """Untrained, in float32, it multiplies rounding by ten a step, in one process too (LOG.md); so it is trained before."""
    network = [w for w in SMALL if not w.startswith(("batch=", "augment.sizes=", "task."))]
    method = (
        "task=swav_small",
        "task.prototypes=64",
        "task.hidden=[256]",
        "task.embedding=64",
        "batch=32",
        "augment.sizes=[64,48]",
    )
    words = ("pretrain", *network, *method, "every.checkpoint=0", "parallel.channels_last=false", "schedule.warmup=0")
    train(images, tmp_path / "before", ONE, (*words, "optim=adamw", "schedule.peak=0.002", "steps=150"))
    again = (*words, "task.queue=64", "steps=20", "schedule.peak=0.01", f"weights={tmp_path / 'before'}")
    for how in SAVED:
        train(images, tmp_path / how[0], how, again)
    truth = losses(tmp_path / ONE[0])
    assert max(truth) - min(truth) > 0.05
    for mode, _ in SAVED[1:]:
        found = losses(tmp_path / mode)
        print(f"{mode}: losses differ by {max(abs(a - b) for a, b in zip(found, truth, strict=True)):.1e} at most")
        assert found == pytest.approx(truth, abs=1e-4)
