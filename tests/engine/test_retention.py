"""Which checkpoints stay: the newest that are whole, those that stay for ever, and what cannot be read now."""

import errno
import json
import os

import pytest

from seer.core.errors import RequestError, StorageError
from seer.engine import retention
from seer.engine.checkpoint_policy import Checkpoints
from seer.engine.manifest import with_checksum
from seer.engine.retention import Keep
from tests.engine.checkpoints import ALONE, FACTS, TENSORS, flip, names, state
from tests.messages import naming


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_few_stay(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path, ALONE, Keep(keep))
    for step in (10, 20, 30, 40):
        checkpoints.save(step, state(step), FACTS)
    assert names(tmp_path) == ["last", *(f"step-{s:08d}" for s in (10, 20, 30, 40)[-keep:])]
    assert (tmp_path / "last").resolve().name == "step-00000040"


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(RequestError, match=naming("every.keep=0")):
        Checkpoints(tmp_path, ALONE, Keep(0))


@pytest.mark.parametrize("keep", [1, 2])
def test_broken_checkpoints_ahead_do_not_push_out_the_whole_ones_behind(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path, ALONE, Keep(3))
    for step in (10, 20, 30):
        checkpoints.save(step, state(step), FACTS)
    for step in (20, 30):
        flip(tmp_path / f"step-{step:08d}" / TENSORS, 500)
    going_on = Checkpoints(tmp_path, ALONE, Keep(keep))
    assert going_on.load_newest()[1]["step"] == 10
    going_on.save(15, state(15), FACTS)
    assert going_on.load_newest()[1]["step"] == 15


def test_one_every_so_many_steps_stays_for_ever(tmp_path):
    checkpoints = Checkpoints(tmp_path, ALONE, Keep(1, steps=30))
    for step in range(10, 80, 10):
        checkpoints.save(step, state(step), FACTS)
    assert names(tmp_path) == ["last", "step-00000030", "step-00000060", "step-00000070"]


def test_one_every_so_many_hours_stays_for_ever_also_when_the_clock_jumps_back(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, ALONE, Keep(1, hours=2))
    for step, hour in ((1, 0), (2, 1), (3, 2.5), (4, 3), (5, 1), (6, 4.6), (7, 4.7)):
        monkeypatch.setattr("seer.engine.checkpoint_files.time.time", lambda hour=hour: 1e9 + 3600 * hour)
        checkpoints.save(step, state(step), FACTS)
    assert names(tmp_path) == ["last", *(f"step-{s:08d}" for s in (1, 3, 6, 7))]


def test_a_damaged_one_behind_pushes_out_no_whole_one_and_goes_when_it_has_been_passed(tmp_path):
    checkpoints = Checkpoints(tmp_path, ALONE, Keep(3))
    for step in (1000, 1234):
        checkpoints.save(step, state(step), FACTS)
    flip(tmp_path / "step-00001234" / TENSORS, 500)
    going_on = Checkpoints(tmp_path, ALONE, Keep(2))
    assert going_on.load_newest()[1]["step"] == 1000
    going_on.save(2000, state(2000), FACTS)
    assert names(tmp_path) == ["last", "step-00001000", "step-00002000"]


def test_a_damaged_one_that_is_saved_again_counts_as_whole(tmp_path):
    checkpoints = Checkpoints(tmp_path, ALONE, Keep(2))
    for step in (10, 20):
        checkpoints.save(step, state(step), FACTS)
    flip(tmp_path / "step-00000020" / TENSORS, 500)
    assert checkpoints.load_newest()[1]["step"] == 10
    for step in (20, 30):
        checkpoints.save(step, state(step), FACTS)
    assert names(tmp_path) == ["last", "step-00000020", "step-00000030"]


@pytest.mark.parametrize("damage", ["a flipped bit", "another format", "storage stumbles"])
def test_one_that_stays_for_ever_stays_when_its_manifest_cannot_be_read_once(tmp_path, monkeypatch, damage):
    checkpoints = Checkpoints(tmp_path, ALONE, Keep(1, steps=30))
    for step in (30, 40):
        checkpoints.save(step, state(step), FACTS)
    manifest = tmp_path / "step-00000030" / "manifest.json"
    if damage == "a flipped bit":
        flip(manifest, 30)
    elif damage == "another format":
        manifest.write_text(json.dumps(with_checksum({**json.loads(manifest.read_text()), "format": 3})))
    else:
        read = retention.read_manifest

        def stumble(path):
            if path == manifest.parent:
                raise StorageError(f"{path}: {os.strerror(errno.EIO)}")
            return read(path)

        monkeypatch.setattr(retention, "read_manifest", stumble)
    checkpoints.save(50, state(50), FACTS)
    assert names(tmp_path) == ["last", "step-00000030", "step-00000050"]


def test_what_a_kill_left_of_one_that_was_being_deleted_goes_with_the_next_save(tmp_path):
    checkpoints = Checkpoints(tmp_path, ALONE, Keep(1))
    checkpoints.save(10, state(10), FACTS)
    (tmp_path / "step-00000010" / "manifest.json").unlink()
    checkpoints.save(20, state(20), FACTS)
    assert names(tmp_path) == ["last", "step-00000020"]
