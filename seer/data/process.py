"""One process beside the training process that reads pictures, with threads inside, into memory that both see.

Decoders meet strangers' bytes here and not where the weights are, and Python's lock is not shared with the step. What
crosses over is the number of a block, the position of its batch, and words about what was skipped.

Surprising:
- It is forked, as torch's own loader does it: a fresh interpreter would spend seconds on importing. The child closes
  every file of its parent but the archives open for reading, so a dead rank's sockets close at once and its peers hear of it.
- It holds no state, so a death loses nothing: it is told, with what was being read, and another one makes the same batches.
  After a crash the next one reads one picture at a time; a picture at which both died is one of the bad pictures.
- Nobody waits for it without a word. A picture that takes STUCK_S to decode is taken for a crash at it; storage that does
  not answer is told every TOLD_S and costs no picture, but ends the run in the end. One that somebody stopped is replaced.
- It ignores signals, which SLURM sends to every process of a job; it ends with its parent or when the pipe closes.
- Where a CPU trains, the weights of the moment of the fork stay in memory once more as the step changes them, as they do
  with torch's own loader.
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
import warnings
import weakref
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np
import torch

from seer.core.errors import BadDataError, StorageError
from seer.core.log import of_this_rank
from seer.core.records import Skipped
from seer.data.filling import Filler
from seer.data.order import Places
from seer.data.slot import Layout, Slot

CHUNK = 16  # pictures one thread takes at a time
MOST_DEATHS = 3  # in a row, with no batch in between
END_S = 5.0
LOOK_S = 1.0  # between two looks at what it does, while its batch is waited for
TOLD_S = 30.0
STUCK_S = 60.0  # of one picture: the largest allowed takes a few
CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}
_PR_SET_PDEATHSIG = 1
_IDLE = -1
_COLUMNS = 5  # of what each thread does now: lane, shard, row, whether its bytes are there, since when (monotonic ns)


class ReaderProcess:
    """A ring of `blocks` batches of this rank and the process that fills them. threads: of that process. patience_s: how
    long storage may take to answer."""

    def __init__(
        self,
        filler: Filler,
        layout: Layout,
        *,
        blocks: int,
        threads: int,
        pin: bool = False,
        patience_s: float = float("inf"),
    ):
        self.filler, self.layout, self.threads, self.blocks = filler, layout, threads, blocks
        self._size = blocks * layout.bytes + threads * _COLUMNS * 8
        self._file = os.memfd_create("seer-batches")
        os.ftruncate(self._file, self._size)
        self._memory = mmap.mmap(self._file, self._size)
        self._reading = _table(self._memory, blocks * layout.bytes, threads)
        self._free: deque[int] = deque(range(blocks))
        self._asked: dict[int, int] = {}  # block -> position, in the order they were asked for
        self._done: dict[int, list[Skipped] | BaseException] = {}
        self._deaths = 0
        self._patience_s = patience_s
        self._stuck: list[list[int]] | None = None  # what it was killed for, if it was
        self._quiet_s = 0.0
        self._careful: set[int] = set()  # blocks to be filled one picture at a time
        self._suspects: set[tuple[int, int]] = set()  # what was read at the last deaths
        self._pinned = pin and _pin(torch.frombuffer(self._memory, dtype=torch.uint8), filler.rank)
        self._pid = 0
        self._start()

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def asked(self) -> int:
        return len(self._asked)

    @property
    def held(self) -> int:
        """Blocks that somebody outside still looks at."""
        return self.blocks - len(self._free) - len(self._asked)

    def ask(self, consumed: int) -> None:
        """Begin the batch that comes after `consumed` pictures of the run. There must be a free block."""
        block = self._free.popleft()
        self._asked[block] = consumed
        self._send((block, consumed))

    def take(self, copy: bool) -> tuple[Slot, list[Skipped]]:
        """The oldest batch asked for. Its block is free again when its tensors are gone; copy: at once.

        Raises what filling it raised, and StorageError where storage does not answer.
        """
        block, looks = next(iter(self._asked)), 0
        while block not in self._done:
            if self._connection.poll(LOOK_S):
                self._listen()
                looks = 0
            else:
                looks += 1
                self._look(looks)
        answer = self._done.pop(block)
        del self._asked[block]
        if isinstance(answer, BaseException):
            self._free.append(block)
            raise answer
        self._deaths = 0
        if self._careful:
            self._careful.discard(block)
            if not self._careful:
                self._send(None)
        first = block * self.layout.bytes
        lease = memoryview(self._memory)[first : first + self.layout.bytes]
        tensor = torch.frombuffer(lease, dtype=torch.uint8)  # its storage holds the lease
        if copy:
            tensor = tensor.clone()
            self._free.append(block)
        else:
            weakref.finalize(lease, self._free.append, block).atexit = False
        return self.layout.slot(tensor), answer

    def close(self) -> None:
        """End the process. Tensors that are still held stay as they are."""
        self._connection.close()
        if self._pid:
            _end(self._pid)
            self._pid = 0
        if self._pinned:
            memory = torch.frombuffer(self._memory, dtype=torch.uint8)
            waiting = threading.Thread(target=_unpin, args=(memory,), name="unpin", daemon=True)
            waiting.start()
            waiting.join(END_S)  # not for ever: a collective that waits for a dead peer holds the device up
        os.close(self._file)

    def _start(self) -> None:
        self._reading[:] = _IDLE
        self._connection, theirs = Pipe()
        me = os.getpid()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # "multi-threaded, use of fork() may lead to deadlocks"
            self._pid = os.fork()
        if self._pid == 0:
            try:
                _settle(me, {theirs.fileno(), self._file})
                memory = mmap.mmap(self._file, self._size)
                _Child(self.filler, self.layout, memory, self.blocks, theirs, self.threads, bool(self._careful)).serve()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        theirs.close()

    def _send(self, message: tuple[int, int] | None) -> None:
        """A block and its position; None: pictures may be read side by side again."""
        with suppress(BrokenPipeError, ConnectionResetError):  # dead: the next `take` hears of it
            self._connection.send(message)

    def _listen(self) -> None:
        try:
            block, answer = self._connection.recv()
        except (EOFError, OSError):  # it died, perhaps in the middle of a word
            self._bury()
            return
        self._done[block] = answer

    def _look(self, looks: int) -> None:
        """After so many looks in vain. They are counted, since a job that was stopped and goes on has not waited meanwhile."""
        waited_s, busy, now = looks * LOOK_S, self._busy(), time.monotonic_ns()
        self._quiet_s = 0.0 if busy else self._quiet_s + LOOK_S

        def longer(limit_s: float, there: bool) -> list[list[int]]:
            return [row for row in busy if row[3] == there and now - row[4] >= limit_s * 1e9]

        stopped = waited_s >= STUCK_S and _stopped(self._pid)
        stuck = [] if stopped else longer(STUCK_S, True)  # where somebody stopped it, nothing that it read is to blame
        if stopped or (waited_s >= STUCK_S and stuck) or self._quiet_s >= STUCK_S:
            self._stuck, self._quiet_s = stuck, 0.0
            os.kill(self._pid, signal.SIGKILL)
        elif waited_s >= self._patience_s and longer(self._patience_s, False):
            raise StorageError(
                f"rank {self.filler.rank}: storage has not answered for {waited_s:.0f} s: {self._where(busy)}; see to it, then run "
                "the same command again to go on from the last checkpoint"
            )
        elif looks % round(TOLD_S / LOOK_S) == 0:
            of_this_rank(f"rank {self.filler.rank}: waiting for pictures for {waited_s:.0f} s: {self._where(busy)}")

    def _busy(self) -> list[list[int]]:
        return [row for row in self._reading.tolist() if row[0] != _IDLE]

    def _where(self, busy: list[list[int]]) -> str:
        shards = self.filler.reader.shards
        rows = (f"lane {lane}, row {row} of {shards[shard].path}" for lane, shard, row, _, _ in busy)
        return f"reading {'; '.join(rows) or 'no picture'}"

    def _bury(self) -> None:
        """Tell of a death and start another process on what is not done. Raises RuntimeError after MOST_DEATHS."""
        self._connection.close()
        code = _status(self._pid)
        self._pid = 0
        reading, crash = self._busy(), -code in CRASHES
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        told = f"rank {self.filler.rank}: the reader process ended by {cause} while {self._where(reading)}"
        fatal = f"decoding it ends a process by {cause}"
        if self._stuck is not None:
            reading, crash, self._stuck = self._stuck, bool(self._stuck), None
            fatal = f"decoding it takes more than {STUCK_S:.0f} s"
            told = f"rank {self.filler.rank}: the reader process got no further for {STUCK_S:.0f} s while {self._where(reading)}"
        rows = {(row[1], row[2]) for row in reading}
        alone = bool(self._careful) and crash and len(rows) == 1
        if alone and rows <= self._suspects:
            self.filler.reader.fatal[next(iter(rows))] = fatal
            self._deaths = 0
        elif not alone:  # one alone becomes a suspect, which is no standstill
            self._deaths += 1
        if self._deaths >= MOST_DEATHS:
            raise RuntimeError(
                f"{told}, {self._deaths} times in a row without a batch in between; "
                + ("is memory short? data.threads and data.prefetch lower it; " if -code == signal.SIGKILL else "")
                + "data.threads=0 reads in the training process, data.exclude leaves pictures out"
            )
        left = {block: at for block, at in self._asked.items() if block not in self._done}
        self._suspects = rows | (self._suspects if self._careful else set())
        if crash or -code == signal.SIGKILL:  # where memory is short, one picture at a time needs less
            self._careful = set(left)
        of_this_rank(f"{told}; it is started again, nothing is lost")
        self._start()
        for message in left.items():
            self._send(message)


class _Child:
    """What runs in the other process: threads fill blocks, the main thread hears what is asked."""

    def __init__(
        self,
        filler: Filler,
        layout: Layout,
        memory: mmap.mmap,
        blocks: int,
        connection: Connection,
        threads: int,
        careful: bool,
    ):
        self._slots = [
            layout.slot(torch.frombuffer(memory, dtype=torch.uint8, count=layout.bytes, offset=i * layout.bytes))
            for i in range(blocks)
        ]
        self._reading = _table(memory, blocks * layout.bytes, threads)
        self._filler, self._connection, self._b = filler, connection, layout.b
        self._lock, self._gate, self._careful = threading.Lock(), threading.Lock(), careful
        self._me, self._numbers = threading.local(), iter(range(threads))
        filler.reader.reading = self._tell
        self._pool = ThreadPoolExecutor(threads, "pictures", self._name)

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
            places = self._filler.places(consumed)
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
                    work.skipped[number] = self._filler.fill(self._slots[work.block], places, first, last)
                finally:
                    self._reading[self._me.number] = _IDLE
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
    """What is known of a block that is being filled."""

    def __init__(self, block: int, parts: int):
        self.block, self.left = block, parts
        self.error: BaseException | None = None
        self.skipped: list[list[Skipped]] = [[] for _ in range(parts)]

    def answer(self) -> list[Skipped] | BaseException:
        """What was skipped, which an error for bad data takes with it."""
        skipped = [one for part in self.skipped for one in part]
        if isinstance(self.error, BadDataError):
            self.error.skipped = skipped
        return self.error or skipped


def _portable(error: BaseException) -> BaseException:
    """The error, or one with its words where it cannot go through a pipe."""
    try:
        pickle.dumps(error)
        return copy.copy(error)  # by the same words of its class as at the other end
    except Exception:  # whatever its class does when it is taken apart and put together
        return RuntimeError("".join(traceback.format_exception(error)))


def _table(memory: mmap.mmap, offset: int, threads: int) -> np.ndarray:
    """What each thread does now: int64 [threads, _COLUMNS]."""
    return np.frombuffer(memory, np.int64, threads * _COLUMNS, offset).reshape(threads, _COLUMNS)


def _settle(parent: int, keep: set[int]) -> None:
    """Make a forked child a process of its own: it ends with its parent, hears no signals, holds no files but archives."""
    gc.freeze()  # the parent's objects are not ours to finalise
    faulthandler.disable()  # it may write to a descriptor that will be another file's here
    for heard in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
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


def _end(process: int) -> None:
    """Wait for a process that is ending; one that cannot within END_S, as when storage hangs, is killed."""
    until = time.monotonic() + END_S
    with suppress(ChildProcessError):  # where a launcher ignores SIGCHLD, the kernel has seen to it
        while os.waitpid(process, os.WNOHANG)[0] == 0:
            if time.monotonic() > until:
                os.kill(process, signal.SIGKILL)
                return
            time.sleep(0.002)


def _status(process: int) -> int:
    """Exit status of a process that has ended, minus the signal where one ended it; 0 where nobody kept it."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    except ChildProcessError:
        return 0


def _stopped(process: int) -> bool:
    """Whether somebody has stopped a child of this process, which has not gone on since."""
    with suppress(ChildProcessError):
        return os.waitid(os.P_PID, process, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    return False


def _pin(memory: torch.Tensor, rank: int) -> bool:
    """Lock memory for copies to a GPU that do not wait. False, told, where the system refuses."""
    code = int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), 0))
    if code:
        with suppress(RuntimeError):  # the next kernel would raise what this call has left behind
            torch.ones(1, device="cuda")
        of_this_rank(
            f"rank {rank}: {memory.numel() / 1e9:.2f} GB for batches cannot be pinned (CUDA error {code}); copies to the GPU wait"
        )
    return code == 0


def _unpin(memory: torch.Tensor) -> None:
    torch.cuda.synchronize()  # copies from it may be under way
    torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())
