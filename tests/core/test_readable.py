"""Durations and rates as people read them."""

import re

import pytest

from seer.core import readable

SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "0 s"), (-3, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (61, "1 min 1 s"), (12426, "3 h 27 min"),
        (3599, "1 h"), (7200, "2 h"), (86400 * 2 + 3600 * 4, "2 d 4 h"), (86399, "1 d"), (600, "10 min"),
    ],
)  # fmt: skip
def test_durations(seconds, told):
    assert readable.duration(seconds) == told


def test_a_duration_is_right_to_its_smaller_unit():
    for seconds in [*range(0, 8000, 7), *range(8000, 10**6, 991)]:
        parts = re.findall(r"(\d+) (s|min|h|d)", readable.duration(seconds))
        smallest = 1 if seconds < 600 else 60 if seconds < 86370 else 3600
        assert (
            abs(sum(int(n) * SECONDS[unit] for n, unit in parts) - seconds) <= smallest / 2 + 31 * (smallest > 60) + 0.5
        ), seconds
        assert len(parts) <= 2


@pytest.mark.parametrize(
    ("rate", "told"),
    [(812.4, "812 images/s"), (9.97, "10 images/s"), (4.24, "4.2 images/s"), (0.4, "2.5 s/image"), (0.004, "250.0 s/image"),
     (12345, "12,345 images/s"), (0, "0 images/s")],
)  # fmt: skip
def test_rates(rate, told):
    assert readable.rate(rate) == told
