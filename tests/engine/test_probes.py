"""Probes keep to their share of the time, on a clock of our own; and the best of a figure is known by hand."""

import dataclasses
import logging
import math

import pytest
import torch
from torch import nn

from seer.core.errors import RequestError
from seer.core.evaluations import PROBES
from seer.core.log import log
from seer.engine.best import Best
from seer.engine.probes import Probes
from seer.parallel.world import World
from seer.run.config import ProbesConfig

ALONE = World(0, 1, 0, torch.device("cpu"))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Costs:
    """An evaluator that takes so many seconds."""

    def __init__(self, clock: Clock, seconds: float, name: str):
        self.clock, self.seconds, self.name = clock, seconds, name

    def run(self, task) -> dict[str, float]:
        self.clock.now += self.seconds
        return {self.name: self.seconds}


class Plain:
    def __init__(self):
        self.model = nn.Linear(1, 1)

    def modules(self):
        return {"backbone": self.model}


def probes(share: float | None) -> tuple[Clock, Probes]:
    clock = Clock()
    return clock, Probes({n: Costs(clock, s, n) for n, s in (("cheap", 1.0), ("dear", 9.0))}, ALONE, share, clock)


def seen(clock: Clock, judges: Probes, times: int = 10, step: float = 10.0) -> list[list[str]]:
    found = [list(judges.run(Plain(), 1, free=True))]
    for i in range(times):
        clock.now += step
        found.append(list(judges.run(Plain(), 1, free=i == times - 1)))
    return found


def test_without_a_share_all_run_each_time_and_the_share_is_what_they_took():
    clock, judges = probes(None)
    assert seen(clock, judges) == [["cheap", "dear"]] * 11
    assert judges.taken == pytest.approx(110 / 210) and judges.plain() == {"seconds": 110.0, "of": 210.0}


def test_a_probe_that_would_exceed_the_share_waits_and_is_told_once(caplog, monkeypatch):
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.INFO, logger="seer")
    clock, judges = probes(0.3)
    found = seen(clock, judges)
    assert found[0] == found[-1] == ["cheap", "dear"]  # the ends of the curve, whatever they cost
    between, taken, elapsed = [], 10.0, 10.0  # by hand: 10 s before training
    for _ in range(9):
        elapsed += 10
        now = []
        for name, cost in (("cheap", 1.0), ("dear", 9.0)):
            if (taken + cost) / (elapsed + cost) <= 0.3:
                now.append(name)
                taken, elapsed = taken + cost, elapsed + cost
        between.append(now)
    assert found[1:-1] == between and 0 < sum("dear" in one for one in between) < sum("cheap" in one for one in between)
    told = [words for words in set(caplog.messages) if "probe.share=30%" in words]
    assert len(told) == len({name for one in between for name in ("cheap", "dear") if name not in one})


def test_the_account_goes_on_with_the_run():
    clock, judges = probes(0.3)
    seen(clock, judges, 3)
    again, later = probes(0.3)
    again.now = 1000.0
    later.go_on(judges.plain())
    assert later.taken == judges.taken and later.elapsed == judges.elapsed
    later.go_on({})  # a checkpoint of an earlier version
    assert later.taken == 0.0


def test_the_best_is_the_first_of_the_highest_that_was_trained():
    best, found = Best("knn"), []
    for done, value in ((0, 0.9), (10, 0.3), (20, math.nan), (30, 0.5), (40, 0.5), (50, 0.4)):
        found.append(best.observe(done, {"knn_top1": value, "rankme": 3.0}, None))
    assert found == [False, True, False, True, False, False]
    assert best.plain() == {"metric": "knn_top1", "value": 0.5, "step": 30}
    other = Best("knn")
    other.go_on(best.plain())
    assert not other.observe(60, {"knn_top1": 0.5}, None) and other.observe(70, {"knn_top1": 0.6}, None)
    of_another = Best("linear")
    of_another.go_on(best.plain())
    assert of_another.plain() is None


@pytest.mark.parametrize("name", ["alignment", "uniformity", "boxes/error"])
def test_of_some_figures_the_lowest_is_the_best(name):
    best = Best(name)
    assert [best.observe(i + 1, {name: value}, None) for i, value in enumerate((0.5, 0.6, 0.4))] == [True, False, True]


def test_a_figure_that_is_not_measured_is_a_wrong_request_and_one_that_waits_is_not():
    best = Best("linear")
    with pytest.raises(RequestError, match="knn_top1"):
        best.observe(0, {"knn_top1": 0.5}, None)
    assert not best.observe(10, {"knn_top1": 0.5}, None, complete=False)


def test_every_probe_has_settings_in_the_config_of_a_run():
    assert {field.name for field in dataclasses.fields(ProbesConfig)} == {"run", "share", *PROBES}
