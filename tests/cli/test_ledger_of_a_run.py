"""A run over bad data: stopped with exit 65 and the counts, goes on with its own list, and the same pictures twice."""

import json
from pathlib import Path

import pytest

from seer.data import sample
from seer.data.shards import write_shards
from tests.program import SMALL, losses, seer

pytestmark = pytest.mark.slow
TINY = [w for w in SMALL if not w.startswith("model=")] + [
    "model=regnety_tiny",
    "augment.sizes=[32,16]",
    "data.lanes=1",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards of 24 pictures; of the second, 13 are cut short."""
    place = tmp_path_factory.mktemp("shards")
    pictures = [(k, {"jpg": f["jpg"]}) for k, f in sample.samples(48, seed=1)]
    bad = [(k, {"jpg": f["jpg"][:200]}) if 24 <= i < 37 else (k, f) for i, (k, f) in enumerate(pictures)]
    write_shards(bad, place, total=48, per_shard=24)
    return place


def test_a_shard_with_more_than_half_bad_stops_the_run_and_its_own_list_lets_it_go_on(folder, tmp_path, capfd):
    run = tmp_path / "run"
    words = ("pretrain", *TINY, f"data.source={folder}", f"output={run}", "steps=6", "every.checkpoint=1")
    stopped = seer(capfd, *words)
    assert stopped.status == 65 and stopped.result["exit"] == 65
    assert "13 of the 24 pictures in" in stopped.result["error"] and "more than half" in stopped.result["error"]
    assert "truncated" in stopped.result["error"] and "data.exclude=" in stopped.result["error"]
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
    assert f"data.exclude: None before, {exclude} from here on" in ended.words
    assert 0 < steps < 6 and len(losses(run)) == 6
    assert ended.result["skipped_by_reason"] == {"truncated": ended.result["skipped"]}
    whole = seer(capfd, *words[:-2], f"output={tmp_path / 'whole'}", "steps=6", f"data.exclude={exclude}")
    assert whole.status == 0 and losses(tmp_path / "whole")[:steps] == losses(run)[:steps]


def test_a_share_that_is_none_is_refused_before_anything_is_made(folder, tmp_path, capfd):
    ended = seer(capfd, "pretrain", f"data.source={folder}", f"output={tmp_path / 'run'}", "data.max_bad=often")
    assert ended.status == 78 and "data.max_bad=often" in ended.result["error"] and not (tmp_path / "run").exists()
