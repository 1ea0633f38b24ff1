"""16-bit arithmetic: 200 steps stay finite where a plain fp16 exponent overflows; a loss scale that finds no end is told."""

import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from seer.core.errors import NumericsError, RequestError
from seer.data import synthetic as sample
from seer.data.shards.writer import write_shards
from seer.engine import precision
from seer.engine.metrics import read_rows
from seer.engine.precision import DTYPES, MOST_SKIPPED, Precision, default_dtype
from seer.optim.lars import LARS
from seer.run import session
from seer.tasks import swav
from tests.engine.test_nan_guard import guard
from tests.messages import naming, says
from tests.program import Ended, seer

SMALL = (
    "model=regnety_tiny", "augment=small", "augment.sizes=[16]", "augment.counts=[2]", "augment.scales=[[0.3,1.0]]",
    "task=swav_small", "task.hidden=[32]", "task.prototypes=16", "task.temperature=0.1", "task.epsilon=0.05", "batch=16",
    "every.log=1", "every.evaluate=0", "every.checkpoint=0", "log.tensorboard=false", "data.threads=1",
    "parallel.device=cpu", "steps=200", "optim=adamw", "schedule.peak=0.002",
)  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_shards(sample.samples(64, seed=0), folder, total=64, per_shard=64)
    return folder


def train(capfd, images: Path, run: Path, dtype: str, *words: str) -> Ended:
    words = (f"precision={dtype}", f"data.source={images}", f"output={run}", *words)
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
    images, tmp_path, capfd, dtype
):
    ended = train(capfd, images, tmp_path / "run", dtype)
    assert ended.status == 0, ended.words
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert len(rows) == 200 and all(torch.tensor(row["loss"]).isfinite() for row in rows)
    largest = torch.tensor(max(row["scores/largest"] for row in rows))
    assert torch.exp(largest.half() / 0.05).isinf()
    if dtype == "fp16":
        assert rows[-1]["loss_scale"] >= 1 and rows[-1]["skipped_steps"] <= 5


@pytest.mark.slow
def test_the_plain_fp16_exponent_ends_the_same_run(images, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(swav, "sinkhorn", naive)
    ended = train(capfd, images, tmp_path / "run", "fp16")
    assert ended.status == 70 and says(ended.result["error"], "not finite", "step")


def test_more_than_twenty_skipped_steps_in_a_row_end_the_run_with_the_scales_they_had(tmp_path):
    model, watch = nn.Linear(4, 3), guard(tmp_path)
    before = [p.detach().clone() for p in model.parameters()]
    precision, optimizer = Precision(torch.device("cpu"), "fp16"), LARS(model.parameters(), lr=0.5)
    scales = []
    told = r"step 20 .*skipped_in_a_row 21; loss scales of the last 21 steps: 65536, 32768, 16384, .*, 0\.0625\)"
    with pytest.raises(NumericsError, match=told):
        for step in range(40):
            loss = model(torch.ones(2, 4)).sum()
            scales.append(precision.scaler.get_scale())
            precision.backward(loss)
            model.weight.grad.fill_(float("inf"))
            norm = precision.step(optimizer, loss)
            numbers = {"grad_norm": norm, **precision.numbers()}
            watch.watch(step, precision.broken, numbers, {"x": torch.ones(1)}, precision.history)
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


def skip(precision: Precision, model: nn.Module, optimizer: LARS) -> None:
    loss = model(torch.ones(2, 4)).sum()
    precision.backward(loss)
    model.weight.grad.fill_(float("inf"))
    precision.step(optimizer, loss)


def test_a_run_that_goes_on_counts_on_from_the_steps_that_it_skipped_before():
    model = nn.Linear(4, 3)
    optimizer = LARS(model.parameters(), lr=0.001)
    first, second, old = (Precision(torch.device("cpu"), "fp16") for _ in range(3))
    for _ in range(15):
        skip(first, model, optimizer)
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.history, first.history) and second.numbers() == first.numbers()
    for _ in range(MOST_SKIPPED + 1 - 15):
        assert second.broken.item() == 0
        skip(second, model, optimizer)
    assert second.numbers()["skipped_steps"].item() == MOST_SKIPPED + 1 and second.broken.item() == 1
    old.load_state_dict({k: v for k, v in first.state_dict().items() if k not in ("skipped", "history")})
    assert old.numbers()["skipped_steps"].item() == 0 and old.scaler.get_scale() == 2.0


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ({"apex": None, "apex.amp": None}, ("ModuleNotFoundError", "May 2025")),
        ({"apex": ModuleType("apex"), "apex.amp": None}, ("no amp", "May 2025")),
        ({"apex": ModuleType("apex"), "apex.amp": ModuleType("apex.amp")}, ("apex with amp",)),
    ],
)
def test_apex_is_refused_with_what_is_true_of_the_one_that_is_here(monkeypatch, modules, words):
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(RequestError, match=naming("precision.dtype=apex_o1", "precision=fp16", *words)):
        Precision(torch.device("cpu"), "apex_o1")


