"""Logs what people read: one logger, on standard error, from the first rank alone; the run folder keeps a copy.

Standard output belongs to the JSON result. Warnings, errors and the names of the last lines are colored on a terminal, unless
NO_COLOR is set; never in a file or a pipe.
"""

import logging
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from seer.core import secrets

log = logging.getLogger("seer")
_OF_A_RANK = logging.ERROR + 1
logging.addLevelName(_OF_A_RANK, "RANK")
_YELLOW, _RED, _BOLD, _PLAIN = "\x1b[33m", "\x1b[31m", "\x1b[1m", "\x1b[0m"


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        """Returns a line without passwords and query strings of URLs."""
        return secrets.without(super().format(record))


class _Screen(logging.StreamHandler[Any]):
    """Writes to people, beside a progress bar where there is one. aside: makes room for a line on its terminal. colored: whether
    that knows colors."""

    aside: Callable[[], AbstractContextManager[object]] = nullcontext
    colored = False

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if not self.colored:
            return text
        if getattr(record, "titled", False):
            title, colon, rest = text.partition(":")
            return f"{_BOLD}{title}{colon}{_PLAIN}{rest}"
        color = _RED if record.levelno == logging.ERROR else _YELLOW if record.levelno == logging.WARNING else ""
        return f"{color}{text}{_PLAIN}" if color else text

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "on_screen", True):
            with _Screen.aside():
                super().emit(record)


def beside(aside: Callable[[], AbstractContextManager[object]] | None) -> None:
    """Has every line that people read written inside this context from now on; None: as it is."""
    _Screen.aside = staticmethod(nullcontext if aside is None else aside)


def only_in_file(words: str) -> None:
    """Logs what the screen shows in another form: the copy in the run folder alone gets it."""
    log.info(words, extra={"on_screen": False})


def titled(words: str) -> None:
    """Logs a line whose beginning, up to the first colon, is its title."""
    log.info(words, extra={"titled": True})


def setup(rank: int = 0) -> None:
    """Sets the log up, once a process. Ranks other than 0 speak only of errors and of what concerns them alone
    (`of_this_rank`)."""
    handler = _Screen(sys.stderr)
    handler.setFormatter(_Formatter("%(message)s"))
    terminal = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    handler.colored = terminal and not os.environ.get("NO_COLOR")  # no-color.org: set, and not empty
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    log.propagate = False


def of_this_rank(words: str) -> None:
    """Tells, on every rank, what other ranks do not say as well, and is no error. The words name the rank."""
    log.log(_OF_A_RANK, words)


class _Copy(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Says nothing when a disk takes no more: people have read the line on standard error, where a
        traceback a line would hide it."""


def keep_copy(path: Path) -> None:
    """Appends all that is logged from now on to a file, with times."""
    handler = _Copy(path, encoding="utf-8")
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
