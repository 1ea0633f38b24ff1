"""A run goes on in its own folder to another length, and no other word may differ: statuses, steps and losses."""

import json
from fractions import Fraction
from pathlib import Path

import pytest

from seer.core import durations
from seer.core.errors import RequestError
from seer.data import synthetic as sample
from seer.engine.manifest import with_checksum
from seer.optim.schedules import warmup_cosine
from seer.run.config import RunConfig
from seer.run.longer import check_length, restated, trained
from seer.run.schedule import Durations
from tests.program import losses, seer, went_on_from

TINY = ("model=regnety_tiny", "augment=small", "augment.sizes=[32,16]", "task=swav_small", "task.hidden=[32]", "task.prototypes=16",
        "batch=16", "every.log=1", "every.evaluate=0", "every.compare=0", "log.tensorboard=false", "data.threads=0",
        "parallel.device=cpu")  # fmt: skip


def done(folder: Path, steps: int, seconds: float | None = None) -> Path:
    """A run folder whose newest checkpoint is of so many steps."""
    checkpoint = folder / "checkpoints" / f"step-{steps:08d}"
    checkpoint.mkdir(parents=True)
    facts = {"format": 2, "step": steps, "ranks": 1, "statistics": 1, "files": {}, "saved_at": 1.0, "kept": False}
    facts |= {} if seconds is None else {"seconds": seconds}
    (checkpoint / "manifest.json").write_text(json.dumps(with_checksum(facts)))
    return folder


# steps of batch 16 and 1,600 images: an epoch is 100 steps; done are 50 steps in 30 s
@pytest.mark.parametrize(
    ("before", "now", "allowed"),
    [
        (100, 200, True),
        (100, "3ep", True),
        (100, 60, True),  # shorter than before, longer than what is done
        (100, 51, True),
        (100, 50, False),
        (100, 20, False),
        (50, "0.5ep", True),  # a finished run, in other words
        (100, "1min", True),
        (100, "30s", False),
        ("1h", "2h", True),
        ("1h", "20s", False),
        ("30s", "0.5min", True),
        ("1h", 51, True),
        ("1h", 50, False),
    ],
)
def test_another_length_is_taken_where_it_is_longer_than_what_is_done(tmp_path, before, now, allowed):
    folder = done(tmp_path / "run", 50, 30.0)
    lengths = Durations(now, 16, 1600)
    if allowed:
        check_length(folder, before, now, lengths)
    else:
        with pytest.raises(RequestError) as caught:
            check_length(folder, before, now, lengths)
        assert f"steps={now}" in str(caught.value) and f"{before} -> {now}" in str(caught.value)


def test_checkpoints_of_earlier_versions_note_no_time_and_a_damaged_one_is_passed_over(tmp_path):
    assert trained(tmp_path) == (0, 0.0)
    folder = done(tmp_path / "run", 50)
    (done(tmp_path / "run", 60) / "checkpoints" / "step-00000060" / "manifest.json").write_text("{")
    assert trained(folder) == (50, 0.0)


def test_what_another_length_moves_is_told_with_both_numbers():
    node = {"_target_": "seer.optim.schedules.warmup_cosine", "peak": 1.0, "final": "10%", "warmup": "10%"}
    others = {name: {} for name in ("model", "task", "augment", "optim", "precision")}
    rules = [{"pattern": "^head", "frozen_steps": "5%"}, {"pattern": "x", "frozen_steps": "1ep"}]
    asked = {**others, "schedule": node, "steps": 200, "groups": rules, "every": {"evaluate": 7, "compare": 0}}
    told = restated(RunConfig.of(asked), 100, Durations(200, 16, 1600), 50, 0.9)
    assert "steps=100 before, steps=200 from step 50" in told[0] and " 0.9," in told[0]
    assert f"{warmup_cosine(50, peak=1, final=0.1, total=100, warmup=10):.3g}" in told[0]
    assert "schedule.warmup=10%: 10 -> 20 steps" in told[1] and "^head frozen_steps=5%: 5 -> 10 steps" in told[1]
    assert "every.checkpoint=5%: 5 -> 10 steps" in told[1]
    assert not any(word in told[1] for word in ("final", "evaluate", "1ep"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for key, fields in sample.samples(48, seed=3):
        (folder / f"{key}.jpg").write_bytes(fields["jpg"])
    return folder


def rates(run: Path) -> list[float]:
    return [row["lr"] for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in row]


@pytest.mark.slow
def test_a_finished_run_goes_on_by_the_schedule_of_the_new_length(images, tmp_path, capfd):
    words = ("pretrain", *TINY, f"data.source={images}", f"output={tmp_path / 'run'}", "schedule.peak=1")
    assert seer(capfd, *words, "steps=4").status == 0
    first = losses(tmp_path / "run")
    longer = seer(capfd, *words, "steps=10")
    assert longer.status == 0 and longer.result["steps"] == 10 and went_on_from(longer) == 4
    assert "steps=4" in longer.words and "steps=10" in longer.words and "schedule.warmup=10%" not in longer.words
    assert losses(tmp_path / "run")[:4] == first and len(losses(tmp_path / "run")) == 10
    by = {n: [warmup_cosine(s, peak=1, final=0.001, total=n, warmup=1) for s in range(n)] for n in (4, 10)}
    assert rates(tmp_path / "run") == [*by[4], *by[10][4:]]
    assert seer(capfd, *words, "steps=10").status == 0 and len(losses(tmp_path / "run")) == 10  # is complete
    shorter = seer(capfd, *words, "steps=6")
    assert shorter.status == 78 and "steps=6" in shorter.result["error"] and "10 steps" in shorter.result["error"]
    other = seer(capfd, *words, "steps=20", "seed=1")
    assert other.status == 78 and "seed: 0 -> 1" in other.result["error"]


@pytest.mark.slow
def test_a_run_ends_when_its_time_is_over_and_goes_on_with_more(images, tmp_path, capfd):
    run = tmp_path / "run"
    words = ("pretrain", *TINY, f"data.source={images}", f"output={run}", "schedule.peak=1", "every.checkpoint=50%")
    words = (*words, "every.keep=99", "groups=[{pattern: '^head\\.prototypes', frozen_steps: 100%}]")
    ended = seer(capfd, *words, "steps=1s")
    seconds = json.loads((run / "checkpoints" / "last" / "manifest.json").read_text())["seconds"]
    assert ended.status == 0 and ended.result["steps"] == len(losses(run)) >= 1 and seconds >= 1.0
    before = ended.result["steps"]
    saved = len(list((run / "checkpoints").glob("step-*")))
    assert saved == min(2, before)  # at half of the time and at its end
    again = seer(capfd, *words, "steps=1s")
    assert again.status == 0 and again.result["steps"] == before and len(losses(run)) == before
    limit = f"{seconds + 1:.3f}s"
    longer = seer(capfd, *words, f"steps={limit}")
    assert longer.status == 0 and went_on_from(longer) == before and longer.result["steps"] > before
    total = -(-before // (Fraction(seconds) / Fraction(durations.seconds(limit))))  # at the speed so far
    expected = warmup_cosine(before, peak=1, final=0.001, total=int(total), warmup=-(-int(total) // 10))
    assert rates(run)[before] == pytest.approx(expected, abs=1e-6)
