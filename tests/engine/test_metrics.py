"""Numbers by step: one transfer, one line a row, and what a resumed run does with the file of the former."""

import json
import math

import pytest
import torch

from seer.core.protocols import StopTraining
from seer.engine.metrics import JsonLines, Metrics, TensorBoard, done_after, read_rows


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


def test_people_count_the_steps_that_are_done():
    assert done_after(0, {"loss": 1.0}) == 1 and done_after(9, {"knn_top1": 0.5, "images": 320.0}) == 10
    assert done_after(0, {"knn_top1": 0.5, "images": 0.0}) == 0


def test_tensorboard_has_tags_in_groups_by_steps_done_and_a_run_that_goes_on_purges_what_it_makes_anew(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, steps in ((0, range(4)), (2, range(2, 4))):
        sink = TensorBoard(tmp_path, first)
        if first == 0:
            sink.write(0, {"knn_top1": 0.1, "images": 0.0})
        for step in steps:
            sink.write(step, {"loss": 10 * first + step, "images_per_s": 3.0, "codes/entropy": 1.0, "own": 2.0})
        sink.close()
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    tags = set(found.Tags()["scalars"])
    assert {"training/loss", "speed/images_per_s", "codes/entropy", "own", "probe/knn_top1"} <= tags
    assert [(e.step, e.value) for e in found.Scalars("training/loss")] == [(1, 0), (2, 1), (3, 22), (4, 23)]
    assert [e.step for e in found.Scalars("probe/knn_top1")] == [0]
