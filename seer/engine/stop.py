"""Being asked to stop: a flag, raised by a signal, read at the end of each step.

The first SIGINT, SIGTERM or SIGUSR1 asks for one checkpoint and exit 75; a second one ends the process at once.
"""

import signal
from types import FrameType

from seer.core.log import log

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """A context: handlers are put back at its end. `asked` names the signal, None while all is quiet."""

    def __init__(self) -> None:
        self.asked: str | None = None
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
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.asked = signal.Signals(number).name
        log.info(f"\n{self.asked}: saving at the end of this step; once more ends at once")
