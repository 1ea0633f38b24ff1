"""Two jobs, one run folder: the second is refused, and a job that ended in any way leaves the folder free."""

import errno
import json
import os
import subprocess
import sys
import time

import pytest

from seer.core.errors import RequestError
from seer.engine import lock
from seer.engine.lock import RunLock
from tests.messages import naming

HOLD = """
import sys
from pathlib import Path
from seer.engine.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_job_is_refused_and_the_first_is_named(other, tmp_path):
    with (
        pytest.raises(RequestError, match=naming(f"output={tmp_path}", f"process {other.pid} on ")),
        RunLock(tmp_path),
    ):
        pass


@pytest.mark.parametrize("how", ["kill", "end"])
def test_the_folder_is_free_the_moment_the_job_has_ended_however_it_ended(other, tmp_path, how):
    other.kill() if how == "kill" else other.stdin.close()
    other.wait()
    with RunLock(tmp_path):
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
    assert (tmp_path / lock.NAME).read_text() == ""


def foreign(tmp_path, age_s, job=None):
    """What a job on another host leaves in a file system that does not carry its flock."""
    (tmp_path / lock.NAME).write_text(json.dumps({"host": "elsewhere", "pid": 7, "job": job}))
    then = time.time() - age_s
    os.utime(tmp_path / lock.NAME, (then, then))


def test_a_job_on_another_host_that_beats_is_respected_and_one_that_is_silent_is_not(tmp_path):
    foreign(tmp_path, age_s=30)
    with (
        pytest.raises(RequestError, match=r"process 7 on elsewhere.*\b3\d s ago.*delete"),
        RunLock(tmp_path),
    ):
        pass
    foreign(tmp_path, age_s=lock.STALE_S + 1)
    with RunLock(tmp_path):
        pass


def test_the_same_slurm_job_requeued_on_another_host_takes_over_at_once(tmp_path, monkeypatch):
    foreign(tmp_path, age_s=3, job="42")
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    with pytest.raises(RequestError, match=naming("output=", "SLURM", 42, ".lock")), RunLock(tmp_path):
        pass
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    with RunLock(tmp_path):
        pass


def test_a_held_lock_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    with RunLock(tmp_path):
        assert _beats_again(tmp_path)


def test_a_held_lock_beats_on_when_storage_stumbled_once(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    stumbles, touch = [errno.ESTALE, errno.EIO], os.utime

    def stumbling(path, *times):
        if stumbles and not times:
            raise OSError(stumbles.pop(), "stumbled")
        touch(path, *times)

    monkeypatch.setattr(lock.os, "utime", stumbling)
    with RunLock(tmp_path):
        until = time.monotonic() + 20
        while stumbles:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert _beats_again(tmp_path)


def _beats_again(folder) -> bool:
    """Whether the lock, made old, is young again within 20 s."""
    os.utime(folder / lock.NAME, (0, 0))
    until = time.monotonic() + 20
    while (old := time.time() - (folder / lock.NAME).stat().st_mtime > 100) and time.monotonic() < until:
        time.sleep(0.02)
    return not old


@pytest.fixture
def without_flock(monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_and_the_run_goes_on(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    told = []
    monkeypatch.setattr(lock.log, "warning", told.append)
    with RunLock(tmp_path):
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
    assert len(told) == 1 and "has no locks" in told[0] and os.strerror(number) in told[0]


def test_without_locks_a_job_that_beats_is_respected_until_its_process_has_ended(other, tmp_path, without_flock):
    with pytest.raises(RequestError, match=rf"process {other.pid} on .*\b\d s ago"), RunLock(tmp_path):
        pass
    other.kill()
    other.wait()
    with RunLock(tmp_path):
        pass
    foreign(tmp_path, age_s=30)
    with pytest.raises(RequestError, match=naming("output=", "process 7", "elsewhere", ".lock")), RunLock(tmp_path):
        pass


def test_another_error_of_flock_is_no_lack_of_locks(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output error"), RunLock(tmp_path):
        pass


def test_words_that_were_cut_short_belong_to_nobody(tmp_path):
    (tmp_path / lock.NAME).write_text('{"host": "elsewh')
    with RunLock(tmp_path):
        assert str(os.getpid()) in (tmp_path / lock.NAME).read_text()
