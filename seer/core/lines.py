"""Writes the files of a run that grow line by line while it trains."""

import os
from pathlib import Path

from seer.core.log import of_this_rank


class Lines:
    """Appends lines to a file. What storage does not take waits in memory, told once, and goes before the next:
    a disk that is full for a while costs no line, and no run that could go on."""

    def __init__(self, path: Path):
        self.path = path
        self._waiting = b""
        self._told = False

    def append(self, text: str) -> None:
        """Appends whole lines, on the disk when this returns, unless it is told that they wait."""
        self._waiting += text.encode()
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                while self._waiting:
                    self._waiting = self._waiting[os.write(file, self._waiting) :]
            finally:
                os.close(file)
            self._told = False
        except OSError as error:
            if not self._told:
                of_this_rank(f"{self.path} cannot be written: {error.strerror}; its lines wait in memory, make room")
            self._told = True

    def close(self) -> None:
        """Tries a last time to write what waits, and tells what is lost."""
        if self._waiting:
            self.append("")
        if self._waiting:
            of_this_rank(f"{self._waiting.count(10)} lines of {self.path} are lost")
            self._waiting = b""