def test_auto_takes_bfloat16_where_a_convolution_is_not_slower_in_it():
    x, weight = torch.randn(8, 64, 28, 28), torch.randn(64, 64, 3, 3)

    def fastest(dtype: torch.dtype) -> float:
        image, kernel = x.to(dtype), weight.to(dtype)
        times = []
        for _ in range(6):
            start = time.process_time()
            nn.functional.conv2d(image, kernel, padding=1)
            times.append(time.process_time() - start)
        return min(times[1:])

    slower = fastest(torch.bfloat16) / fastest(torch.float32)
    if slower > 2:
        assert default_dtype(torch.device("cpu")) == "fp32", slower
    elif slower < 0.9:
        assert default_dtype(torch.device("cpu")) == "bf16", slower
    assert Precision(torch.device("cpu"), "auto").dtype == DTYPES[default_dtype(torch.device("cpu"))]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx2 fma", "fp32"),
        ("avx2 avx512f avx512bw avx512vl avx512_vnni", "fp32"),  # torch says that this one supports bfloat16
        ("avx2 avx512f avx512_bf16 avx512_vnni", "bf16"),
        ("avx2 avx512f amx_bf16 amx_tile", "bf16"),
    ],
)
def test_auto_on_an_x86_processor_goes_by_its_flags(tmp_path, monkeypatch, flags, expected):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: X\nflags\t\t: {flags}\nbugs\t\t:\n\n" * 2)
    found = precision._x86_flags(tmp_path / "cpuinfo")
    monkeypatch.setattr(precision, "_x86_flags", lambda: found)
    monkeypatch.setattr(precision, "_quicker_in_bf16", lambda: pytest.fail("an x86 processor was measured"))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert default_dtype(torch.device("cpu")) == expected


@pytest.mark.parametrize("quicker", [True, False])
def test_auto_on_any_other_processor_goes_by_a_measurement(tmp_path, monkeypatch, quicker):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd bf16\n")
    assert precision._x86_flags(tmp_path / "cpuinfo") is None and precision._x86_flags(tmp_path / "none") is None
    monkeypatch.setattr(precision, "_x86_flags", lambda: None)
    monkeypatch.setattr(precision, "_quicker_in_bf16", lambda: quicker)
    assert default_dtype(torch.device("cpu")) == ("bf16" if quicker else "fp32")


def test_a_run_goes_on_in_the_precision_it_began_with_on_a_machine_that_is_quick_in_another(
    images, tmp_path, capfd, monkeypatch
):
    for here, again in (("bf16", ""), ("fp32", "is complete")):
        monkeypatch.setattr(session, "default_dtype", lambda _, here=here: here)
        ended = train(capfd, images, tmp_path / "run", "auto", "steps=1")
        assert ended.status == 0 and again in ended.words, ended.words
        assert "dtype: bf16" in (tmp_path / "run" / "config.yaml").read_text()
    # asked for by name, it is another run
    assert train(capfd, images, tmp_path / "run", "fp32", "steps=1").status == 78


def test_bfloat16_by_emulation_is_warned_of(monkeypatch, caplog):
    for here, warned in (("fp32", True), ("bf16", False)):
        monkeypatch.setattr(precision, "default_dtype", lambda _, here=here: here)
        caplog.clear()
        Precision(torch.device("cpu"), "bf16")
        assert ("has no bfloat16 instructions" in caplog.text) == warned
