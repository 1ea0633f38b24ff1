"""Tells who is still there: every rank says to the others that it lives, what it does, and why it ends.

A collective whose peer has died says "connection closed" (gloo), or nothing at all (NCCL), and never which rank. So a thread
in every rank writes a beat into the store that the launcher or the first rank serves, and reads those of the others:

- A rank that fails says so, if it is the first, and leaves its words there: the others end with the same exit status.
- A rank that is gone (killed, out of memory, its host lost) or stopped leaves nothing: its beats end. It is named.
- A rank whose main thread hangs still beats; it is the one that has entered the fewest collectives.
- A rank that is told to end outside of training (KeyboardInterrupt) takes the others with it: exit 75.

Surprising here: the thread ends the process by itself when the main thread cannot, since a collective that waits for ever
in C++ hears no exception. Under torchrun the process also gets SIGTERM as soon as a peer has failed, often before it has
found out why; outside training that signal then means: end within a few seconds. So a rank that is told to end first
looks whether all others live.
"""

import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist

from seer.core.errors import Interrupted, LostPeer
from seer.core.log import log
from seer.core.signals import listened_for, listener
from seer.parallel.collectives import waited

BEAT_S = 1.0  # between two beats
LOST_S = 4.0  # a peer silent for so long, when a collective has failed already, is gone
GRACE_S = 10.0  # from the news that a peer is gone to the end of this process, if its main thread does not end it
ECHOES = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")


