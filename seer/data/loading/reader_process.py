"""Runs one process beside the training process that reads images, with threads inside, into memory that both see.

Decoders meet strangers' bytes here and not where the weights are, and Python's lock is not shared with the step. What
crosses over is the number of a block, the position of its batch, and words about what was skipped.

Surprising:
- It is forked, as torch's own loader does it: a fresh interpreter would spend seconds on importing. What it runs is `reader_worker`.
- It holds no state, so a death loses nothing: it is told, with what was being read, and another one makes the same batches.
  After a crash the next one reads one image at a time; an image at which both died is one of the bad images.
- Nobody waits for it without a word. An image that takes STUCK_S to decode is taken for a crash at it; storage that does
  not answer is told every TOLD_S and costs no image, but ends the run in the end. One that somebody stopped is replaced.
- Where a CPU trains, the weights of the moment of the fork stay in memory once more as the step changes them, as they do
  with torch's own loader.
"""

import mmap
import os
import signal
import threading
import time
import traceback
import warnings
import weakref
from collections import deque
from contextlib import suppress
from multiprocessing import Pipe

import torch

from seer.core.errors import StorageError
from seer.core.log import of_this_rank
from seer.core.records import Skipped
from seer.data.loading.batch_buffer import BatchBuffer, BatchLayout
from seer.data.loading.batch_builder import BatchBuilder
from seer.data.loading.reader_worker import COLUMNS, IDLE, ReaderWorker, detach_worker, reading_table

MOST_DEATHS = 3  # in a row, with no batch in between
END_S = 5.0
LOOK_S = 1.0  # between two looks at what it does, while its batch is waited for
TOLD_S = 30.0
STUCK_S = 60.0  # of one image: the largest allowed takes a few
CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}


