"""Halvings on losses whose answer is known, and a watcher that was stopped in the middle of a window."""

import functools
import math

import pytest

from seer.core.errors import RequestError
from seer.optim.plateau import Plateau
from seer.optim.schedules import constant_halving


def halvings(losses: list[float], patience: int, threshold: float = 0.001, after: int = 0) -> list[int]:
    plateau = Plateau(patience, threshold, [], after)
    for done, loss in enumerate(losses, start=1):
        plateau.observe(done, loss)
    return plateau.halved_at


def test_a_loss_that_falls_in_every_window_is_never_halved():
    assert halvings([1 / (1 + t / 50) for t in range(200)], patience=20) == []


def test_a_loss_that_stops_falling_is_halved_at_the_end_of_each_window_without_a_lower_mean():
    falling_then_flat = [5 - 0.1 * t for t in range(20)] + [3.0] * 20
    assert halvings(falling_then_flat, patience=5) == [30, 35, 40]  # 21..25 is the first window at 3: lower than 3.4


def test_noise_inside_a_window_does_not_matter_as_long_as_its_mean_falls():
    assert halvings([5 - 0.01 * t + (1 if t % 2 else -1) for t in range(200)], patience=20) == []


def test_a_mean_that_is_lower_by_less_than_the_threshold_counts_as_not_falling():
    slowly = [4.0] * 10 + [3.99] * 10
    assert halvings(slowly, patience=10, threshold=0.01) == [20]
    assert halvings(slowly, patience=10, threshold=0.001) == []


def test_losses_of_the_warm_up_are_passed_over():
    rising_in_the_warm_up = [1.0] * 30 + [5 - 0.01 * t for t in range(60)]
    assert halvings(rising_in_the_warm_up, patience=10, after=30) == []
    assert halvings(rising_in_the_warm_up, patience=10, after=0) != []


def test_losses_that_are_logged_seldom_are_weighed_alike_and_windows_end_at_the_first_of_them_behind_their_length():
    plateau = Plateau(10, 0.0, [])
    for done, loss in [(4, 3.0), (8, 3.0), (12, 3.0), (16, 5.0), (20, 5.0), (24, 5.0)]:
        plateau.observe(done, loss)
    assert plateau.halved_at == [24]


@pytest.mark.parametrize("stop", range(1, 40, 7))
def test_a_watcher_stopped_anywhere_goes_on_with_the_same_halvings_in_the_same_list(stop):
    losses = [3 + math.sin(t) for t in range(40)]
    first = Plateau(6, 0.001, [])
    for done, loss in enumerate(losses[:stop], start=1):
        first.observe(done, loss)
    halved: list[int] = []
    schedule = functools.partial(constant_halving, peak=1.0, halved_at=halved)
    second = Plateau(6, 0.001, halved)
    second.load_state_dict(first.state_dict())
    for done, loss in enumerate(losses[stop:], start=stop + 1):
        second.observe(done, loss)
    assert halved == halvings(losses, patience=6) != []
    assert schedule(39) == 0.5 ** sum(at <= 39 for at in halved)


@pytest.mark.parametrize("wrong", [(0, 0.1), (5, -0.1), (5, 1.0)])
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(RequestError, match=r"plateau\.patience"):
        Plateau(*wrong, [])
