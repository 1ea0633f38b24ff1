"""Does numbered pieces of work in many processes, restartable: what is finished is never done again.

A journal gets one line for each finished piece, flushed to disk, and its first line names the request: a run that was
killed goes on from it, and a run with other words is refused rather than mixed in. Surprising: processes are forked, so
the work needs no pickling and the list of shards is shared; a child whose parent is gone ends itself within a second,
since nobody would ever read its result.
"""

import fcntl
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

from seer.core.errors import RequestError, StorageError
from seer.core.signals import SIGNALS

Entry = dict[str, Any]
Work = Callable[[int, Callable[[], None]], Entry]  # (number of the piece, to be called for each image)
LOCK_S = 5.0  # how long a journal's last owner may take to end

_fork = multiprocessing.get_context("fork")
_work: Work | None = None
_ticks = _fork.Value("q", 0)
_stop = _fork.Value("b", 0)


def run_pieces(
    work: Work,
    count: int,
    journal: IO[str],
    request: str,
    *,
    processes: int,
    progress: Callable[[int], object],
    finished: Callable[[Entry], None] = lambda entry: None,
    begin: Callable[[], None] = lambda: None,
    images: Callable[[Entry], int] = lambda entry: 1,
) -> list[Entry]:
    """Returns the entries of all pieces by number. journal: from `locked`. progress: images since the last
    call, at first those that an earlier run has done; images: how many a piece has. begin: called before a
    new journal is begun; finished: called with each entry, old ones first. What these raise ends the run, and
    the piece does not count as done. Raises RequestError for a journal of another request, StorageError when a
    process dies, and what the work raises."""
    global _work
    done = _read(journal, request, begin)
    for entry in done.values():
        finished(entry)
    progress(sum(map(images, done.values())))
    todo = iter([n for n in range(count) if n not in done])
    _work, _ticks.value, _stop.value = work, 0, 0
    own = os.getpid(), signal.getsignal(signal.SIGTERM)
    pool = ProcessPoolExecutor(min(processes, count), mp_context=_fork, initializer=_begin, initargs=own)
    running: set[Future[tuple[int, Entry]]] = set()
    reported = 0
    try:
        while True:
            while len(running) < 2 * processes and (number := next(todo, None)) is not None:
                with _heard_afterwards():  # processes are forked here
                    running.add(pool.submit(_piece, number))
            if not running:
                break
            ready, running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            for one in ready:
                number, entry = one.result()
                finished(entry)
                done[number] = entry
                _append(journal, {"number": number, **entry})
            ticks = _ticks.value
            progress(ticks - reported)
            reported = ticks
    except BrokenProcessPool as error:
        # a request to stop, sent to all processes of a job and not yet heard here, may be why: then it is what ends this one
        time.sleep(0.2)
        raise StorageError(
            "a writing process died (killed, or out of memory); run the same command again to go on, with fewer processes="
        ) from error
    finally:
        _stop.value = 1
        pool.shutdown(wait=True, cancel_futures=True)
        _work = None
    return [done[number] for number in range(count)]


def _piece(number: int) -> tuple[int, Entry]:
    assert _work is not None
    return number, _work(number, _tick)


def _tick() -> None:
    if _stop.value:
        raise KeyboardInterrupt
    with _ticks.get_lock():
        _ticks.value += 1


@contextmanager
def _heard_afterwards() -> Iterator[None]:
    """Lets requests to stop wait for the end of this context. What a handler raises while the interpreter forks is printed and
    lost there: Python's own hooks around a fork do not pass it on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    caught = [number for number in SIGNALS if callable(signal.getsignal(number))]
    before = {number: signal.signal(number, lambda number, _: heard.append(number)) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for one in heard:
            signal.raise_signal(one)


def _begin(parent: int, ended_by: Any) -> None:
    """Prepares each child. Requests to stop are the parent's to handle; SIGTERM is how it ends a child. ended_by: the parent's
    handler of that."""
    for number in set(SIGNALS) - {signal.SIGTERM}:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _quietly(ended_by))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Asked(KeyboardInterrupt, SystemExit):
    """Ends a child at a request to stop. Of KeyboardInterrupt, which the parent gets where it ended a piece of work; of
    SystemExit, since a child that waits for work would print the traceback of anything else."""

    code = 1


def _quietly(ended_by: Any) -> Any:
    """Returns a handler for children that raises _Asked where that of their parent raises KeyboardInterrupt."""
    if not callable(ended_by):
        return ended_by

    def ended(number: int, frame: FrameType | None) -> None:
        try:
            ended_by(number, frame)
        except KeyboardInterrupt as asked:
            raise _Asked(*asked.args) from None

    return ended


@contextmanager
def locked(journal: Path) -> Iterator[IO[str]]:
    """Opens the journal, ours alone, as a context. A lock goes with its process, so none is ever left behind;
    nor is an empty journal.

    Raises RequestError when another process keeps it, StorageError when it cannot be written.
    """
    while True:
        try:
            file = open(journal, "a+", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{journal} cannot be written: {error.strerror}; give an output= that can be") from error
        with file:
            _lock(file, journal)
            if not _is(file, journal):
                continue  # its owner ended while we waited, and took it away
            try:
                yield file
            finally:
                if _is(file, journal) and not os.fstat(file.fileno()).st_size:
                    journal.unlink()
            return


def _lock(file: IO[str], journal: Path) -> None:
    end = time.monotonic() + LOCK_S
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise RequestError(f"another process is writing to {journal.parent}; wait for it to end") from None
            time.sleep(0.1)


def _is(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _read(file: IO[str], request: str, begin: Callable[[], None]) -> dict[int, Entry]:
    """Returns the finished pieces. A last line cut short by a kill is dropped; so the piece is done again."""
    file.seek(0)
    lines = [line for line in file.read().split("\n")[:-1] if line]
    rows = [json.loads(line) for line in lines]
    if rows and rows[0] != {"request": request}:
        raise RequestError(
            f"{file.name} is of an unfinished set of shards made with other words or from other images; repeat "
            "those, delete it and what they wrote, or give another output"
        )
    file.truncate(sum(len(line.encode()) + 1 for line in lines))
    if not rows:
        begin()
        _append(file, {"request": request})
    return {row.pop("number"): row for row in rows[1:]}


def _append(file: IO[str], row: Entry) -> None:
    try:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"{file.name} cannot be written: {error.strerror}") from error
