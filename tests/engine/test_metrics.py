"""Numbers by step: one transfer, one line a row, and what a resumed run does with the file of the former."""

import json
import math

import pytest
import torch

from seer.core.protocols import StopTraining
from seer.engine.metrics import JsonLines, Metrics, ProgressBar, read_rows


def write(path, steps, first_step=0):
    sink = JsonLines(path, first_step)
    for step in steps:
        sink.write(step, {"loss": step / 2})
    sink.close()


class Kept:
    def __init__(self):
        self.rows, self.closed = [], False

    def write(self, step, values):
        self.rows.append((step, dict(values)))

    def close(self):
        self.closed = True


def test_rows_are_lines_of_json_with_their_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, range(3))
    assert path.read_text() == '{"step": 0, "loss": 0.0}\n{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 1.0}\n'


def test_a_row_is_on_disk_as_soon_as_it_is_written(tmp_path):
    sink = JsonLines(tmp_path / "m.jsonl")
    sink.write(0, {"loss": 1.0})
    assert read_rows(tmp_path / "m.jsonl") == [{"step": 0, "loss": 1.0}]
    sink.close()


def test_rows_from_the_first_step_on_are_dropped_when_a_run_goes_on(tmp_path):
    path = tmp_path / "m.jsonl"
    write(path, range(10))
    write(path, range(4, 6), first_step=4)
    assert [row["step"] for row in read_rows(path)] == [0, 1, 2, 3, 4, 5]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.jsonl"]


def test_a_run_that_starts_at_zero_starts_an_empty_file(tmp_path):
    path = tmp_path / "m.jsonl"
    write(path, range(10))
    write(path, range(2))
    assert [row["step"] for row in read_rows(path)] == [0, 1]


def test_going_on_without_a_file_starts_one(tmp_path):
    write(tmp_path / "m.jsonl", [7], first_step=7)
    assert [row["step"] for row in read_rows(tmp_path / "m.jsonl")] == [7]


@pytest.mark.parametrize("half", ['{"step": 2, "lo', '{"step": 2, "loss": 1.0}', "{"])
def test_a_last_line_cut_short_is_left_out_also_when_the_run_goes_on(tmp_path, half):
    path = tmp_path / "m.jsonl"
    write(path, range(2))
    with open(path, "a") as file:
        file.write(half)
    assert [row["step"] for row in read_rows(path)] == [0, 1]
    write(path, [2, 3], first_step=2)
    assert [row["step"] for row in read_rows(path)] == [0, 1, 2, 3]


def test_numbers_that_json_has_no_word_for_are_written_as_text(tmp_path):
    path = tmp_path / "m.jsonl"
    sink = JsonLines(path)
    sink.write(0, {"loss": math.nan, "grad_norm": math.inf, "low": -math.inf, "fine": 1.5})
    sink.close()

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    row = json.loads(path.read_text(), parse_constant=refuse)
    assert row == {"step": 0, "loss": "nan", "grad_norm": "inf", "low": "-inf", "fine": 1.5}
    assert math.isnan(float(row["loss"])) and float(row["low"]) == -math.inf


def test_tensors_of_any_kind_reach_every_sink_as_floats_in_order_when_flushed():
    one, two = Kept(), Kept()
    metrics = Metrics([one, two])
    metrics.add(3, {"a": torch.tensor(1.5, requires_grad=True), "b": 2, "c": torch.tensor([7])})
    metrics.add(4, {"b": torch.tensor(0.25, dtype=torch.bfloat16), "a": torch.tensor(True)})
    assert one.rows == []
    metrics.flush()
    assert one.rows == two.rows == [(3, {"a": 1.5, "b": 2.0, "c": 7.0}), (4, {"b": 0.25, "a": 1.0})]
    assert all(type(v) is float for _, row in one.rows for v in row.values())
    assert metrics.last == {"a": 1.0, "b": 0.25, "c": 7.0}
    metrics.flush()
    assert len(one.rows) == 2


def test_a_value_added_is_the_value_of_that_step_not_of_the_flush():
    sink, running = Kept(), {"loss": 1.0}
    metrics = Metrics([sink])
    metrics.add(0, running)
    running["loss"] = 2.0
    metrics.flush()
    assert sink.rows == [(0, {"loss": 1.0})]


def test_close_flushes_and_closes_every_sink():
    sinks = [Kept(), Kept()]
    metrics = Metrics(sinks)
    metrics.add(0, {"loss": 1.0})
    metrics.close()
    assert all(s.closed and len(s.rows) == 1 for s in sinks)


def test_a_sink_may_stop_the_training():
    class Enough(Kept):
        def write(self, step, values):
            raise StopTraining("seen enough")

    metrics = Metrics([Enough()])
    metrics.add(0, {"loss": 1.0})
    with pytest.raises(StopTraining, match="seen enough"):
        metrics.flush()


def test_a_log_file_gets_few_lines_and_always_the_last_step(capfd):
    from seer.core import log

    log.setup()
    bar = ProgressBar(total_steps=1000, first_step=0, chance_loss=4.85)
    for step in range(1000):
        bar.write(step, {"loss": 4.0, "images_per_s": 100.0, "data_wait": 0.1})
    bar.close()
    said = capfd.readouterr()
    lines = said.err.strip().splitlines()
    assert said.out == "" and len(lines) == 2
    assert lines[0].startswith("step 1/1000") and lines[1].startswith("step 1000/1000") and "chance 4.85" in lines[1]
