"""Runs in the reader process: threads fill blocks of images that the training process asks for (`reader_process`).

Surprising:
- It closes every file of its parent but the archives open for reading, so a dead rank's sockets close at once and its peers
  hear of it.
- It ignores signals, which SLURM sends to every process of a job; it ends with its parent or when the pipe closes.
- What each thread does now stands in the shared memory, so that whoever finds the process dead knows at which image.
"""

import copy
import ctypes
import faulthandler
import fcntl
import gc
import mmap
import os
import pickle
import signal
import stat
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from multiprocessing.connection import Connection

import numpy as np
import torch

from seer.core.errors import BadDataError
from seer.core.records import Skipped
from seer.core.signals import SIGNALS
from seer.data.loading.batch_buffer import BatchLayout
from seer.data.loading.batch_builder import BatchBuilder
from seer.data.order import Places

CHUNK = 16  # images one thread takes at a time
IDLE = -1
COLUMNS = 5  # of what each thread does now: lane, shard, row, whether its bytes are there, since when (monotonic ns)
_PR_SET_PDEATHSIG = 1


class ReaderWorker:
    """Fills blocks by threads, while the main thread hears what is asked."""

    def __init__(
        self,
        builder: BatchBuilder,
        layout: BatchLayout,
        memory: mmap.mmap,
        blocks: int,
        connection: Connection,
        threads: int,
        careful: bool,
    ):
        self._arrays = [
            layout.buffer(
                torch.frombuffer(memory, dtype=torch.uint8, count=layout.bytes, offset=i * layout.bytes)
            ).arrays
            for i in range(blocks)
        ]
        self._reading = reading_table(memory, blocks * layout.bytes, threads)
        self._builder, self._connection, self._b = builder, connection, layout.batch_size
        self._lock, self._gate, self._careful = threading.Lock(), threading.Lock(), careful
        self._me, self._numbers = threading.local(), iter(range(threads))
        builder.reader.reading = self._tell
        self._pool = ThreadPoolExecutor(threads, "images", self._name)

    def serve(self) -> None:
        while True:
            try:
                asked = self._connection.recv()
            except (EOFError, ConnectionResetError):
                os._exit(0)
            if asked is None:
                self._careful = False
                continue
            block, consumed = asked
            spans = [(first, min(first + CHUNK, self._b)) for first in range(0, self._b, CHUNK)]
            work = _Work(block, len(spans))
            places = self._builder.places(consumed)
            for number, (first, last) in enumerate(spans):
                self._pool.submit(self._fill, work, number, places, first, last)

    def _name(self) -> None:
        torch.set_num_threads(1)  # also: the pool of OpenMP has lost its threads in the fork
        with self._lock:
            self._me.number = next(self._numbers)

    def _tell(self, lane: int, shard: int, row: int, there: bool) -> None:
        self._reading[self._me.number] = lane, shard, row, there, time.monotonic_ns()

    def _fill(self, work: "_Work", number: int, places: Places, first: int, last: int) -> None:
        try:
            with self._gate if self._careful else nullcontext():
                try:
                    work.skipped[number] = self._builder.fill(self._arrays[work.block], places, first, last)
                finally:
                    self._reading[self._me.number] = IDLE
        except BaseException as error:
            if isinstance(error, BadDataError):
                work.skipped[number], error.skipped = error.skipped, []
            if not hasattr(error, "exit_status"):
                error.add_note(f"in the reader process:\n{traceback.format_exc()}")
            work.error = _portable(error)
        with self._lock:
            work.left -= 1
            if work.left == 0:
                self._connection.send((work.block, work.answer()))


class _Work:
    """Holds what is known of a block that is being filled."""

    def __init__(self, block: int, parts: int):
        self.block, self.left = block, parts
        self.error: BaseException | None = None
        self.skipped: list[list[Skipped]] = [[] for _ in range(parts)]

    def answer(self) -> list[Skipped] | BaseException:
        """Returns what was skipped, or the error that ended the work; one for bad data takes what was skipped
        with it."""
        skipped = [one for part in self.skipped for one in part]
        if isinstance(self.error, BadDataError):
            self.error.skipped = skipped
        return self.error or skipped


def _portable(error: BaseException) -> BaseException:
    """Returns the error, or one with its words where it cannot go through a pipe."""
    try:
        pickle.dumps(error)
        return copy.copy(error)  # by the same words of its class as at the other end
    except Exception:  # whatever its class does when it is taken apart and put together
        return RuntimeError("".join(traceback.format_exception(error)))


def reading_table(memory: mmap.mmap, offset: int, threads: int) -> np.ndarray:
    """Returns what each thread does now: int64 [threads, COLUMNS]."""
    return np.frombuffer(memory, np.int64, threads * COLUMNS, offset).reshape(threads, COLUMNS)


def detach_worker(parent: int, keep: set[int]) -> None:
    """Makes a forked child a process of its own: it ends with its parent, hears no signals, holds no files but
    archives."""
    gc.freeze()  # the parent's objects are not ours to finalise
    faulthandler.disable()  # it may write to a descriptor that will be another file's here
    for heard in SIGNALS:
        signal.signal(heard, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died in between
        os._exit(0)
    for number in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):  # the one that listed the folder
            if number > 2 and number not in keep and not _archive(number):
                os.close(number)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)  # the result of a verb is its parent's to print


def _archive(number: int) -> bool:
    read_only = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
    return read_only and stat.S_ISREG(os.fstat(number).st_mode)
