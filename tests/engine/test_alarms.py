"""Each alarm is raised by a real run that goes wrong in its way, once and with a remedy, and none by three that do not."""

import logging
import math
from pathlib import Path

import pytest

from seer.core.records import PATIENCE
from seer.data import synthetic as sample
from seer.data.shards.writer import write_shards
from seer.engine.alarms import ALARMS, FlightRecorder, fallen
from seer.models.heads.swav import SwAVHead
from seer.tasks import swav_alarms
from tests.messages import says
from tests.program import Ended, seer

HEALTHY = {
    "loss": 4.0, "codes/entropy": 1.0, "codes/used_prototypes": 60.0, "codes/residual": 0.8,
    "embeddings/spread": 0.9, "scores/largest": 0.6, "grad_norm": 3.0,
    "knn_top1": 0.4,
}  # fmt: skip
WRONG = {
    "uniform codes": {"codes/entropy": 4.15},
    "loss at ln K": {"loss": 4.17},
    "unused prototypes": {"codes/used_prototypes": 5.0},
    "unbalanced prototypes": {"codes/residual": 4.0},
    "embeddings in a point": {"embeddings/spread": 0.05},
    "scores above 1": {"scores/largest": 1.2},
    "gradient spike": {"grad_norm": 100.0},
    "kNN below its start": {"knn_top1": 0.3},
}
SMALL = (
    "model=regnety_tiny", "augment=small", "augment.sizes=[16]", "augment.counts=[2]", "augment.scales=[[0.3,1.0]]",
    "task=swav_small", "task.hidden=[64]", "task.prototypes=64", "optim=adamw", "batch=32", "every.log=1",
    "every.evaluate=0", "log.tensorboard=false", "data.threads=1", "parallel.device=cpu", "steps=12",
    "schedule.peak=0.002", "schedule.warmup=0",
)  # fmt: skip
OWN = swav_alarms.alarms(chance=4.159, prototypes=64)
FIXED = "groups=[{pattern: prototypes, frozen_steps: 100%}]"


@pytest.fixture
def said():
    """Warnings of the run, whatever pytest has done to standard error."""
    from seer.core.log import log

    class Kept(logging.Handler):
        lines: list[str] = []

        def emit(self, record: logging.LogRecord) -> None:
            self.lines.append(record.getMessage())

    handler = Kept(logging.WARNING)
    handler.lines = []
    log.addHandler(handler)
    yield handler.lines
    log.removeHandler(handler)


def recorder() -> FlightRecorder:
    return FlightRecorder(OWN, knn_images=1000)


def test_every_alarm_is_shown_below():
    assert set(WRONG) == {a.name for a in (*OWN, *ALARMS)}


@pytest.mark.parametrize("name", WRONG)
def test_an_alarm_is_raised_once_and_only_its_own_when_its_number_stays_wrong(name, said):
    one = recorder()
    for step in range(PATIENCE):
        one.write(step, HEALTHY)
    assert one.raised == [] and said == []
    for step in range(PATIENCE, 4 * PATIENCE):
        one.write(step, {**HEALTHY, **WRONG[name]})
    assert one.raised == [name] and len(said) == 1 and "step " in said[0] and ";" in said[0]


@pytest.mark.parametrize("name", ["uniform codes", "loss at ln K", "unused prototypes", "embeddings in a point"])
def test_one_good_step_among_the_last_keeps_it_silent(name, said):
    one = recorder()
    for step in range(5 * PATIENCE):
        one.write(step, {**HEALTHY, **(WRONG[name] if step % PATIENCE else {})})
    assert one.raised == [] and said == []


def test_a_run_that_goes_on_is_judged_by_where_it_began_and_a_small_fall_is_no_news(said):
    one = FlightRecorder(OWN, knn_start=0.5, knn_images=1000)
    one.write(9, {"knn_top1": 0.46})
    assert one.raised == []
    one.write(19, {"knn_top1": 0.42})
    assert one.raised == ["kNN below its start"] and says(said[0], "step 20", "0.420", "0.500", "1000", "schedule.peak")