class Heartbeat:
    """Beats for this rank and watches the others, as a context around all that a rank does. limit_s: a peer
    silent for so long is given up."""

    def __init__(self, rank: int, size: int, store: dist.Store, limit_s: float):
        self.rank, self.size, self.limit_s = rank, size, max(limit_s, LOST_S)
        self._store = dist.PrefixStore("seer/watch", store)
        self._doing = (0, "starting")  # step, phase
        self._seen: dict[int, tuple[str, float]] = {}  # rank -> its last beat, and when it changed, on our clock
        self._ended = threading.Event()
        self._told: LostPeer | Interrupted | None = None
        self._lock = threading.Lock()  # one store connection, two threads
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def __enter__(self) -> "Heartbeat":
        self._beat(0)
        _end_soon_on_sigterm()
        _end_with_the_launcher()
        self._thread.start()
        return self

    def set_phase(self, step: int, phase: str) -> None:
        """Notes what the main thread is at, for the message that names it when it hangs."""
        self._doing = (step, phase)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        if kind is None or issubclass(kind, Interrupted):  # the others may have work left, as to write the bundle
            self._say("left", f"{self.rank}", '""')

    def judged(self, error: Exception | KeyboardInterrupt) -> BaseException:
        """Returns the error that ended this rank, or LostPeer when that is but the echo of another rank's end.

        Tells the others what happened here. Waits up to LOST_S for their words.
        """
        if isinstance(error, Interrupted):
            return error
        if isinstance(error, KeyboardInterrupt):
            return self._interrupted(error)
        echo = isinstance(error, dist.DistError) or any(words in str(error) for words in ECHOES)
        own = hasattr(error, "exit_status") or not isinstance(error, RuntimeError) or not echo
        if not own:
            end = time.monotonic() + LOST_S + 2 * BEAT_S
            while time.monotonic() < end and self._told is None:
                time.sleep(BEAT_S / 4)
                self._poll_peers(LOST_S)
            if self._told is None:
                self._told = self._latest(str(error))
        return self._parting(
            error, getattr(error, "exit_status", 78 if isinstance(error, ValueError | FileNotFoundError) else 70)
        )

    def _interrupted(self, asked: KeyboardInterrupt) -> BaseException:
        """Returns the end of a rank that was asked to stop. SIGTERM may come since another rank is gone or has
        failed: waits for that news, or for a beat of each."""
        with suppress(RuntimeError):  # the store is gone
            self._poll_peers(LOST_S)
            before = {rank: text for rank, (text, _) in self._seen.items()}
            end = time.monotonic() + LOST_S + 2 * BEAT_S
            while asked.args == ("SIGTERM",) and self._told is None and time.monotonic() < end:
                if all(self._seen[r][0] != b or self._hear("left", str(r)) is not None for r, b in before.items()):
                    break
                time.sleep(BEAT_S / 4)
                self._poll_peers(LOST_S)
        return self._parting(asked, 75)

    def _parting(self, error: BaseException, status: int) -> BaseException:
        """Tells the others, and returns the error, or what another rank has told already."""
        self._say("left", f"{self.rank}", json.dumps(str(error)[:2000]))
        if self._told is not None:
            self._say("ended", "first", "true")  # for a rank that hangs, whose thread still listens
            return self._told
        words = json.dumps({"rank": self.rank, "exit": status, "error": str(error)[:2000]})
        error.reports = self._say("failed", "first", words) == words.encode()  # type: ignore[attr-defined]
        return error

    # the thread

    def _watch(self) -> None:
        count, ended = 0, None
        while not self._ended.wait(BEAT_S):
            count += 1
            try:
                self._beat(count)
                self._poll_peers(self.limit_s)
                ended = self._hear("ended", "first")
            except RuntimeError as error:  # the store is gone, and with it the first rank or the launcher
                if not self._ended.is_set():
                    self._told = LostPeer(
                        f"the store of the job does not answer any more ({error}): its first host is gone"
                    )
            if self._told is not None:
                self._end(self._told)
            elif ended:
                self._end(LostPeer("the other ranks have ended", reports=False))

    def _end(self, why: LostPeer | Interrupted) -> None:
        """Ends the process once the main thread has had GRACE_S to find out by itself."""
        if self._ended.wait(GRACE_S):
            return
        if getattr(why, "reports", False):
            log.error(str(why))
        sys.stderr.flush()
        os._exit(why.exit_status)

    def _beat(self, count: int) -> None:
        self._say("beat", str(self.rank), json.dumps(self._now(count)))

    def _now(self, count: int = 0) -> list[Any]:
        """Returns [count, step, phase, host, process, collectives entered]."""
        return [count, *self._doing, socket.gethostname(), os.getpid(), waited.entered]

    def _poll_peers(self, limit_s: float) -> None:
        """Reads the others' beats and words; sets `_told`. Raises RuntimeError when the store is gone."""
        now = time.monotonic()
        if (failed := self._hear("failed", "first")) and failed["rank"] != self.rank:
            self._told = _news_of(failed)
            return
        keys = {rank: f"beat/{rank}" for rank in range(self.size) if rank != self.rank}
        with self._lock:
            if not self._store.check(list(keys.values())):
                return  # some have not come yet, which is for the rendezvous to judge
            beats = dict(zip(keys, self._store.multi_get(list(keys.values())), strict=True))
        silent: dict[int, float] = {}
        for rank, beat in beats.items():
            text = beat.decode()
            if self._seen.get(rank, ("",))[0] != text:
                self._seen[rank] = (text, now)
            elif now - self._seen[rank][1] > limit_s and self._hear("left", str(rank)) is None:
                silent[rank] = now - self._seen[rank][1]
        if silent:
            self._end_stopped(silent)
            self._told = LostPeer(self._named(silent), reports=self._lowest(set(silent)))

    def _end_stopped(self, silent: Iterable[int]) -> None:
        """Kills the silent ranks on this host: one that is stopped hears no SIGTERM and would stay as an orphan."""
        for rank in silent:
            host, pid = json.loads(self._seen[rank][0])[3:5]
            with suppress(OSError):  # gone by itself, or not ours
                same = f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                if host == socket.gethostname() and same:
                    os.kill(pid, signal.SIGKILL)

    def _lowest(self, gone: set[int]) -> bool:
        """Returns whether this is the rank that speaks: the lowest of those that are left."""
        return self.rank == min(set(range(self.size)) - gone)

    def _named(self, silent: dict[int, float]) -> str:
        parts = []
        for rank, seconds in sorted(silent.items())[:5]:
            _, step, phase, host, pid, _ = json.loads(self._seen[rank][0])
            parts.append(
                f"rank {rank} (pid {pid} on {host}) was last heard {seconds:.0f} s ago, at step {step}, {phase}"
            )
        more = f" and {len(silent) - 5} more" if len(silent) > 5 else ""
        return f"{'; '.join(parts)}{more}: killed, out of memory, stopped, or its host is lost"

    def _latest(self, error: str) -> LostPeer:
        """Returns the error for a collective that gave up while all beat: whoever did not come to it keeps the
        others waiting."""
        beats = {rank: json.loads(text) for rank, (text, _) in self._seen.items()}
        beats[self.rank] = self._now()
        least = min(beat[-1] for beat in beats.values())
        behind = [rank for rank, beat in sorted(beats.items()) if beat[-1] == least]
        if len(behind) == len(beats):
            step, words = self._doing[0], error.splitlines()[0]
            return LostPeer(f"the ranks lost each other at step {step} ({words})", reports=self.rank == 0)
        step, phase, host, pid, _ = beats[behind[0]][1:]
        words = f"rank {behind[0]} (pid {pid} on {host}) keeps the others waiting at step {step}, {phase}"
        return LostPeer(words, reports=self._lowest(set(behind)))

    # the store

    def _say(self, kind: str, key: str, text: str) -> bytes:
        """Writes to the store and returns the value now there; the first failure wins, since it is the cause of
        the others."""
        try:
            with self._lock:
                if kind == "failed":
                    return self._store.compare_set(f"{kind}/{key}", "", text)
                self._store.set(f"{kind}/{key}", text)
        except RuntimeError:
            if kind == "beat":
                raise
            log.debug("the store is gone: nobody is left to tell")
        return text.encode()

    def _hear(self, kind: str, key: str) -> Any:
        with self._lock:
            if not self._store.check([f"{kind}/{key}"]):
                return None
            return json.loads(self._store.get(f"{kind}/{key}"))


def _news_of(failed: dict[str, Any]) -> LostPeer | Interrupted:
    """Returns another rank's end as this one's error. That rank has said it; 75 is the status of no failure but
    a request."""
    if failed["exit"] == 75:
        asked = Interrupted(f"rank {failed['rank']} was told to end: {failed['error']}", 0)
        asked.reports = False  # type: ignore[attr-defined]
        return asked
    return LostPeer(f"rank {failed['rank']} failed: {failed['error']}", failed["exit"], reports=False)


def _end_soon_on_sigterm() -> None:
    """Ends the process soon after SIGTERM, leaving time to hear why a peer has failed; a run catches the signal
    itself (`engine.stop`)."""

    def end(*_: object) -> None:
        listener.ask("SIGTERM", LOST_S + 4)

    if threading.current_thread() is threading.main_thread() and listened_for(signal.SIGTERM):
        signal.signal(signal.SIGTERM, end)


def _end_with_the_launcher(prctl: Callable[..., int] | None = None) -> None:
    """Asks the kernel for SIGTERM when torchrun is killed, which saves and ends; else ranks would go on unseen."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        set_parent_death_signal = 1
        (prctl or ctypes.CDLL(None, use_errno=True).prctl)(set_parent_death_signal, signal.SIGTERM)
