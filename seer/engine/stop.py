"""Being asked to stop: a flag, raised by a signal, read at the end of each step.

The first SIGINT, SIGTERM or SIGUSR1 asks for one checkpoint and exit 75; one that comes more than
TWICE_S later ends the process at once (a Ctrl-C reaches a rank from the terminal and again from torchrun). Only SIGINT,
which a person sent, is answered at once: torchrun also sends SIGTERM to the ranks that are left when one has failed, and
their words should be of that.
"""

import signal
import time
from types import FrameType

from seer.core.log import log

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
TWICE_S = 2.0


class StopRequest:
    """A context: handlers are put back at its end. `asked` names the signal, None while all is quiet."""

    def __init__(self) -> None:
        self.asked: str | None = None
        self._asked_at = 0.0
        self._old: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in SIGNALS:
            self._old[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            if time.monotonic() - self._asked_at > TWICE_S:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        self._asked_at = time.monotonic()
        self.asked = signal.Signals(number).name
        if number == signal.SIGINT:
            log.info(f"\n{self.asked}: saving at the end of this step; once more ends at once")
