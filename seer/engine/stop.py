"""Being asked to stop, by SIGINT, SIGTERM or SIGUSR1, at any moment of a run.

While it trains (`held`) that is a flag, read at the end of each step, which asks for one checkpoint and exit 75. Before
and after there is nothing to save, and it ends the run at once, whatever it is at, as Ctrl-C ends any program of Python:
by KeyboardInterrupt, here with the name of the signal. A rank that waits for another in a collective hears it when that
one has ended.

A signal that comes more than TWICE_S later than the first ends the process at once (a Ctrl-C reaches a rank from the
terminal and again from torchrun). Only SIGINT, which a person sent, is answered at once: torchrun also sends SIGTERM to
the ranks that are left when one has failed, and their words should be of that.
"""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from seer.core.log import log

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
HURRIED = ("SIGTERM", "SIGUSR1")  # those who send these may kill soon
TWICE_S = 2.0


class StopRequest:
    """A context. `asked` names the signal, None while all is quiet.

    Handlers are put back at its end, after a request those of a signal that comes again once TWICE_S have gone.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self._asked_at = 0.0
        self._held = self._ending = self._over = False
        self._old: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            self._old[number] = signal.signal(number, self._hear)
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
        """Whether only what must be done should be."""
        return self.asked in HURRIED

    @contextmanager
    def held(self) -> Iterator["StopRequest"]:
        """Within it a request waits for whoever looks at `asked`."""
        self._held = True
        try:
            yield self
        finally:
            self._held = False

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            if time.monotonic() - self._asked_at <= TWICE_S:
                return
            if self._over:
                self._put_back()
                signal.raise_signal(number)
                return
            if self._held or self._ending:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
        self._asked_at = time.monotonic()
        self.asked = signal.Signals(number).name
        if not self._held:
            self._ending = True
            raise KeyboardInterrupt(self.asked)
        if number == signal.SIGINT:
            log.info(f"\n{self.asked}: saving at the end of this step; once more ends at once")