class ReaderProcess:
    """Holds a ring of `blocks` batches of this rank and the process that fills them. threads: of that process.
    patience_s: how long storage may take to answer."""

    def __init__(
        self,
        builder: BatchBuilder,
        layout: BatchLayout,
        *,
        blocks: int,
        threads: int,
        pin: bool = False,
        patience_s: float = float("inf"),
    ):
        self.builder, self.layout, self.threads, self.blocks = builder, layout, threads, blocks
        self._size = blocks * layout.bytes + threads * COLUMNS * 8
        self._file = os.memfd_create("seer-batches")
        os.ftruncate(self._file, self._size)
        self._memory = mmap.mmap(self._file, self._size)
        self._reading = reading_table(self._memory, blocks * layout.bytes, threads)
        self._free: deque[int] = deque(range(blocks))
        self._asked: dict[int, int] = {}  # block -> position, in the order they were asked for
        self._done: dict[int, list[Skipped] | BaseException] = {}
        self._deaths = 0
        self._patience_s = patience_s
        self._stuck: list[list[int]] | None = None  # what it was killed for, if it was
        self._quiet_s = 0.0
        self._careful: set[int] = set()  # blocks to be filled one image at a time
        self._suspects: set[tuple[int, int]] = set()  # what was read at the last deaths
        self._device = torch.cuda.current_device() if pin else 0  # a thread would begin on the first
        self._pinned = pin and _pin(torch.frombuffer(self._memory, dtype=torch.uint8), builder.rank)
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
        """Returns the number of blocks that somebody outside still looks at."""
        return self.blocks - len(self._free) - len(self._asked)

    def ask(self, consumed: int) -> None:
        """Begins the batch that comes after `consumed` images of the run. There must be a free block."""
        block = self._free.popleft()
        self._asked[block] = consumed
        self._send((block, consumed))

    def take(self, copy: bool) -> tuple[BatchBuffer, list[Skipped]]:
        """Returns the oldest batch asked for. Its block is free again when its tensors are gone; copy: at once.

        Raises what filling it raised, and StorageError where storage does not answer.
        """
        block, looks = next(iter(self._asked)), 0
        while block not in self._done:
            if self._connection.poll(LOOK_S):
                self._listen()
                looks = 0
            else:
                looks += 1
                self._poll_worker(looks)
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
        return self.layout.buffer(tensor), answer

    def close(self) -> None:
        """Ends the process. Tensors that are still held stay as they are."""
        self._connection.close()
        if self._pid:
            _end(self._pid)
            self._pid = 0
        if self._pinned:
            memory = torch.frombuffer(self._memory, dtype=torch.uint8)
            waiting = threading.Thread(target=_unpin, args=(memory, self._device), name="unpin", daemon=True)
            waiting.start()
            waiting.join(END_S)  # not for ever: a collective that waits for a dead peer holds the device up
        os.close(self._file)

    def _start(self) -> None:
        self._reading[:] = IDLE
        self._connection, theirs = Pipe()
        me = os.getpid()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # "multi-threaded, use of fork() may lead to deadlocks"
            self._pid = os.fork()
        if self._pid == 0:
            try:
                detach_worker(me, {theirs.fileno(), self._file})
                memory = mmap.mmap(self._file, self._size)
                ReaderWorker(
                    self.builder, self.layout, memory, self.blocks, theirs, self.threads, bool(self._careful)
                ).serve()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        theirs.close()

    def _send(self, message: tuple[int, int] | None) -> None:
        """Sends a block and its position; None: images may be read side by side again."""
        with suppress(BrokenPipeError, ConnectionResetError):  # dead: the next `take` hears of it
            self._connection.send(message)

    def _listen(self) -> None:
        try:
            block, answer = self._connection.recv()
        except (EOFError, OSError):  # it died, perhaps in the middle of a word
            self._bury()
            return
        self._done[block] = answer

    def _poll_worker(self, looks: int) -> None:
        """Judges the process after so many looks in vain. They are counted, since a job that was stopped and
        goes on has not waited meanwhile."""
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
                f"rank {self.builder.rank}: storage has not answered for {waited_s:.0f} s: {self._where(busy)}; see to it, then run "
                "the same command again to go on from the last checkpoint"
            )
        elif looks % round(TOLD_S / LOOK_S) == 0:
            of_this_rank(f"rank {self.builder.rank}: waiting for images for {waited_s:.0f} s: {self._where(busy)}")

    def _busy(self) -> list[list[int]]:
        return [row for row in self._reading.tolist() if row[0] != IDLE]

    def _where(self, busy: list[list[int]]) -> str:
        shards = self.builder.reader.shards
        rows = (f"lane {lane}, row {row} of {shards[shard].path}" for lane, shard, row, _, _ in busy)
        return f"reading {'; '.join(rows) or 'no image'}"

    def _bury(self) -> None:
        """Tells of a death and starts another process on what is not done. Raises RuntimeError after MOST_DEATHS."""
        self._connection.close()
        code = _status(self._pid)
        self._pid = 0
        reading, crash = self._busy(), -code in CRASHES
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        report = f"rank {self.builder.rank}: the reader process ended by {cause} while {self._where(reading)}"
        fatal = f"decoding it ends a process by {cause}"
        if self._stuck is not None:
            reading, crash, self._stuck = self._stuck, bool(self._stuck), None
            fatal = f"decoding it takes more than {STUCK_S:.0f} s"
            report = f"rank {self.builder.rank}: the reader process got no further for {STUCK_S:.0f} s while {self._where(reading)}"
        rows = {(row[1], row[2]) for row in reading}
        alone = bool(self._careful) and crash and len(rows) == 1
        if alone and rows <= self._suspects:
            self.builder.reader.fatal[next(iter(rows))] = fatal
            self._deaths = 0
        elif not alone:  # one alone becomes a suspect, which is no standstill
            self._deaths += 1
        if self._deaths >= MOST_DEATHS:
            raise RuntimeError(
                f"{report}, {self._deaths} times in a row without a batch in between; "
                + ("is memory short? data.threads and data.prefetch lower it; " if -code == signal.SIGKILL else "")
                + "data.threads=0 reads in the training process, data.exclude leaves images out"
            )
        left = {block: at for block, at in self._asked.items() if block not in self._done}
        self._suspects = rows | (self._suspects if self._careful else set())
        if crash or -code == signal.SIGKILL:  # where memory is short, one image at a time needs less
            self._careful = set(left)
        of_this_rank(f"{report}; it is started again, nothing is lost")
        self._start()
        for message in left.items():
            self._send(message)


def _end(process: int) -> None:
    """Waits for a process that is ending; one that cannot within END_S, as when storage hangs, is killed."""
    until = time.monotonic() + END_S
    with suppress(ChildProcessError):  # where a launcher ignores SIGCHLD, the kernel has seen to it
        while os.waitpid(process, os.WNOHANG)[0] == 0:
            if time.monotonic() > until:
                os.kill(process, signal.SIGKILL)
                return
            time.sleep(0.002)


def _status(process: int) -> int:
    """Returns the exit status of a process that has ended, minus the signal where one ended it; 0 where nobody
    kept it."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    except ChildProcessError:
        return 0


def _stopped(process: int) -> bool:
    """Returns whether somebody has stopped a child of this process, which has not gone on since."""
    with suppress(ChildProcessError):
        return os.waitid(os.P_PID, process, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    return False


def _pin(memory: torch.Tensor, rank: int) -> bool:
    """Locks memory for copies to a GPU that do not wait. Returns False, told, where the system refuses."""
    code = int(torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), 0))
    if code:
        with suppress(RuntimeError):  # the next kernel would raise what this call has left behind
            torch.ones(1, device="cuda")
        of_this_rank(
            f"rank {rank}: {memory.numel() / 1e9:.2f} GB for batches cannot be pinned (CUDA error {code}); copies to the GPU wait"
        )
    return code == 0


def _unpin(memory: torch.Tensor, device: int) -> None:
    with torch.cuda.device(device):
        torch.cuda.synchronize()  # copies from it may be under way
        torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())
