"""Listens for requests to stop from the first moment of the program: exit 75 and one JSON line, whatever it is at.

`engine.stop` takes over while a run trains. Before, importing torch alone takes seconds, and ranks may wait minutes for one
another. `import seer` installs nothing: only the program calls `listen`, first of all.

- As long as nothing is owned, a request ends the process where it stands, by os._exit: an exception may vanish inside an
  import, and there is nothing to undo.
- A verb that may be writing gets KeyboardInterrupt with the name of the signal, so that it cleans up; should that vanish
  or take longer than CLEAN_S, the process ends all the same.
- While the main thread waits in C++, as for other ranks, no handler of Python runs: `heard_in_calls` has a thread hear.
- Once the result is being told, its status stands, and requests are late.

Surprising: nothing heavy may be imported here, not even json, and what a handler writes goes around Python's buffers, which
may be in the middle of a write.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
TWICE_S = 2.0  # a Ctrl-C reaches a rank from the terminal and again from torchrun: within so long it is one request
CLEAN_S = 15.0  # more than a lost rank takes to be named
VERDICT_S = 5.0  # torchrun sends SIGTERM when another rank was refused: time to be refused as well, and say why
SAVED = 75


class Listener:
    """Listens for signals. The one of this process is `listener`; without `listen` it hears nothing."""

    def __init__(self) -> None:
        self.heard: list[signal.Signals] = []  # those that are listened for; none: nobody called `listen`
        self.asked: str | None = None
        self.output: Sequence[object] = ()  # the verb's list of the folder that it owns
        self.unwinds = False
        self._since = 0.0  # when the program began, monotonic
        self._waits_in_calls = False
        self._asked_at = 0.0
        self._ending = threading.Lock()  # of whoever tells the result; it is never given back
        self._told = False
        self._timer: threading.Timer | None = None

    def listen(self) -> None:
        """Makes this process one that can be asked to stop; called once more it does nothing.

        Signals that are ignored, as under nohup, stay ignored.
        """
        if self.heard:
            return
        self._since = time.monotonic()
        self.heard = [number for number in SIGNALS if listened_for(number)]
        for number in self.heard:
            signal.signal(number, self._hear)
        os.register_at_fork(after_in_child=self._forget)
        if started := os.environ.get("SEER_STARTED_FD"):  # tests count their moments from here
            os.write(int(started), b".")

    def running(self) -> float:
        """Returns for how many seconds this has been the program; 0 where something else has called it."""
        return time.monotonic() - self._since if self._since else 0.0

    def owns(self, output: Sequence[object], unwinds: bool) -> None:
        """Says what a request meets from now on.

        output: the list that gets the verb's folder once it is owned, from when on a request raises KeyboardInterrupt.
        unwinds: it does so already.
        """
        self.output, self.unwinds = output, unwinds

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._ending.locked():
            return
        name = signal.Signals(number).name
        if self.asked:
            if not again(number, self._asked_at):
                return
            self.end(name)
        at_once = self._waits_in_calls or not (self.unwinds or self.output)
        self.ask(name, _patience(number) if at_once else CLEAN_S)
        if not at_once:
            raise KeyboardInterrupt(name)

    def ask(self, name: str, seconds: float) -> None:
        """Notes a request for whoever takes over, and ends the process so many seconds later if nobody has."""
        if self.asked is None:
            self.asked, self._asked_at = name, time.monotonic()
        if not seconds:
            self.end(name)
        if self._timer is None:
            self._timer = threading.Timer(seconds, self._end_late, [name])
            self._timer.daemon = True
            self._timer.start()

    def _end_late(self, name: str) -> None:
        if self.asked is not None:  # else somebody has taken it over
            self.end(name)

    def taken(self) -> str | None:
        """Returns the open request, None for none; its answer is the caller's from now on."""
        asked, self.asked = self.asked, None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return asked

    def end(self, name: str) -> None:
        """Ends the process with 75, the first rank with its JSON line. Returns only if the result is being told already."""
        if not self._ending.acquire(blocking=False):
            return
        if self.heard and os.environ.get("RANK", "0").strip() in ("", "0"):
            self._tell(name)
        os._exit(SAVED)

    def _tell(self, name: str) -> None:
        verb = sys.argv[1] if len(sys.argv) > 1 and sys.argv[1].isidentifier() and sys.argv[1].isascii() else ""
        what = "and ended at once; what was saved before stands" if self.output else "before anything had to be saved"
        error = f"stopped on {name} {what}; run the same command again"
        line = f'{{"verb": "{verb}", "exit": {SAVED}, "error": "{error}"}}\n'.encode()
        _write(2, f"seer {verb}: {error}\n".encode())
        for folder in map(str, self.output):
            with suppress(OSError):
                file = os.open(f"{folder}/.result.json.writing", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
                os.write(file, line)
                os.close(file)
                os.replace(f"{folder}/.result.json.writing", f"{folder}/result.json")
        _write(1, line)

    def result_begins(self) -> None:
        """Says that the result is about to be told: no request changes it any more."""
        if self.heard and not self._told:
            if not self._ending.acquire(blocking=False):
                threading.Event().wait()  # another thread is telling, and ends the process
            self._told = True

    def over(self) -> None:
        """Says that all is told.

        Ignored, signals stay harmless while the interpreter is taken down; handlers of Python would be taken down first.
        """
        for number in self.heard:
            signal.signal(number, signal.SIG_IGN)

    @contextmanager
    def heard_in_calls(self) -> Iterator[None]:
        """Lets a request end the process, inside this context, also while the main thread waits in C++."""
        if not self.heard or threading.current_thread() is not threading.main_thread():
            yield
            return
        ear, mouth = os.pipe()
        os.set_blocking(mouth, False)
        before = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
        self._waits_in_calls = True
        threading.Thread(target=self._hear_in_thread, args=(ear,), name="signals", daemon=True).start()
        try:
            yield
        finally:
            self._waits_in_calls = False
            signal.set_wakeup_fd(before)
            os.close(mouth)  # which ends the thread

    def _hear_in_thread(self, ear: int) -> None:
        while numbers := os.read(ear, 64):
            for number in numbers:
                if number in self.heard and self._waits_in_calls:
                    self.ask(signal.Signals(number).name, _patience(number))
        os.close(ear)

    def _forget(self) -> None:
        """Stops listening, in a forked child, whose end is its parent's business."""
        for number in self.heard:
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        if self._waits_in_calls:
            signal.set_wakeup_fd(-1)
        self.heard = []


def _patience(number: int) -> float:
    return VERDICT_S if number == signal.SIGTERM and "TORCHELASTIC_RUN_ID" in os.environ else 0.0


def _write(file: int, words: bytes) -> None:
    with suppress(OSError):  # the terminal was closed, or the reader of the pipe is gone
        os.write(file, words)


def listened_for(number: int) -> bool:
    """Returns whether a signal is not ignored."""
    return signal.getsignal(number) != signal.SIG_IGN


def again(number: int, first: float) -> bool:
    """Returns whether a signal after a request made at `first` (monotonic) is another one: to end at once.

    The kernel sends SIGXCPU anew for each second of processor time, so that one never is.
    """
    return number != signal.SIGXCPU and time.monotonic() - first > TWICE_S


listener = Listener()
