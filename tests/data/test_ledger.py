"""When a run has seen too many bad images, and when it has not; the counts are those of a plain recount."""

import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from seer.core.errors import BadDataError, RequestError
from seer.core.records import SKIP_REASONS, Skipped
from seer.data.ledger import WINDOW, Ledger, parse_fraction, shown
from tests.messages import naming


def shards(*rows: int) -> list:
    return [type("S", (), {"path": Path(f"s{i}.tar"), "__len__": lambda self, n=n: n})() for i, n in enumerate(rows)]


def bad(shard: int, row: int, kind: str = "truncated", attempt: int = 0) -> Skipped:
    return Skipped(f"s{shard}.tar", f"k{row}", "cut", row, kind, attempt)


def feed(ledger: Ledger, steps: int, each: int, batch: int = 1000, first: int = 0) -> None:
    """`each` bad images a step, spread over a thousand shards."""
    for step in range(first, first + steps):
        ledger.add(batch, [bad((step * each + i) % 1000, i) for i in range(each)])
        ledger.check()


MANY = shards(*[10_000] * 1000)


def test_exactly_one_percent_goes_on_and_one_more_stops():
    ledger = Ledger(MANY, "1%")
    feed(ledger, 300, 10)
    ledger.add(1000, [bad(0, i) for i in range(11)])
    with pytest.raises(BadDataError, match=naming(1001, 100000, "1.0%", "data.max_bad=0.01")):
        ledger.check()


def test_ninety_nine_bad_ones_never_stop_and_the_hundredth_does():
    ledger = Ledger(MANY, 0.0)
    ledger.add(99, [bad(i, i) for i in range(99)])
    ledger.check()
    ledger.add(1, [bad(99, 0)])
    with pytest.raises(BadDataError, match=naming("100 of", "data.max_bad=0")):
        ledger.check()


def test_what_lies_behind_the_last_100000_images_is_forgotten():
    ledger = Ledger(MANY, "1%")
    feed(ledger, 100, 10)  # at the limit
    feed(ledger, 100, 0)
    feed(ledger, 100, 10)
    assert ledger.by_kind["truncated"] == 2000 and sum(ledger.by_kind.values()) == 2000


def test_more_than_half_of_one_shard_stops_and_half_does_not():
    ledger = Ledger(shards(1_000_000, 20), "100%")
    ledger.add(1000, [bad(1, r) for r in range(10)])
    ledger.check()
    ledger.add(1000, [bad(1, 10)])
    with pytest.raises(BadDataError, match=naming(11, 20, "s1.tar", "half", "exclude=RUN/skipped")):
        ledger.check()


def test_a_shard_of_a_few_images_does_not_stop_a_run_by_itself():
    ledger = Ledger(shards(100_000, 9), "1%")
    ledger.add(1000, [bad(1, r) for r in range(9)])
    ledger.check()
    assert sum(ledger.by_kind.values()) == 9  # looked at, and let pass


def test_the_same_bad_row_of_the_next_epoch_is_not_a_second_one_of_its_shard():
    ledger = Ledger(shards(980, 20), "100%")
    for _ in range(5):
        ledger.add(1000, [bad(1, r) for r in range(10)])
        ledger.check()
    assert sum(ledger.by_kind.values()) == 50  # looked at, and let pass


def test_a_row_that_is_due_twice_in_a_step_over_the_end_of_an_epoch_is_one_bad_row_of_its_shard():
    ledger = Ledger(shards(40), "100%")
    for _ in range(6):  # 32 of 40: each step but the first goes over an end
        ledger.add(32, [bad(0, r) for r in [*range(20), *range(10)]])
        ledger.check()
    assert sum(ledger.by_kind.values()) == 6 * 30  # looked at, and let pass
    ledger.add(32, [bad(0, r) for r in [*range(21), *range(15)]])
    with pytest.raises(BadDataError, match=naming(21, 40, "s0.tar")):
        ledger.check()


