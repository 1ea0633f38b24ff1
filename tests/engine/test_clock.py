"""The clock of a run whose length is a time, against arithmetic on a clock that the test moves."""

import math
from fractions import Fraction

import pytest

from seer.core.errors import RequestError
from seer.engine.clock import FAR, Clock
from seer.optim.schedules import warmup_cosine
from seer.run.config import PlateauConfig
from seer.run.schedule import Durations, schedule

COSINE = {"_target_": "seer.optim.schedules.warmup_cosine", "peak": 1.0, "final": 0.1, "warmup": "10%"}


class Hand:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def run(
    lengths: Durations, node: dict, seconds_of: list[float], clock: Clock, hand: Hand, first: int = 0
) -> list[float]:
    """The learning rate of every step until the time is over, steps taking so many seconds each."""
    lr, _ = schedule(node, PlateauConfig(), lengths, clock)
    clock.start()
    rates, step = [], first
    while not clock.over:
        rate = lr(step)
        assert rate is not None
        rates.append(rate)
        hand.time += seconds_of[step]
        clock.read(None)
        step += 1
    return rates


@pytest.mark.parametrize("warmup", ["10%", 20, "64img"])
def test_at_an_even_speed_the_rates_are_those_of_the_run_with_so_many_steps(warmup):
    lengths, hand = Durations("100s", 16, 1000), Hand()
    rates = run(lengths, {**COSINE, "warmup": warmup}, [0.5] * 300, Clock(lengths.clock, hand), hand)
    assert len(rates) == 200
    steps = {"10%": 20, 20: 20, "64img": 4}[warmup]
    expected = [warmup_cosine(s, peak=1.0, final=0.1, total=200, warmup=steps) for s in range(200)]
    assert rates == pytest.approx(expected, abs=0.02)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3) and max(rates) == pytest.approx(1.0, abs=1e-3)


def test_a_run_that_becomes_slow_still_ends_at_its_last_rate_and_the_rates_follow_the_time():
    lengths, hand = Durations("100s", 16, 1000), Hand()
    rates = run(lengths, COSINE, [0.25] * 100 + [1.5] * 100, Clock(lengths.clock, hand), hand)
    assert len(rates) == 150  # 25 s and 75 s
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
    for step, time in ((100, 25.0), (110, 40.0), (125, 62.5)):  # half a cosine over the 90 s behind the warm-up
        assert rates[step] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * (time - 10) / 90)), abs=0.02)


def test_a_run_that_goes_on_has_the_rates_of_one_that_was_not_stopped_to_the_last_bit():
    lengths, hand, seconds = Durations("100s", 16, 1000), Hand(), [0.3 + 0.1 * (i % 7) for i in range(400)]
    whole = run(lengths, COSINE, seconds, Clock(lengths.clock, hand), hand)
    again, other = Hand(), Clock(lengths.clock)
    first = Clock(lengths.clock, again)
    first.start()
    for step in range(50):
        again.time += seconds[step]
        first.read(None)
    later = Hand()
    later.time = 12345.0
    other = Clock(lengths.clock, later)
    other.start(first.seconds)
    rest = run(lengths, COSINE, seconds, other, later, first=50)
    assert rest[0] == whole[50]  # of the step that the checkpoint says: the rest depends on how the clock rounds
    assert rest == pytest.approx(whole[50:], abs=1e-9)


def test_a_share_of_the_run_is_passed_as_often_as_it_fits():
    hand = Hand()
    clock = Clock(60.0, hand)
    clock.start()
    passed = 0
    while not clock.over:
        hand.time += 0.7
        clock.read(None)
        passed += clock.passed(Fraction(25, 100))
    assert passed == 4 and clock.share == 1.0


def test_without_a_limit_it_counts_and_is_never_over():
    hand = Hand()
    clock = Clock(None, hand)
    clock.start(5.0)
    hand.time += 2.5
    clock.read(None)
    assert (clock.seconds, clock.over, clock.share, clock.total(3)) == (7.5, False, 0.0, FAR)


@pytest.mark.parametrize(("word", "seconds"), [("8h", 28800.0), ("30min", 1800.0), ("1.5h", 5400.0), ("2d", 172800.0)])
def test_a_time_is_the_length_of_a_run_and_shares_of_it_stay_shares(word, seconds):
    lengths = Durations(word, 16, 1000)
    assert lengths.clock == seconds and lengths.total == FAR
    assert lengths.interval("5%", "every.checkpoint") == Fraction(5, 100) and lengths.interval("2ep", "x") == 125
    with pytest.raises(RequestError) as caught:
        lengths.steps("5%", "task.queue_from")
    assert "task.queue_from=5%" in str(caught.value)


@pytest.mark.parametrize("word", ["0h", "0min"])
def test_no_time_at_all_is_refused(word):
    with pytest.raises(RequestError):
        Durations(word, 16, 1000)


def test_only_the_length_of_the_run_is_a_time():
    with pytest.raises(RequestError) as caught:
        Durations(100, 16, 1000).steps("8h", "every.checkpoint")
    assert "every.checkpoint" in str(caught.value) and "steps=8h" in str(caught.value)


def test_a_warm_up_that_is_longer_than_the_time_ends_as_a_warm_up():
    lengths, hand = Durations("10s", 16, 1000), Hand()
    rates = run(lengths, {**COSINE, "warmup": 1000}, [1.0] * 20, Clock(lengths.clock, hand), hand)
    assert rates == [step / 1000 for step in range(10)]
