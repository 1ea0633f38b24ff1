"""16-bit arithmetic: 200 steps stay finite where a plain fp16 exponent overflows; a loss scale that finds no end is told."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from seer.core.errors import NumericsError
from seer.data import sample
from seer.data.shards import write_shards
from seer.engine.metrics import read_rows
from seer.engine.precision import MOST_SKIPPED, Precision
from seer.optim.lars import LARS
from seer.tasks import swav
from tests.engine.test_numerics import guard
from tests.program import Ended, seer

SMALL = (
    "model=regnety_tiny", "augment=small", "augment.sizes=[16]", "augment.counts=[2]", "augment.scales=[[0.3,1.0]]",
    "task=swav_small", "task.hidden=[32]", "task.prototypes=16", "task.temperature=0.1", "task.epsilon=0.05", "batch=16",
    "every.log=1", "every.evaluate=0", "every.checkpoint=0", "log.tensorboard=false", "data.threads=1",
    "parallel.device=cpu", "steps=200", "optim=adamw", "schedule.peak=0.002",
)  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_shards(sample.samples(64, seed=0), folder, total=64, per_shard=64)
    return folder


def train(capfd, pictures: Path, run: Path, dtype: str, *words: str) -> Ended:
    words = (f"precision={dtype}", f"data.source={pictures}", f"output={run}", *words)
    return seer(capfd, "pretrain", *SMALL, *words)


def naive(scores: Tensor, *, epsilon: float, iterations: int, group=None) -> Tensor:
    """Sinkhorn as it is written, in the arithmetic that the model has."""
    plan = torch.exp(scores.half() / epsilon)
    for _ in range(iterations):
        plan = plan / plan.sum(dim=-2, keepdim=True)
        plan = plan / plan.sum(dim=-1, keepdim=True)
    return plan.float()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_two_hundred_steps_stay_finite_and_their_scores_would_overflow_a_plain_fp16_exponent(
    pictures, tmp_path, capfd, dtype
):
    ended = train(capfd, pictures, tmp_path / "run", dtype)
    assert ended.status == 0, ended.words
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert len(rows) == 200 and all(torch.tensor(row["loss"]).isfinite() for row in rows)
    largest = torch.tensor(max(row["scores/largest"] for row in rows))
    assert torch.exp(largest.half() / 0.05).isinf()
    if dtype == "fp16":
        assert rows[-1]["loss_scale"] >= 1 and rows[-1]["skipped_steps"] <= 5


@pytest.mark.slow
def test_the_plain_fp16_exponent_ends_the_same_run(pictures, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(swav, "sinkhorn", naive)
    ended = train(capfd, pictures, tmp_path / "run", "fp16")
    assert ended.status == 70 and "a number is not finite at step" in ended.result["error"]


def test_more_than_twenty_skipped_steps_in_a_row_end_the_run_with_the_scales_they_had(tmp_path):
    model, watch = nn.Linear(4, 3), guard(tmp_path)
    before = [p.detach().clone() for p in model.parameters()]
    precision, optimizer = Precision(torch.device("cpu"), "fp16"), LARS(model.parameters(), lr=0.5)
    scales = []
    with pytest.raises(NumericsError, match=r"step 20 .*skipped_in_a_row 21"):
        for step in range(40):
            loss = model(torch.ones(2, 4)).sum()
            scales.append(precision.scaler.get_scale())
            precision.backward(loss)
            model.weight.grad.fill_(float("inf"))
            norm = precision.step(optimizer, loss)
            watch.watch(step, precision.broken, {"grad_norm": norm, **precision.numbers()}, {"x": torch.ones(1)})
    assert len(scales) == MOST_SKIPPED + 2  # read one step late
    assert scales[:4] == [65536.0, 32768.0, 16384.0, 8192.0]
    assert precision.history[:-1, 0].tolist() == scales[1:-1]
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_one_good_step_ends_the_row_of_skipped_ones():
    model = nn.Linear(4, 3)
    precision, optimizer = Precision(torch.device("cpu"), "fp16"), LARS(model.parameters(), lr=0.001)
    for step in range(60):
        loss = model(torch.ones(2, 4)).sum()
        precision.backward(loss)
        if step % 20:
            model.weight.grad.fill_(float("nan"))
        precision.step(optimizer, loss)
    assert precision.broken.item() == 0 and precision.numbers()["skipped_steps"].item() == 57