def check_together(ledgers: list[Ledger]) -> list[str]:
    """All ranks look at their limits at once, each sum in turn over all of them, as an all-reduce does it."""
    ranks = len(ledgers)
    barrier, total, raised = threading.Barrier(ranks), {}, []

    def over(rank):
        calls = iter(range(9))

        def reduce(counts):
            call = next(calls)
            total.setdefault(call, {})[rank] = counts
            barrier.wait(10)
            return np.sum(list(total[call].values()), axis=0)

        return reduce

    def one(rank, ledger):
        ledger._over_ranks = over(rank)
        try:
            ledger.check()
        except BadDataError as error:
            raised.append(str(error))

    threads = [threading.Thread(target=one, args=(r, x)) for r, x in enumerate(ledgers)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(raised) in (0, ranks) and len(set(raised)) <= 1  # all or none, with one message
    return raised


def test_a_row_that_two_ranks_met_is_one_bad_row_of_its_shard():
    ranks = [Ledger(shards(40), "100%", ranks=2) for _ in range(2)]
    for rows, message in (((range(15), range(10, 20)), None), (([], [20]), "21 of the 40")):  # 25 told, 20 rows
        for ledger, own in zip(ranks, rows, strict=True):
            ledger.add(16, [bad(0, r) for r in own])
        raised = check_together(ranks)
        assert len(raised) == (2 if message else 0) and all(message in one for one in raised)


def test_restored_rows_are_those_that_come_again():
    rows = [{"step": 0, "shard": "s1.tar", "kind": "empty", "attempt": 0, "row": r} for r in range(10)]
    ledger = Ledger(shards(980, 20), "100%")
    ledger.restore(rows, 1, 100)
    ledger.add(100, [bad(1, r) for r in range(10)])
    ledger.check()
    ledger.add(100, [bad(1, 10)])
    with pytest.raises(BadDataError, match=naming(11, 20, "s1.tar")):
        ledger.check()


def test_stand_ins_that_fail_are_counted_by_reason_and_not_against_the_limits():
    ledger = Ledger(MANY, "1%")
    ledger.add(1000, [bad(1, r, "checksum", attempt=1 + r % 8) for r in range(6000)])
    ledger.check()
    assert ledger.by_kind == {**dict.fromkeys(SKIP_REASONS, 0), "checksum": 6000}


def test_the_message_counts_by_reason():
    ledger = Ledger(MANY, "1%")
    ledger.add(1000, [bad(r, r, "truncated" if r % 3 else "checksum") for r in range(150)])
    with pytest.raises(BadDataError, match=naming("truncated 100", "checksum 50", "skipped.jsonl")) as caught:
        ledger.check()
    assert caught.value.exit_status == 65


@pytest.mark.parametrize("rank_of", [lambda i: 0, lambda i: i % 4])
def test_four_ranks_stop_at_the_step_of_one_process_wherever_the_bad_ones_fell(rank_of):
    parts: list[Ledger] = []

    def stops(ledgers: list[Ledger], shared) -> int | None:
        for step in range(60):
            skipped = [bad(step % 3, step * 4 + i) for i in range(4)]
            for rank, ledger in enumerate(ledgers):
                ledger.add(300, [s for i, s in enumerate(skipped) if len(ledgers) == 1 or rank_of(i) == rank])
            try:
                shared(ledgers)
            except BadDataError:
                return step
        return None

    def together(ledgers: list[Ledger]) -> None:
        raised = check_together(ledgers)
        if raised:
            raise BadDataError(raised[0])

    for max_bad, rows in (("1%", 10**6), ("100%", 100)):
        one = Ledger(shards(rows, rows, rows, 10**6), max_bad)
        parts = [Ledger(shards(rows, rows, rows, 10**6), max_bad, ranks=4) for _ in range(4)]
        expected = stops([one], lambda ledgers: ledgers[0].check())
        assert expected is not None and stops(parts, together) == expected
        assert all(p.by_kind == one.by_kind for p in parts)


def test_a_restored_ledger_stops_where_an_undisturbed_one_stops():
    batch = 1000
    for at in (1, 50, 130, 144):
        rows, quiet, stopped = [], Ledger(MANY, "1%"), None
        for step in range(400):
            skipped = [bad((step + i) % 1000, step) for i in range(3 if step < 120 else 30)]
            rows += [{"step": step, "shard": s.shard, "kind": s.kind, "attempt": 0} for s in skipped]
            quiet.add(batch, skipped)
            try:
                quiet.check()
            except BadDataError:
                stopped = step
                break
        again = Ledger(MANY, "1%")
        again.restore((r for r in rows if r["step"] < at), at, batch)
        for step in range(at, 400):
            again.add(batch, [bad((step + i) % 1000, step) for i in range(3 if step < 120 else 30)])
            try:
                again.check()
            except BadDataError:
                assert step == stopped
                break
        else:
            raise AssertionError("the restored ledger did not stop")
        assert again.by_kind == quiet.by_kind and at <= stopped < 200


@pytest.mark.parametrize(("start", "same_epoch"), [(9, True), (10, False), (19, False)])
def test_restoring_counts_the_bad_of_the_epoch_begun_alone(start, same_epoch):
    rows = [{"step": step, "shard": "s1.tar", "kind": "empty", "attempt": 0} for step in range(9)]
    ledger = Ledger(shards(980, 20), "100%")  # an epoch is ten steps of 100
    ledger.restore(rows, start, 100)
    ledger.add(100, [bad(1, 10), bad(1, 11)])
    if same_epoch:
        with pytest.raises(BadDataError, match=naming(11, 20, "s1.tar")):
            ledger.check()
    else:
        ledger.check()


@pytest.mark.parametrize(("text", "value"), [("1%", 0.01), (0.01, 0.01), ("100%", 1.0), (0, 0.0), (" 2.5% ", 0.025)])
def test_a_share_is_a_number_or_a_percentage(text, value):
    assert parse_fraction(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["many", "-1%", "101%", 2, "", None, "nan"])
def test_what_is_no_share_is_refused_with_the_value(text):
    with pytest.raises(RequestError, match=naming(f"data.max_bad={text}", "1%")):
        parse_fraction(text)


def test_names_of_strangers_are_shown_on_one_short_line():
    assert shown("a\n\x1b[2Jb\tü日") == "a\\n\\x1b[2Jb\\tü日"
    assert len(shown("x" * 10_000)) == 201


def test_the_window_is_no_longer_than_it_says_and_memory_does_not_grow():
    ledger = Ledger(MANY, "100%")
    feed(ledger, 5000, 1, batch=64)
    assert ledger._in_window[0] <= WINDOW + 64 and len(ledger._window) <= WINDOW // 64 + 2
    assert SimpleNamespace(total=sum(p for p, _ in ledger._window)).total == ledger._in_window[0]
