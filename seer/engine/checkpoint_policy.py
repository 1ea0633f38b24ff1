"""Saves the checkpoints of a run: says what happens when that fails, and which one the run goes on from.

Surprising here:

- In the background (`background=True`) training waits only until its tensors are copied to the host; a thread writes them,
  and the ranks' threads talk over a group of their own. There is never more than one save under way.
- A save that storage refuses does not end the run: it is told at once, and the next one tries anew. The last one must
  succeed (`wait`), and TRIES failures on end are enough.
- What is small enough may be written beside every checkpoint (`beside`), by the first rank, once that is whole: its failure
  is told and no failure of the save.
- Loading falls back from a damaged checkpoint to the one before it, one by one, saying why.
"""

import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from seer.core.errors import StorageError
from seer.core.log import log
from seer.engine.checkpoint_files import CheckpointFiles, drop_tracebacks
from seer.engine.retention import Keep, steps_in
from seer.parallel.collectives import broadcast_text, waited
from seer.parallel.world import World

MAX_SAVE_FAILURES = 3
# (step, copied) -> what the first rank writes when the checkpoint of that step is whole, or None. Called by all ranks
# together, between steps, with `copied` when training goes on before it is written.
Beside = Callable[[int, bool], Callable[[], None] | None]


class Checkpoints:
    """Saves and loads the checkpoints of a run. folder: made when missing. keep: which stay. statistics: how
    many groups of ranks share batch statistics, each with a set of its own. background: write while training
    goes on. beside: see above."""

    def __init__(
        self,
        folder: Path,
        world: World,
        keep: Keep | None = None,
        *,
        statistics: int = 1,
        background: bool = False,
        beside: Beside | None = None,
    ):
        self.beside = beside
        self.folder, self.world, self.keep = folder, world, keep or Keep()
        self.statistics, self.background = statistics, background
        self.files = CheckpointFiles(folder, world, self.keep, statistics)
        self._writing: threading.Thread | None = None
        self._failed: BaseException | None = None  # what came of the last save
        self._row, self._told = 0, False  # failures on end; whether the last was told
        self._useless = False  # the group over which the threads of the ranks talk: after a time-out

    def check_room(self, size: int) -> None:
        """Raises StorageError when the disk cannot hold the checkpoints that stay and one more; so a run that
        would fail after hours fails at once. size: bytes of one checkpoint, over all ranks."""

        def problem() -> str:
            free = shutil.disk_usage(self.folder).free
            missing = max(1, self.keep.newest + 1 + self.keep.best - len(steps_in(self.folder)))
            if free >= size * missing:
                return ""
            return (
                f"{missing} checkpoints of {size / 1e9:.2f} GB each do not fit into {free / 1e9:.2f} GB free on the disk of "
                f"{self.folder}; make room, give another output=, or lower every.keep={self.keep.newest}"
            )

        if message := self.files.on_first(problem, self.world.group):
            raise StorageError(message)

    def save(self, step: int, state: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
        """Saves a checkpoint, or begins to. state: {"task": {...}, "optimizer": ..., ...} of tensors and plain
        values. facts: plain values for people too.

        Returns the folder, which is there once `wait` has returned. What storage refuses is told, and raised by
        `wait` alone, with the older checkpoints intact.
        """
        self._join()
        if isinstance(self._failed, StorageError):
            self._tell(self._failed)
        elif self._failed is not None:
            self.wait()
        self._failed, self._told = None, False
        tensors, plain = self.files.local_tensors(state, copied=self.background)
        after = self.beside(step, self.background) if self.beside else None
        if self.background:
            self._writing = threading.Thread(
                target=self._try, args=(after, step, tensors, plain, facts), name="checkpoint", daemon=True
            )
            self._writing.start()
        else:
            self._write_once(after, step, tensors, plain, facts, self.world.group)
            self.poll()
        return self.files.path(step)

    def poll(self) -> bool:
        """Tells of a save that failed, once, without waiting for one under way. Returns whether no more should
        be tried: `wait` raises why. Ranks may hear it a step apart."""
        failed = self._failed
        if failed is None:
            return False
        if not isinstance(failed, StorageError) or self._row >= MAX_SAVE_FAILURES or self._useless:
            return True
        self._tell(failed)
        return False

    def settle(self) -> None:
        """Waits until the last save is on the disk or has failed. Raises what stopped it, on all ranks alike, where no more
        should be tried: a failure that comes while the next save is due has been heard by no `poll`."""
        self._join()
        if self.poll():
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is on the disk. Raises what stopped it, on all ranks alike when that was
        storage."""
        self._join()
        failed, self._failed = self._failed, None
        if isinstance(failed, StorageError):
            again = f" (the last {self._row} saves failed)" if self._row > 1 else ""
            raise StorageError(f"{failed} and run the same command again{again}") from failed
        if failed is not None:
            raise failed

    def close(self, limit_s: float = 60.0) -> None:
        """Gives the last save time to end, also after an error of something else; its own error is told."""
        self._join(limit_s)
        if self._failed is not None and not self._told:
            log.error(str(self._failed))

    def load_newest(
        self, like: Mapping[str, torch.Tensor] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Returns (state, manifest) of the newest checkpoint that is whole, or None when there is none at all.

        like: sharded tensors by their names in the state ("task/backbone.stem.0.weight", or "optimizer/state/0" for all of
        a parameter's that have its shape); these are read into the same shards, all others as a whole, to the CPU. The same
        on all ranks. Raises StorageError when there are some and none is whole.
        """
        steps = json.loads(broadcast_text(json.dumps(steps_in(self.folder)), self.world.group))
        for step in reversed(steps):
            try:
                manifest = self.files.verified(step)
                state = self.files.read(manifest, like or {})
                if self.world.rank == 0:
                    self.files.name_best(manifest.get("best"), step)
                return state, manifest
            except StorageError as error:
                log.warning(f"checkpoint {self.files.path(step).name} is passed over: {error}")
                self.files.broken.add(step)
        if steps:
            raise StorageError(f"none of {len(steps)} checkpoints in {self.folder} is whole; restore one or start anew")
        return None

    def _tell(self, failed: StorageError) -> None:
        if not self._told:
            self._told = True
            log.warning(f"{failed}: training goes on, and the next save tries anew")

    def _join(self, limit_s: float | None = None) -> None:
        thread, self._writing = self._writing, None
        if thread is not None:
            thread.join(limit_s)

    def _try(self, after: Callable[[], None] | None, *save: Any) -> None:
        """Runs in the thread; what is no failure of storage waits for the next call, too."""
        waited.aside()
        try:
            with _stream_of_its_own(self.world.device):
                self._write_once(after, *save, self.world.side)
        except BaseException as error:  # CheckpointException is none of Exception
            if isinstance(error, RuntimeError) and "timed out" in str(error).lower():
                self._useless = True
                error = StorageError(
                    f"checkpoint of step {save[0]}: not all ranks have written within parallel.timeout_s, so storage does not "
                    f"answer one of them ({str(error).splitlines()[0]}); older checkpoints are intact, see to it"
                )
            self._failed = error

    def _write_once(self, after: Callable[[], None] | None, *save: Any) -> None:
        """Writes a checkpoint, keeping what storage refuses. after: what comes once the checkpoint is whole."""
        try:
            self.files.write(*save)
            self._row = 0
        except StorageError as error:
            self._row += 1
            self._failed = error
            drop_tracebacks(error)
            return
        if after is not None:
            after()


@contextmanager
def _stream_of_its_own(device: torch.device) -> Iterator[None]:
    """Gives a thread a stream of its own, as a context. It starts on the first GPU and on the stream that
    training there uses, and torch's writer waits for the current stream at every tensor, also those that lie on
    the host, and so for the step under way."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
        yield
