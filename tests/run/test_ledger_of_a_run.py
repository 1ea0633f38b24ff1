"""A run over bad data: stopped with exit 65 and the counts, goes on with its own list, and the same images twice."""

import json
import signal
import time
from pathlib import Path

import pytest

from seer.data import synthetic as sample
from seer.data.shards.writer import write_shards
from seer.run import skipped as run_skipped
from tests.messages import says
from tests.program import SMALL, finished, losses, seer, start, wait

pytestmark = pytest.mark.slow
TINY = [w for w in SMALL if not w.startswith("model=")] + [
    "model=regnety_tiny",
    "augment.sizes=[32,16]",
    "data.lanes=1",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of 24 images; of the second, 13 are cut short."""
    place = tmp_path_factory.mktemp("shards")
    images = [(k, {"jpg": f["jpg"]}) for k, f in sample.samples(48, seed=1)]
    bad = [(k, {"jpg": f["jpg"][:200]}) if 24 <= i < 37 else (k, f) for i, (k, f) in enumerate(images)]
    write_shards(bad, place, total=48, per_shard=24)
    return place


def test_a_shard_with_more_than_half_bad_stops_the_run_and_its_own_list_lets_it_go_on(folder, tmp_path, capfd):
    run = tmp_path / "run"
    words = ("pretrain", *TINY, f"data.source={folder}", f"output={run}", "steps=6", "every.checkpoint=1")
    stopped = seer(capfd, *words)
    assert stopped.status == 65 and stopped.result["exit"] == 65
    assert says(stopped.result["error"], 13, 24, "half", "truncated", "data.exclude=")
    assert stopped.words.count("skipped ") <= 21  # named in the log, at most 20 of a kind
    rows = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert {"step", "shard", "member", "reason", "row", "kind", "attempt"} == set(rows[0])
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    counted = [row for row in logged if row.get("skipped")]
    assert counted and all(row["skipped/truncated"] == row["skipped"] for row in counted)
    steps = len(losses(run))
    exclude = tmp_path / "list.jsonl"
    exclude.write_text((run / "skipped.jsonl").read_text())
    ended = seer(capfd, *words, f"data.exclude={exclude}")
    assert ended.status == 0, ended.words
    assert says(ended.words, "data.exclude", None, exclude)
    assert 0 < steps < 6 and len(losses(run)) == 6
    assert ended.result["skipped_by_reason"] == {"truncated": ended.result["skipped"]}
    whole = seer(capfd, *words[:-2], f"output={tmp_path / 'whole'}", "steps=6", f"data.exclude={exclude}")
    assert whole.status == 0 and losses(tmp_path / "whole")[:steps] == losses(run)[:steps]


def test_a_share_that_is_none_is_refused_before_anything_is_made(folder, tmp_path, capfd):
    ended = seer(capfd, "pretrain", f"data.source={folder}", f"output={tmp_path / 'run'}", "data.max_bad=often")
    assert ended.status == 78 and "data.max_bad=often" in ended.result["error"] and not (tmp_path / "run").exists()


def half_bad(folder: Path, total: int) -> Path:
    """One shard, every second image cut short."""
    images = [(k, {"jpg": f["jpg"]}) for k, f in sample.samples(total, seed=1)]
    cut = [(k, {"jpg": f["jpg"][: 200 if i % 2 else None]}) for i, (k, f) in enumerate(images)]
    write_shards(cut, folder, total=total, per_shard=total)
    return folder


def of_two_ranks(source: Path, run: Path, *words: str) -> list[str]:
    made = (w for w in TINY if not w.startswith(("data.lanes", "batch=")))
    return ["pretrain", *made, "batch=8", f"data.source={source}", f"output={run}", *words]


def status(run: Path) -> int:
    return json.loads((run / "result.json").read_text())["exit"]


def named(run: Path) -> set[tuple[str, int]]:
    rows = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    return {(row["shard"], row["row"]) for row in rows}


def test_the_list_of_two_ranks_names_the_bad_images_of_both_when_the_run_has_ended(tmp_path):
    source, run = half_bad(tmp_path / "pictures", 72), tmp_path / "run"
    ended = finished(*of_two_ranks(source, run, "steps=9", "data.max_bad=100%"), ranks=2)  # one epoch
    assert ended.status == 0, ended.words
    assert len(named(run)) == 36 and not list(run.glob("skipped-*"))
    assert ended.result["skipped_by_reason"] == {"truncated": ended.result["skipped"]}


@pytest.mark.long
def test_a_run_on_two_ranks_goes_on_without_the_images_of_its_own_list_which_never_gets_shorter(tmp_path):
    """Four of eight images are bad: the limit is passed at step 25, which is saved, and looked at after step 30."""
    source, run = half_bad(tmp_path / "pictures", 400), tmp_path / "run"
    words = ("steps=60", "every.checkpoint=5", "every.background=false")
    stopped = finished(*of_two_ranks(source, run, *words), ranks=2)
    assert status(run) == 65, stopped.words
    known = named(run)
    assert len(known) >= 100 and not list(run.glob("skipped-*"))
    excluded = (*words, f"data.exclude={run / 'skipped.jsonl'}")
    saved = start(*of_two_ranks(source, run, *excluded), ranks=2)
    while len(losses(run)) < 37:
        assert saved.poll() is None
        time.sleep(0.02)
    saved.send_signal(signal.SIGTERM)
    assert not wait(saved).status == 0 and status(run) == 75
    assert named(run) >= known and not list(run.glob("skipped-*"))
    known = named(run)
    ended = finished(*of_two_ranks(source, run, *excluded), ranks=2)
    assert ended.status == 0, ended.words
    assert named(run) >= known and len(losses(run)) == 60


def lines(*steps: int, undone: bool = False) -> str:
    row = {"shard": "s.tar", "member": "k", "reason": "cut", "kind": "truncated", "attempt": 0}
    more = {"undone": True} if undone else {}
    return "".join(json.dumps({"step": step, **row, "row": step, **more}) + "\n" for step in steps)


def test_gathering_takes_every_whole_line_once_wherever_it_was_killed(tmp_path):
    whole = sorted((lines(1, 2, 5) + lines(3, 4)).splitlines())
    for killed in ("before", "while writing", "before parts were removed", "before the list was moved"):
        run = tmp_path / killed
        run.mkdir()
        (run / "skipped.jsonl").write_text(lines(1, 2))
        (run / "skipped-00001.jsonl").write_text(lines(5))
        (run / "skipped-00002.jsonl").write_text(lines(3, 4) + lines(9)[:-9])
        if killed == "while writing":
            (run / ".skipped.jsonl.writing").write_text(lines(1))
        elif killed != "before":
            (run / ".skipped.jsonl.whole").write_text(lines(1, 2) + lines(5) + lines(3, 4))
            if killed == "before the list was moved":
                (run / "skipped-00001.jsonl").unlink()
        run_skipped.merge_skipped(run)
        assert sorted((run / "skipped.jsonl").read_text().splitlines()) == whole, killed
        assert [p.name for p in run.iterdir() if not p.name.endswith(".writing")] == ["skipped.jsonl"]


def test_a_line_cut_short_by_a_kill_is_taken_away_before_the_list_is_read(tmp_path):
    (tmp_path / "skipped.jsonl").write_text(lines(1, 2) + lines(3)[:-5])
    run_skipped.merge_skipped(tmp_path)
    assert (tmp_path / "skipped.jsonl").read_text() == lines(1, 2)


def test_lines_behind_the_checkpoint_stay_once_and_count_no_more(tmp_path):
    list_ = tmp_path / "skipped.jsonl"
    list_.write_text(lines(1, 2, 7, 8))
    for _ in range(2):
        run_skipped._undo(tmp_path, 5)
        assert list_.read_text() == lines(1, 2) + lines(7, 8, undone=True)
        assert [row["row"] for row in run_skipped.counted(list_)] == [1, 2]
    with open(list_, "a") as file:
        file.write(lines(7))  # skipped again
    run_skipped._undo(tmp_path, 8)
    assert list_.read_text() == lines(1, 2, 7) + lines(8, undone=True)


def test_the_list_of_another_run_that_was_killed_is_read_with_those_of_its_ranks(tmp_path):
    for name in ("skipped.jsonl", "skipped-00001.jsonl", "other.jsonl"):
        (tmp_path / name).touch()
    files = [str(tmp_path / name) for name in ("skipped.jsonl", "skipped-00001.jsonl")]
    assert run_skipped.exclude_files(files[0]) == files == run_skipped.exclude_files(files)
    assert run_skipped.exclude_files(str(tmp_path / "other.jsonl")) == [str(tmp_path / "other.jsonl")]
    assert run_skipped.exclude_files(None) == []
