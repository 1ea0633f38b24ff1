"""Keeps a run folder to one job at a time: two would write the same metrics and delete each other's checkpoints.

RUN/.lock names the job that holds it. On one host the kernel keeps the lock (flock), so it is free the moment the job has
ended, however it ended. A job on another host, over a shared file system that may not carry flock, is known by the age of
its beats: the file is touched every BEAT_S. The same SLURM job, requeued, takes over at once: its former self has ended.
Where the file system has no flock at all, a job on this host is known by its beats and its process number, too; two
jobs that start in the same moment are not told apart there.
"""

import errno
import fcntl
import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

from seer.core.errors import RequestError
from seer.core.log import log

BEAT_S = 20.0
STALE_S = 300.0
NAME = ".lock"
NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}


class RunLock:
    """Holds the lock of a run folder, as a context. folder: that of the run, which exists. Raises RequestError,
    naming the other job, when it is held."""

    def __init__(self, folder: Path):
        self.path = folder / NAME
        self._over = threading.Event()

    def __enter__(self) -> "RunLock":
        self._file = open(self.path, "a+", encoding="utf-8")
        locked = self._locked()
        other, age = self._other(), time.time() - self.path.stat().st_mtime
        mine, here = os.environ.get("SLURM_JOB_ID"), other and other["host"] == socket.gethostname()
        elsewhere = other and not here and not (mine and other["job"] == mine)
        beside = other and here and not locked and _alive(int(other["pid"]))
        if (elsewhere or beside) and age < STALE_S:
            raise self._refusal(
                f"it was alive {age:.0f} s ago; if it is not, delete {self.path}, or wait until it has been silent for "
                f"{STALE_S:.0f} s"
            )
        self._file.truncate(0)
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "job": mine}, self._file)
        self._file.flush()
        self._thread = threading.Thread(target=self._beat, name="lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._file.truncate(0)  # nobody's; the file stays, since deleting it would free a lock that someone waits for
        self._file.close()

    def _locked(self) -> bool:
        """Returns whether the kernel keeps others of this host out; False where the file system has no locks."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._refusal("it is running now") from None
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            log.warning(
                f"{self.path}: the file system has no locks ({error.strerror}), so other jobs are known by their beats "
                "alone; start only one at a time"
            )
            return False
        return True

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            with suppress(OSError):  # a storage that stumbles once; the next beat tries again
                os.utime(self.path)

    def _other(self) -> dict[str, str] | None:
        self._file.seek(0)
        try:
            return json.loads(self._file.read())
        except ValueError:  # nobody's, or cut short by the end of a host
            return None

    def _refusal(self, why: str) -> RequestError:
        try:
            other = self._other() or {}
        finally:
            self._file.close()
        who = f"process {other.get('pid')} on {other.get('host')}"
        job = f", SLURM job {other['job']}" if other.get("job") else ""
        return RequestError(
            f"output={self.path.parent} is in use by another job ({who}{job}): {why}; or give another output="
        )


def _alive(pid: int) -> bool:
    """Returns whether another process of this host has this number."""
    return pid != os.getpid() and Path(f"/proc/{pid}").exists()
