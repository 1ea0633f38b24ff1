"""Counts archives that cannot be read among others that can, and says how many may be passed over: none unless asked.

A download that failed leaves one tar of a thousand empty. To train without it changes what is trained on, so it is asked for
by number (`data.max_bad_archives=`, of the images of the probe `eval.max_bad_archives=`, of `seer shard` `max_bad_archives=`), and each is
named in the log and in the result. One count may be of several sources that are opened one after the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from seer.core.errors import RequestError
from seer.core.log import log
from seer.data.shards.tar import TarError

Refusal = TarError | RequestError


@dataclass
class BadArchives:
    """Holds the archives that were passed over. most: how many may be. word: what people set it by, None where they cannot.
    found: what is wrong with each, by path."""

    most: int = 0
    word: str | None = None
    found: dict[str, str] = field(default_factory=dict)

    def pass_over(self, path: str, error: Refusal, count: int) -> None:
        """Notes an archive that cannot be read. Raises the error where there are too many of them, with the remedy. count: of
        all archives and folders."""
        told = path in self.found  # of a source that is opened twice
        self.found[path] = str(error).removeprefix(f"{path}: ")
        if len(self.found) > self.most and (count == 1 or self.word is None):
            raise type(error)(f"{path}: {self.found[path]}" if isinstance(error, TarError) else str(error)) from error
        if len(self.found) > self.most:
            bad = "it" if len(self.found) == 1 else f"these {len(self.found)}: {', '.join(sorted(self.found)[:5])}"
            remedy = f"or go on without {bad}, by {self.word}={len(self.found)}"
            raise type(error)(f"{path}: {self.found[path]}; {remedy}") from error
        if not told:
            log.warning(f"{path} is passed over: {self.found[path]}")

    def check_rest(self, paths: Sequence[str], left: int) -> None:
        """Raises TarError where none of the archives of these paths is left."""
        if not left and paths:
            path = next(path for path in paths if path in self.found)
            raise TarError(f"none of {len(paths)} archives can be read; the first, {path}: {self.found[path]}")
