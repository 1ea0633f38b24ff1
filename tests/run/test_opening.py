"""The table at the start of a run: what its intervals are in words."""

from fractions import Fraction

import pytest

from seer.run.opening import interval


@pytest.mark.parametrize(
    ("number", "limit", "words"),
    [
        (0, None, "at the end"),
        (Fraction(0), 60.0, "at the end"),
        (1500, None, "every 1,500 steps"),
        (10, 28800.0, "every 10 steps"),
        (Fraction(1, 20), 28800.0, "every 24 min"),  # 5% of 8 h
        (Fraction(1, 4), 8.0, "every 2 s"),
    ],
)
def test_an_interval_is_steps_or_of_a_run_by_the_clock_a_time(number, limit, words):
    assert interval(number, limit) == words
