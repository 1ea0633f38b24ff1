"""Failures with an exit status (`DESIGN` section 1). A message names the value, the limit and the remedy.

ValueError raised while objects are built from the config also means status 78; the classes here are for what is found
later, or must end a run with another status.
"""

from collections.abc import Sequence
from typing import Any


class RequestError(ValueError):
    """The request is wrong: exit 78."""

    exit_status = 78


class BadDataError(RuntimeError):
    """More bad pictures than the limit allows: exit 65. skipped: records of those that no batch has told of."""

    exit_status = 65

    def __init__(self, message: str, skipped: Sequence[Any] = ()):
        super().__init__(message)
        self.skipped = list(skipped)


class StorageError(RuntimeError):
    """Reading or writing failed below us: exit 74."""

    exit_status = 74


class NumericsError(ArithmeticError):
    """Non-finite numbers; running again will not heal it: exit 70."""

    exit_status = 70


class Interrupted(Exception):
    """Asked to stop and the state is saved: exit 75, run the same command again to go on."""

    exit_status = 75

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step
        self.result: dict[str, object] = {}  # what can be told so far, for the JSON line


class LostPeer(RuntimeError):
    """Another rank is gone, or has failed: exit 75 when it is gone, else its status.

    tells: whether this rank is the one that says so.
    """

    def __init__(self, message: str, exit_status: int = 75, tells: bool = True):
        super().__init__(message)
        self.exit_status, self.tells = exit_status, tells
