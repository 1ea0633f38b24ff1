"""Every form a duration may take, as a table, and every form that is refused."""

import math

import pytest

from seer.core.durations import steps
from tests.messages import naming

# a batch of 32, a million images, a run of 5000 steps
TABLE = [
    (20, 20),
    ("20", 20),
    (20.0, 20),
    ("20.", 20),
    (0, 0),
    ("50k", 50_000),
    ("1.5M", 1_500_000),
    ("1G", 10**9),
    ("1e3", 1000),
    ("2.01k", 2010),  # 2.01 * 1000 is 2009.9999999999998 in floating point
    (" 20 k ", 20_000),
    ("600000img", 18_750),
    ("600kimg", 18_750),
    ("33img", 2),  # rounded up to whole steps
    ("32img", 1),
    ("1.5Mimg", 46_875),
    ("1Gimg", 31_250_000),
    ("1ep", 31_250),
    ("100ep", 3_125_000),
    ("100epochs", 3_125_000),
    ("1 epoch", 31_250),
    ("0.5ep", 15_625),
    ("0.00001ep", 1),
    ("10%", 500),
    ("0.1%", 5),
    ("100%", 5000),
]
REFUSED = ["", "ten", "-5", "-1ep", "0.5", "1.0005k", "5eps", "5K", "5m", "k", "%", "1e", "nan", "inf", "1_000",
           "0x10", "1e400", "5ep 3", "٣", None, True, [5]]  # fmt: skip


@pytest.mark.parametrize(("duration", "expected"), TABLE)
def test_duration_is_so_many_steps(duration, expected):
    found = steps(duration, batch=32, images=1_000_000, total=5000)
    assert found == expected and isinstance(found, int)


@pytest.mark.parametrize("duration", REFUSED)
def test_duration_is_refused_and_named(duration):
    with pytest.raises(ValueError, match="duration") as caught:
        steps(duration, batch=32, images=1_000_000, total=5000)
    assert repr(duration) in str(caught.value)


def test_a_share_of_the_run_cannot_be_the_length_of_the_run():
    with pytest.raises(ValueError, match=naming("10%", "duration")):
        steps("10%", batch=32, images=1000)


def test_what_comes_every_quarter_of_the_run_comes_four_times_and_not_five():
    for total in range(5, 500):
        every = steps("25%", batch=32, images=1000, total=total)
        assert math.ceil(total / every) <= 4


def test_epochs_that_come_out_whole_are_not_rounded_up():
    # 0.07 * 100 is 7.000000000000001 in floating point
    assert [steps(f"{n / 100:g}ep", batch=1, images=100) for n in range(1, 101)] == list(range(1, 101))
