"""When a run saves: while training goes on, one after the other, and what comes of a save that fails."""

import errno
import gc
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from seer.core.errors import StorageError
from seer.engine.checkpoint_policy import Checkpoints
from seer.parallel.collectives import waited
from seer.parallel.world import World
from tests.engine.checkpoints import ALONE, FACTS, full_disk, names, same, state
from tests.messages import naming, says


def test_what_is_written_in_the_background_is_what_there_was_when_save_was_called(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, ALONE, background=True)
    go_on = threading.Event()
    write = checkpoints.files.write
    monkeypatch.setattr(checkpoints.files, "write", lambda *a: (go_on.wait(20), write(*a)))
    now = state(10)
    checkpoints.save(10, now, FACTS)
    now["task"]["backbone.w"].fill_(77)
    now["optimizer"]["state"][0]["momentum_buffer"].fill_(77)
    now["optimizer"]["param_groups"][0]["lr"] = 77
    assert not (tmp_path / "last").exists()
    go_on.set()
    checkpoints.wait()
    assert same(Checkpoints(tmp_path, ALONE).load_newest()[0], state(10))


def test_what_the_thread_of_a_save_waits_for_others_is_not_counted_as_waiting_of_the_step(tmp_path, monkeypatch):
    def write(*_) -> None:
        with waited:
            time.sleep(0.2)

    checkpoints = Checkpoints(tmp_path, ALONE, background=True)
    monkeypatch.setattr(checkpoints.files, "write", write)
    seconds, entered = waited.seconds, waited.entered
    checkpoints.save(10, state(10), FACTS)
    checkpoints.wait()
    assert (waited.seconds, waited.entered) == (seconds, entered)


def test_on_a_gpu_the_thread_of_a_save_stands_on_the_device_of_its_rank_and_a_stream_of_its_own(tmp_path, monkeypatch):
    """A new thread starts on the first GPU, on the stream that training there uses, and torch's writer waits for it."""
    stands: list[object] = []

    @contextmanager
    def on(what: object) -> Iterator[None]:
        stands.append(what)
        yield
        stands.remove(what)

    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: ("new stream", device))
    place = torch.device("cuda", 1)
    checkpoints, found = Checkpoints(tmp_path, World(0, 1, 1, place), background=True), []
    monkeypatch.setattr(checkpoints.files, "write", lambda *_: found.extend(stands))
    checkpoints.save(10, state(10), FACTS)
    checkpoints.wait()
    assert found == [place, ("new stream", place)] and not stands


def test_a_second_save_waits_for_the_first_and_the_order_stays(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, ALONE, background=True)
    write, running = checkpoints.files.write, []

    def slow(*arguments):
        running.append(arguments[0])
        assert len(running) == 1
        time.sleep(0.2)
        write(*arguments)
        running.pop()

    monkeypatch.setattr(checkpoints.files, "write", slow)
    for step in (10, 20, 30):
        checkpoints.save(step, state(step), FACTS)
    checkpoints.wait()
    assert names(tmp_path) == ["last", "step-00000020", "step-00000030"]


def test_an_error_in_the_background_is_raised_by_settle_and_only_once(two, tmp_path):
    checkpoints = Checkpoints(tmp_path, ALONE, background=True)
    with full_disk(1000):
        checkpoints.save(30, state(30, size=100_000), FACTS)
        with pytest.raises(StorageError, match=naming("step 30", tmp_path, "GB free")):
            checkpoints.wait()
    checkpoints.wait()
    checkpoints.save(40, state(40), FACTS)
    checkpoints.wait()
    assert checkpoints.load_newest()[1]["step"] == 40


@pytest.mark.parametrize("background", [True, False])
def test_a_save_that_failed_is_told_at_once_and_the_next_one_is_tried_anew(two, tmp_path, told, background):
    checkpoints = Checkpoints(tmp_path, ALONE, background=background)
    with full_disk(1000):
        checkpoints.save(30, state(30, size=100_000), FACTS)
        end = time.monotonic() + 20
        while "the next save tries anew" not in told.text and time.monotonic() < end:  # torch tells first, its own way
            time.sleep(0.02)
            assert not checkpoints.poll()  # as at the end of each step
    assert says(told.text, "step 30", tmp_path, "the next save tries anew")
    checkpoints.save(40, state(40), FACTS)
    checkpoints.wait()
    assert not checkpoints.poll() and told.text.count("could not be written") == 1
    assert checkpoints.load_newest()[1]["step"] == 40


def test_three_saves_that_fail_on_end_are_enough_and_one_that_does_not_starts_the_count_anew(two, tmp_path, told):
    checkpoints = Checkpoints(tmp_path, ALONE, background=True)
    for step, room in ((30, 0), (40, 0), (50, 1), (60, 0), (70, 0), (80, 0)):
        with full_disk(10**9 if room else 1000):
            assert not checkpoints.poll()
            checkpoints.save(step, state(step, size=100_000), FACTS)
            checkpoints._join()
    assert checkpoints.poll()
    with pytest.raises(StorageError, match=naming("step 80", "same command", "last 3")):
        checkpoints.wait()
    assert told.text.count("could not be written") == 4 and checkpoints.load_newest()[1]["step"] == 50


def test_an_error_that_is_not_of_storage_is_raised_by_the_next_save(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, ALONE, background=True)
    with monkeypatch.context() as broken:
        broken.setattr(checkpoints.files, "write", lambda *_: 1 / 0)
        checkpoints.save(10, state(10), FACTS)
        checkpoints._join()
    assert checkpoints.poll()
    with pytest.raises(ZeroDivisionError):
        checkpoints.save(20, state(20), FACTS)


def test_a_folder_that_has_gone_away_is_a_failure_of_storage(tmp_path):
    checkpoints = Checkpoints(tmp_path / "gone", ALONE)
    (tmp_path / "gone").rmdir()
    checkpoints.save(10, state(10), FACTS)
    with pytest.raises(StorageError, match=naming(tmp_path / "gone", os.strerror(errno.ENOENT))):
        checkpoints.wait()


@pytest.mark.parametrize("background", [True, False])
def test_a_save_that_failed_keeps_no_copy_of_the_state_until_the_next_one(tmp_path, monkeypatch, background):
    checkpoints = Checkpoints(tmp_path, ALONE, background=background)
    copies = []
    local_tensors = checkpoints.files.local_tensors

    def shared(*args, **how):
        tensors, plain = local_tensors(*args, **how)
        copies.extend(map(weakref.ref, tensors.values()))
        return tensors, plain

    monkeypatch.setattr(checkpoints.files, "local_tensors", shared)
    gc.collect()
    gc.disable()  # nobody says when it would come
    try:
        with full_disk(1000):
            checkpoints.save(30, state(30, size=100_000), FACTS)
            checkpoints._join()
        assert copies and not any(copy() is not None for copy in copies)
    finally:
        gc.enable()
    with pytest.raises(StorageError, match=naming("step 30", tmp_path)):
        checkpoints.wait()


def test_a_save_that_not_all_ranks_end_in_time_is_told_as_storage_and_no_more_are_tried(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, ALONE, background=True)

    def late(*_):
        raise RuntimeError("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 600000ms for recv operation")

    monkeypatch.setattr(checkpoints.files, "write", late)
    checkpoints.save(30, state(30), FACTS)
    checkpoints._join()
    assert checkpoints.poll()
    with pytest.raises(StorageError, match=naming("step 30", "parallel.timeout_s", "run the same")):
        checkpoints.wait()
