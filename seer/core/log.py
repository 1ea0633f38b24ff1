"""Logs what people read: one logger, on standard error, from the first rank alone; the run folder keeps a copy.

Standard output belongs to the JSON result.
"""

import logging
import sys
from pathlib import Path

log = logging.getLogger("seer")
_OF_A_RANK = logging.ERROR + 1
logging.addLevelName(_OF_A_RANK, "RANK")


def setup(rank: int = 0) -> None:
    """Sets the log up, once a process. Ranks other than 0 speak only of errors and of what concerns them alone
    (`of_this_rank`)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
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
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
