"""Holds failures with an exit status. A message names the value, the limit and the remedy.

ValueError raised while objects are built from the config also means status 78; the classes here are for what is found
later, or must end a run with another status.
"""

import errno
from collections.abc import Sequence
from typing import Any

# what the system says of a path that no storage could make right
WRONG_PATH = frozenset(
    (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.EACCES, errno.EPERM)
)


class RequestError(ValueError):
    """Says that the request is wrong: exit 78."""

    exit_status = 78


class BadDataError(RuntimeError):
    """Says that more images are bad than the limit allows, or that a file is not what it was written as: exit 65. skipped: records
    of those that no batch has told of."""

    exit_status = 65

    def __init__(self, message: str, skipped: Sequence[Any] = ()):
        super().__init__(message)
        self.skipped = list(skipped)


class StorageError(RuntimeError):
    """Says that reading or writing failed below us: exit 74."""

    exit_status = 74


class NumericsError(ArithmeticError):
    """Says that numbers are not finite; running again will not heal it: exit 70."""

    exit_status = 70


class Interrupted(Exception):
    """Says that the run was asked to stop and its state is saved: exit 75, run the same command again to go on."""

    exit_status = 75

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step
        self.result: dict[str, object] = {}  # what can be told so far, for the JSON line


class LostPeer(RuntimeError):
    """Says that another rank is gone, or has failed: exit 75 when it is gone, else its status.

    reports: whether this rank is the one that says so.
    """

    def __init__(self, message: str, exit_status: int = 75, reports: bool = True):
        super().__init__(message)
        self.exit_status, self.reports = exit_status, reports
