"""Schedules at their corners, in closed form; SEER's own numbers."""

import math
from functools import partial
from itertools import pairwise

import pytest

from seer.optim.schedules import constant_halving, cosine_restarts, frozen_until, scaled_peak, step_decay, warmup_cosine

SEER = dict(peak=9.6, total=122_070, warmup=8000, start=0.15, final=0.0096)


def test_warmup_is_a_straight_line_from_start_to_peak():
    assert warmup_cosine(0, **SEER) == 0.15
    assert warmup_cosine(2000, **SEER) == pytest.approx(0.15 + (9.6 - 0.15) / 4)
    assert warmup_cosine(7999, **SEER) == pytest.approx(9.6 - (9.6 - 0.15) / 8000)
    assert warmup_cosine(8000, **SEER) == 9.6


def test_cosine_starts_afresh_after_the_warmup_and_ends_on_the_last_step():
    assert warmup_cosine(122_069, **SEER) == pytest.approx(0.0096, rel=1e-12)
    middle, span = 8000 + 57_034, 122_069 - 8000
    exact = 0.0096 + 0.5 * (9.6 - 0.0096) * (1 + math.cos(math.pi * (middle - 8000) / span))
    assert warmup_cosine(middle, **SEER) == pytest.approx(exact, rel=1e-12)
    assert warmup_cosine(8000 + 10, peak=2.0, total=8021, warmup=8000, final=1.0) == pytest.approx(1.5)
    assert warmup_cosine(200_000, **SEER) == warmup_cosine(122_069, **SEER)


def test_cosine_falls_at_every_step():
    values = [warmup_cosine(step, peak=1.0, total=50, warmup=5) for step in range(5, 50)]
    assert all(a > b for a, b in pairwise(values)) and values[-1] == pytest.approx(0, abs=1e-15)


def test_runs_of_one_step_and_without_warmup_start_at_the_peak():
    assert warmup_cosine(0, peak=3.0, total=1) == 3.0
    assert warmup_cosine(0, peak=3.0, total=100) == 3.0
    assert warmup_cosine(1, peak=3.0, total=2, warmup=1) == 3.0


def test_half_waves_restart_at_the_top_and_each_reaches_the_end():
    wave = partial(cosine_restarts, peak=4.0, total=30, cycles=3, decay=0.5, final=0.1)
    assert [wave(step) for step in (0, 10, 20)] == pytest.approx([4.0, 2.0, 1.0])
    assert [wave(step) for step in (9, 19, 29)] == pytest.approx([0.1, 0.1, 0.1])
    assert wave(13) == pytest.approx(0.1 + 0.5 * 1.9 * (1 + math.cos(math.pi / 3)))


def test_full_waves_come_back_up():
    wave = partial(cosine_restarts, peak=4.0, total=11 + 2, warmup=2, start=1.0, wave="full", final=0.5)
    assert [wave(step) for step in (0, 1, 2, 7, 12)] == pytest.approx([1.0, 2.5, 4.0, 0.5, 4.0])


def test_waves_of_uneven_length_cover_every_step_once():
    values = [cosine_restarts(step, peak=1.0, total=11, cycles=3) for step in range(11)]
    assert [step for step, value in enumerate(values) if value == 1.0] == [0, 4, 8]
    assert [step for step, value in enumerate(values) if value < 1e-12] == [3, 7, 10]


def test_one_half_wave_is_the_cosine_without_restarts():
    for step in (0, 3, 7, 8, 50, 99, 120):
        arguments = dict(peak=1.3, total=100, warmup=8, start=0.2, final=0.01)
        assert cosine_restarts(step, **arguments) == warmup_cosine(step, **arguments)


def test_constant_is_halved_from_each_named_step_on():
    halved_at = []
    schedule = partial(constant_halving, peak=4.8, warmup=10, halved_at=halved_at, start=0.3)
    assert [schedule(step) for step in (0, 5, 10, 10**6)] == pytest.approx([0.3, 2.55, 4.8, 4.8])
    halved_at.append(100)  # as the loop does
    halved_at.append(150)
    assert [schedule(step) for step in (99, 100, 149, 150, 10**6)] == pytest.approx([4.8, 2.4, 2.4, 1.2, 1.2])


def test_frozen_is_none_and_then_the_inner_schedule_at_the_same_step():
    schedule = partial(frozen_until, until=313, then=partial(warmup_cosine, **SEER))
    assert schedule(0) is None and schedule(312) is None
    assert schedule(313) == warmup_cosine(313, **SEER)
    assert frozen_until(0, until=0, then=lambda step: 0.5) == 0.5


def test_the_linear_rule_gives_the_published_peaks():
    assert scaled_peak(0.3, 8192) == pytest.approx(9.6)
    assert scaled_peak(0.3, 7936) == pytest.approx(9.3)
    assert scaled_peak(0.1, 64, reference=32) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (partial(warmup_cosine, 0, peak=1.0, total=10, warmup=10), "warmup is 10 steps of total 10"),
        (partial(warmup_cosine, -1, peak=1.0, total=10), "step is -1"),
        (partial(warmup_cosine, 0, peak=1.0, total=0), "total is 0"),
        (partial(warmup_cosine, 0, peak=1.0, total=10, warmup=-2), "warmup is -2"),
        (partial(warmup_cosine, 0, peak=1.0, total=10, start=-0.1), "start is -0.1"),
        (partial(cosine_restarts, 0, peak=1.0, total=10, warmup=5, cycles=6), "cycles is 6; between 1 and the 5"),
        (partial(cosine_restarts, 0, peak=1.0, total=10, wave="square"), "wave is 'square'"),
        (partial(constant_halving, -1, peak=1.0), "step is -1"),
        (partial(step_decay, 0, peak=1.0, factor=0.0), "factor is 0.0"),
        (partial(frozen_until, 0, until=-1, then=lambda step: 1.0), "until is -1"),
        (partial(scaled_peak, 0.3, 0), "batch is 0"),
    ],
)
def test_wrong_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_a_rate_that_is_divided_by_ten_after_30_of_35_epochs():
    rate = partial(step_decay, peak=0.0125, lowered_at=[30, 33])
    assert [rate(step) for step in (0, 29, 30, 32, 33, 99)] == pytest.approx(
        [0.0125] * 2 + [0.00125] * 2 + [0.000125] * 2
    )
    warm = partial(step_decay, peak=1.0, warmup=4, start=0.2, lowered_at=[6], factor=0.5)
    assert [warm(step) for step in range(8)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 0.5, 0.5])
