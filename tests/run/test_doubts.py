"""What is told before a run that nobody is likely to have meant; what recipes and papers do is no doubt."""

import pytest
from torch import nn

from seer.models.surgery import freeze_batch_norm
from seer.run.config import RunConfig
from seer.run.doubts import accumulates, doubts

NODES = {name: {} for name in ("model", "task", "augment", "optim", "precision")}
PLAIN, ADAPTIVE = {"lr": 1.0}, {"lr": 1.0, "betas": (0.9, 0.999)}


def config(peak: object, batch: int) -> RunConfig:
    return RunConfig.of({**NODES, "schedule": {"peak": peak}, "batch": batch})


@pytest.mark.parametrize(
    ("peak", "batch", "optimizer"),
    [("0.3@256", 256, PLAIN), ("0.3@256", 8192, PLAIN), (9.6, 8192, PLAIN), (0.6, 64, PLAIN), (0.002, 128, ADAPTIVE)],
)
def test_usual_rates_and_enough_images_are_no_doubt(peak, batch, optimizer):
    assert doubts(config(peak, batch), 50_000, optimizer) == []


@pytest.mark.parametrize(("peak", "optimizer"), [(100, PLAIN), (0.3, ADAPTIVE), ("30@256", PLAIN)])
def test_a_peak_that_nobody_trains_with_is_told(peak, optimizer):
    (told,) = doubts(config(peak, 256), 50_000, optimizer)
    assert f"schedule.peak={peak}" in told


@pytest.mark.parametrize("images", [1, 3, 255])
def test_fewer_images_than_a_batch_are_told_with_their_number(images):
    (told,) = doubts(config(0.3, 256), images, PLAIN)
    assert told.startswith(f"{images} image")


def test_as_many_images_as_a_batch_are_no_doubt():
    assert doubts(config(0.3, 256), 256, PLAIN) == []


def test_it_is_said_whether_batch_norm_makes_parts_differ():
    live = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    differs, same = accumulates(4, 64, live), accumulates(4, 64, freeze_batch_norm(live))
    assert differs != same and "not those of the whole" in differs and "parts of 16" in same
