"""A budget compares what was found with its limits: above fails, equal passes, and what nobody measured does neither."""

from dataclasses import fields

import pytest
import yaml

from seer.core import budget as limits
from seer.core import schema
from seer.core.budget import Budget
from seer.core.errors import RequestError
from tests.messages import naming
from tests.program import ROOT


def test_a_value_at_the_limit_passes_one_above_fails_one_unknown_does_neither():
    rows = limits.check(Budget(file_mb=5, macs_m=400, latency_ms=20), {"file_mb": 5.0, "macs_m": 400.1})
    assert [(row.limit, row.ok) for row in rows] == [("file_mb", True), ("macs_m", False), ("latency_ms", None)]
    assert rows[2].value is None


@pytest.mark.parametrize(
    ("values", "wanted"),
    [({"file_mb": 1, "rss_mb": 1}, True), ({"file_mb": 1}, None), ({"file_mb": 9}, False), ({}, None)],
)
def test_a_budget_is_kept_only_when_all_of_it_was_measured(values, wanted):
    assert limits.passed(limits.check(Budget(file_mb=5, rss_mb=5), values)) is wanted
    assert limits.passed(limits.check(Budget(), values)) is None


def test_every_limit_is_checked_and_no_other_word_is_one():
    numbers = [field.name for field in fields(Budget) if field.name not in ("metric", "device")]
    assert list(limits.LIMITS) == numbers
    for name in numbers:
        (row,) = limits.check(Budget(**{name: 1.0}), {name: 2.0})
        assert (row.limit, row.most, row.value, row.ok) == (name, 1.0, 2.0, False)
    with pytest.raises(KeyError):
        limits.check(Budget(), {"latency": 1.0})


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "budget").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_budget_that_is_offered_is_one(file):
    found = schema.read(Budget, yaml.safe_load(file.read_text(encoding="utf-8")))
    assert (found == Budget()) == (file.stem == "none")


def test_a_limit_of_nothing_is_refused():
    with pytest.raises(RequestError, match=naming("file_mb", "0")):
        schema.read(Budget, {"file_mb": 0})