def test_two_images_of_a_hundred_are_chance_and_a_fall_on_unknown_images_is_not_judged(said):
    few, unknown = FlightRecorder(OWN, knn_start=0.1, knn_images=100), FlightRecorder(OWN, knn_start=0.5)
    few.write(9, {"knn_top1": 0.08})
    unknown.write(9, {"knn_top1": 0.1})
    assert few.raised == unknown.raised == [] and said == []


@pytest.mark.parametrize("images", [50, 100, 1000])
@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_chance_alone_raises_the_alarm_less_than_three_times_in_a_thousand_looks_and_a_true_fall_mostly(images, share):
    """Summed over both binomial distributions: nothing is approximated."""

    def chances(p: float) -> list[float]:
        return [math.comb(images, k) * p**k * (1 - p) ** (images - k) for k in range(images + 1)]

    def raised(before: float, after: float) -> float:
        first, second = chances(before), chances(after)
        begun = [k for k, p in enumerate(first) if p > 1e-9]
        return sum(
            first[a] * sum(second[b] for b in range(a) if second[b] > 1e-9 and fallen(a / images, b / images, images))
            for a in begun
        )

    assert raised(share, share) < 0.003
    error = math.sqrt(2 * share * (1 - share) / images)
    if share > 6 * error:
        assert raised(share, share - 6 * error) > 0.85


def test_rows_of_evaluations_are_passed_over(said):
    one = recorder()
    for step in range(3 * PATIENCE):
        one.write(step, {"knn_top1": 0.1})
    assert one.raised == [] and said == []


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_shards(sample.samples(256, seed=0), folder, total=256, per_shard=128)
    return folder


def train(capfd, images: Path, tmp_path: Path, *words: str) -> Ended:
    ended = seer(capfd, "pretrain", *SMALL, f"data.source={images}", f"output={tmp_path / 'run'}", *words)
    assert ended.status == 0, ended.words
    return ended


# a projector that decays to nothing while the rest stands still: its gradient grows as it shrinks, then noise is all there is
DECAY = (
    "optim=sgd", "optim.momentum=0.0", "task.last_batch_norm=false", "task.hidden=[]", "schedule.final=100%",
    "steps=16",
)  # fmt: skip
COLLAPSING = {
    "uniform codes": (FIXED, "task.epsilon=0.5"),
    "loss at ln K": (FIXED, "task.epsilon=0.5", "task.temperature=2.0"),
    "unused prototypes": (FIXED, "task.prototypes=2000"),
    "unbalanced prototypes": (FIXED, "task.last_batch_norm=false", "task.epsilon=0.015", "task.iterations=1", "batch=128"),
    "embeddings in a point": (*DECAY, "schedule.peak=0.001", "groups=[{pattern: projector, weight_decay: 700.0}]"),
    "gradient spike": (
        *DECAY, "schedule.peak=0.00001", "schedule.warmup=12", "groups=[{pattern: projector, weight_decay: 70000.0}]",
    ),
    "scores above 1": ("optim=sgd", "schedule.peak=0.01", "groups=[{pattern: prototypes, lr_scale: 1000.0}]"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", COLLAPSING)
def test_a_run_that_goes_wrong_is_told_so(name, images, tmp_path, capfd, monkeypatch):
    if name == "scores above 1":  # nobody brings prototypes back to unit length
        monkeypatch.setattr(SwAVHead, "normalize_prototypes", lambda self: None)
    ended = train(capfd, images, tmp_path, *COLLAPSING[name])
    assert name in ended.result["alarms"]
    words = next(a.words for a in (*OWN, *ALARMS) if a.name == name)
    assert sum(line.startswith("step ") and line.endswith(words[-20:]) for line in ended.words.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("words", [(FIXED,), ("groups=[]",), (FIXED, "task.queue=64", "task.heads=2")], ids=str)
def test_a_run_that_learns_hears_nothing(words, images, tmp_path, capfd):
    ended = train(capfd, images, tmp_path, *words, "steps=20")
    assert ended.result["alarms"] == []
