"""Hears the request to stop, by one of `core.signals.SIGNALS`, at any moment of a run.

While it trains (`held`) that is a flag, read at the end of each step, which asks for one checkpoint and exit 75. Before
and after there is nothing to save, and it ends the run at once, whatever it is at, as Ctrl-C ends any program of Python:
by KeyboardInterrupt, here with the name of the signal. A rank that waits for another in a collective hears it when that
one has ended.

A signal that comes more than TWICE_S later than the first ends the process at once (a Ctrl-C reaches a rank from the
terminal and again from torchrun). Only SIGINT, which a person sent, is answered at once: torchrun also sends SIGTERM to
the ranks that are left when one has failed, and their words should be of that.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from seer.core.log import log
from seer.core.signals import CLEAN_S, SIGNALS, TWICE_S, again, listened_for, listener


class StopRequest:
    """Hears requests to stop, as a context. `asked` names the signal, None while all is quiet.

    Signals that are ignored stay so. Handlers are put back at its end, after a request those of a signal that comes again
    once TWICE_S have gone. It takes over from `core.signals`, with a request that is open there.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self._asked_at = 0.0
        self._held = self._ending = self._over = False
        self._old: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in filter(listened_for, SIGNALS):
            self._old[number] = signal.signal(number, self._hear)
        if name := listener.taken():
            self._put_back()
            raise KeyboardInterrupt(name)
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        if not self.asked:
            self._put_back()

    def _put_back(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @property
    def hurried(self) -> bool:
        """Returns whether a kill may follow soon (any signal but SIGINT), so that only what must be done should
        be: no bundle."""
        return self.asked not in (None, "SIGINT")

    @contextmanager
    def held(self) -> Iterator["StopRequest"]:
        """Makes a request wait, inside this context, for whoever looks at `asked`."""
        self._held = True
        try:
            yield self
        finally:
            self._held = False

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            if not again(number, self._asked_at):
                return
            if self._over:
                self._put_back()
                signal.raise_signal(number)
                return
            if self._held or self._ending:
                _end_at_once(number)
                return
        self._asked_at = time.monotonic()
        self.asked = signal.Signals(number).name
        if not self._held:
            self._ending = True
            if listener.heard:
                listener.ask(self.asked, CLEAN_S)  # should the exception vanish, as those in a finalizer do
            raise KeyboardInterrupt(self.asked)
        if number == signal.SIGINT:
            _answer()


def _end_at_once(number: int) -> None:
    if listener.heard:
        listener.end(signal.Signals(number).name)
        return  # the result is being told
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def _answer() -> None:
    """Answers a person. From a thread, since the step that was interrupted may be in the middle of a line of
    the log."""
    with suppress(OSError):
        if os.isatty(2):
            os.write(2, b"\n")  # behind the ^C of the terminal
    words = f"SIGINT: saving at the end of this step; once more, {TWICE_S:.0f} s from now or later, ends at once"
    threading.Thread(target=log.info, args=(words,), daemon=True).start()
