"""A run that goes on from the middle gives the losses of one that was left alone, bit for bit, with every option that
remembers something: queue, heads, hard codes, halvings."""

import json
import shutil
from pathlib import Path

import pytest

from seer.data import synthetic as sample
from tests.program import SMALL, losses, seer, went_on_from

pytestmark = pytest.mark.slow
OPTIONS = {
    "a queue that fills and is used across the stop, two heads, hard codes": (
        "task.queue=64", "task.queue_from=1", "task.heads=2", "task.hard_until=5",
    ),
    "halvings before and after the stop, and a window that the stop cuts": (
        "schedule=constant_halving", "schedule.warmup=0", "schedule.peak=3@256", "plateau.patience=3",
        "plateau.threshold=0.5",
    ),
    "two waves of a cosine": ("schedule=cosine_restarts", "schedule.warmup=1", "schedule.wave=full"),
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for key, fields in sample.samples(50, seed=3):
        (folder / f"{key}.jpg").write_bytes(fields["jpg"])
    return folder


def column(run: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_it_goes_on_bit_for_bit(options, images: Path, tmp_path: Path, capfd) -> None:
    small = [w for w in SMALL if not w.startswith("model=")]
    words = ("pretrain", *small, "model=regnety_tiny", f"data.source={images}", "steps=10", "every.checkpoint=5")
    run = tmp_path / "run"
    ended = seer(capfd, *words, *options, f"output={run}")
    assert ended.status == 0, ended.words
    before, rates = losses(run), column(run, "lr")
    shutil.rmtree(run / "checkpoints" / "step-00000010")
    (run / "result.json").unlink()
    again = seer(capfd, *words, *options, f"output={run}")
    assert again.status == 0 and went_on_from(again) == 5
    assert losses(run) == before and len(before) == 10 and len(set(before)) == 10
    assert column(run, "lr") == rates
    if "schedule=constant_halving" in options:
        peak = 3 * 16 / 256
        assert rates == [peak] * 6 + [peak / 2] * 3 + [peak / 4]  # the first window has nothing to be held against
