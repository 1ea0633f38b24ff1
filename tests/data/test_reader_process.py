"""The reader process: its death costs nothing and is told, it outlives nobody, and its memory is lent, not given."""

import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from seer.core import log
from seer.core.errors import BadDataError, StorageError
from seer.data.decode import decode
from seer.data.loading import reader as reading
from seer.data.loading import reader_process as process
from seer.data.loading.batch_buffer import BatchLayout
from seer.data.loading.loader import HELD, Loader
from seer.data.loading.reader import MOST_BAD, Reader
from seer.data.loading.reader_worker import CHUNK
from seer.data.multicrop import MultiCrop
from seer.data.order import plan
from seer.data.shards.open import open_shards
from seer.data.shards.tar_shard import TarShard
from seer.data.shards.writer import write_shards
from seer.data.transforms import multi_crop
from tests.data.children import children
from tests.data.image_files import png
from tests.messages import naming
from tests.program import alive

pytestmark = [pytest.mark.slow, pytest.mark.alone]

N, BATCH = 64, 8
CROP = MultiCrop((16, 8), (2, 1), ((0.3, 1), (0.1, 0.3)))
DEADLY = {7, 8, 41}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    made = ((f"k{i:03d}", {"png": png(i) + (b"deadly" if i in DEADLY else b"")}) for i in range(N))
    write_shards(made, folder, total=N, per_shard=20)
    return folder


def loader(folder: Path, **how) -> Loader:
    shards = open_shards(folder)
    lanes = plan([len(s) for s in shards], seed=0, lanes=8, block=10)
    return Loader(Reader(shards, lanes, 0), CROP, batch=BATCH, **how)


def views(batch) -> list[torch.Tensor]:
    return [batch.fields["views/16"], batch.fields["views/8"]]


def pixels(batch) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in views(batch)]


def same(a: list[list[torch.Tensor]], b: list[list[torch.Tensor]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


@pytest.fixture(scope="module")
def expected(folder) -> list[list[torch.Tensor]]:
    with closing(loader(folder, threads=0).batches(0)) as stream:
        return [pixels(b) for b in islice(stream, 24)]


def killed_at(stream, steps: set[int], how: int) -> list[list[torch.Tensor]]:
    found = []
    for step in range(24):
        found.append(pixels(next(stream)))
        if step in steps:
            (child,) = children()
            os.kill(child, how)
    return found


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_reader_that_dies_is_started_again_and_the_batches_stay_as_they_were(folder, expected, how, caplog):
    with closing(loader(folder, threads=2, prefetch=3).batches(0)) as stream:
        assert same(killed_at(stream, {0, 6, 12}, how), expected)
    told = [r.getMessage() for r in caplog.records if "the reader process ended by" in r.getMessage()]
    assert len(told) == 3 and all(signal.Signals(how).name in words and "nothing is lost" in words for words in told)


def deadly_decode(data: bytes, scratch=None, *others, **named):
    if data.endswith(b"deadly"):
        ctypes.string_at(0)
    return decode(data)


def test_images_that_crash_their_reader_are_skipped_by_name_like_other_bad_ones(folder, monkeypatch, caplog):
    def broken_decode(data: bytes, scratch=None, *others, **named):
        if data.endswith(b"deadly"):
            raise reading.Undecodable("broken")
        return decode(data)

    monkeypatch.setattr(multi_crop, "decode", broken_decode)
    with closing(loader(folder, threads=0).batches(0)) as stream:
        quiet = [(pixels(b), [(s.member, s.attempt) for s in b.skipped]) for b in islice(stream, 16)]
    monkeypatch.setattr(multi_crop, "decode", deadly_decode)
    found, reasons = [], set()
    with closing(loader(folder, threads=3, prefetch=2).batches(0)) as stream:
        for batch in islice(stream, 16):
            found.append((pixels(batch), [(s.member, s.attempt) for s in batch.skipped]))
            reasons |= {s.reason for s in batch.skipped}
    assert [skipped for _, skipped in found] == [skipped for _, skipped in quiet]
    assert same([p for p, _ in found], [p for p, _ in quiet])
    assert {m for _, skipped in found for m, _ in skipped} == {f"k{i:03d}" for i in DEADLY}
    assert reasons == {"decoding it ends a process by signal SIGSEGV"}
    deaths = [r.getMessage() for r in caplog.records if "the reader process ended by" in r.getMessage()]
    assert len(DEADLY) + 1 <= len(deaths) <= 3 * len(DEADLY)
    assert all("lane" in words and ".tar" in words for words in deaths)


@pytest.mark.parametrize("seed", range(2))
def test_many_images_that_crash_readers_at_once_are_each_found(tmp_path, monkeypatch, seed):
    """Several parts a block and several threads: which of the deadly ones is met first is a matter of chance."""
    deadly = set(np.random.default_rng(seed).choice(512, 8, replace=False).tolist())
    made = ((f"k{i:03d}", {"png": png(i) + (b"deadly" if i in deadly else b"")}) for i in range(512))
    write_shards(made, tmp_path, total=512, per_shard=256)
    shards = open_shards(tmp_path)

    def slow(data: bytes, scratch=None, *others, **named):
        time.sleep(0.001)
        return deadly_decode(data)

    monkeypatch.setattr(multi_crop, "decode", slow)
    reader = Reader(shards, plan([len(s) for s in shards], seed=seed, lanes=128), 0)
    with closing(Loader(reader, CROP, batch=8 * CHUNK, threads=8, prefetch=3).batches(0)) as stream:
        skipped = {s.member for batch in islice(stream, 4) for s in batch.skipped}
    assert skipped == {f"k{i:03d}" for i in deadly}


def test_after_a_crash_that_does_not_come_again_readers_read_side_by_side_again(folder):
    with closing(loader(folder, threads=2, prefetch=4).batches(0)) as stream:
        killed_at(stream, {3}, signal.SIGSEGV)
        process = stream.gi_frame.f_locals["made"].gi_frame.f_locals["process"]
        assert process._careful == set() and process._deaths == 0


def test_three_deaths_without_a_batch_in_between_end_the_run_and_say_what_to_do(folder, monkeypatch):
    def starved(data: bytes, scratch, *others, **named):
        signal.raise_signal(signal.SIGKILL)

    monkeypatch.setattr(multi_crop, "decode", starved)
    with closing(loader(folder, threads=1).batches(0)) as stream:
        with pytest.raises(
            RuntimeError, match=r"SIGKILL while reading lane \d+, row \d+ of .*3 times in a row.*memory.*data.threads=0"
        ):
            next(stream)
    assert not children()


def test_errors_keep_their_kind_and_unknown_ones_bring_the_place_they_come_from(folder, monkeypatch):
    def undecodable(data: bytes, scratch, *others, **named):
        raise reading.Undecodable("nothing can be read")

    def defect(data: bytes, scratch, *others, **named):
        return [][1]

    monkeypatch.setattr(multi_crop, "decode", undecodable)
    with (
        closing(loader(folder).batches(0)) as stream,
        pytest.raises(BadDataError, match=naming(32, "shard-", "skipped.jsonl")),
    ):
        next(stream)
    monkeypatch.setattr(multi_crop, "decode", defect)
    with closing(loader(folder).batches(0)) as stream, pytest.raises(IndexError) as error:
        next(stream)
    assert "in defect" in error.value.__notes__[0]

    def stubborn(data: bytes, scratch, *others, **named):
        raise ValueError("holds", threading.Lock())  # cannot be sent

    class Lopsided(Exception):
        def __init__(self, one, two):
            super().__init__("only one")

    def lopsided(data: bytes, scratch, *others, **named):
        raise Lopsided(1, 2)  # can be taken apart, not put together

    for one in (stubborn, lopsided):
        monkeypatch.setattr(multi_crop, "decode", one)
        with closing(loader(folder).batches(0)) as stream, pytest.raises(RuntimeError, match=f"in {one.__name__}"):
            next(stream)


def test_batches_that_are_kept_are_never_written_over(folder, expected):
    with closing(loader(folder, threads=2, prefetch=2).batches(0)) as stream:
        kept = list(islice(stream, 24))
        assert same([views(b) for b in kept], expected)
    assert same([views(b) for b in kept], expected)  # nor when the process is gone


def test_three_batches_may_be_held_before_one_is_copied(folder):
    """The step's, the one before it, and one under way to the device, as `on_device` holds them."""
    with closing(loader(folder, threads=2, prefetch=2).batches(0)) as stream:
        held, where = deque(maxlen=HELD - 1), set()
        for batch in islice(stream, 24):
            held.append(batch)
            where.add(batch.fields["views/16"].data_ptr())
    assert len(where) <= 2 + HELD


def test_a_launcher_that_ignores_the_end_of_children_ends_no_stream_in_an_error(folder, expected):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with closing(loader(folder, threads=2).batches(0)) as stream:
            assert same(killed_at(stream, {2}, signal.SIGKILL), expected)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_more_threads_than_a_tiny_batch_has_bytes_are_no_block_more(folder):
    shards = open_shards(folder)
    tiny = MultiCrop((8,), (2,), ((0.3, 1),))
    reader = Reader(shards, plan([len(s) for s in shards], seed=0, lanes=1), 0)
    with closing(Loader(reader, tiny, batch=1, threads=40).batches(0)) as stream:
        assert [b.images_seen for b in islice(stream, 5)] == [1, 2, 3, 4, 5]


def test_batches_that_are_let_go_take_turns_in_the_same_few_blocks(folder):
    where = set()
    with closing(loader(folder, threads=2, prefetch=2).batches(0)) as stream:
        for batch in islice(stream, 24):
            where.add(batch.fields["views/16"].data_ptr())
    assert len(where) <= 2 + HELD


def test_signals_that_reach_every_process_of_a_job_do_not_end_it(folder, expected):
    with closing(loader(folder, threads=2).batches(0)) as stream:
        found = [pixels(next(stream))]
        (child,) = children()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            os.kill(child, number)
        found += [pixels(b) for b in islice(stream, 23)]
        assert children() == [child] and same(found, expected)


def test_a_socket_of_the_training_process_closes_when_that_closes_it(folder):
    ours, peer = socket.socketpair()
    with closing(loader(folder, threads=2).batches(0)) as stream:
        next(stream)
        ours.close()
        peer.settimeout(60)
        assert peer.recv(1) == b""  # the reader process holds no copy
    peer.close()


PARENT = """
import sys
from tests.data.test_reader_process import *
stream = loader(Path(sys.argv[1]), threads=2).batches(0)
next(stream)
print(children()[0], flush=True)
time.sleep(60)
"""


def test_it_ends_at_once_when_its_parent_is_killed(folder):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(folder)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    child = int(parent.stdout.readline())
    assert Path(f"/proc/{child}").exists()
    parent.kill()
    parent.wait()
    until = time.monotonic() + 30
    while alive(child):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_fewer_batches_are_made_ahead_where_memory_for_them_is_short(folder, expected):
    one = loader(folder, threads=1, prefetch=9)
    assert one.prefetch == 9
    short = loader(folder, threads=1, prefetch=9, most_bytes=5.5 * one.layout.bytes)
    assert short.prefetch == 5 - HELD
    none = loader(folder, threads=1, prefetch=9, most_bytes=1)
    assert none.prefetch == 1
    for limited in (short, none):
        with closing(limited.batches(0)) as stream:
            assert same([pixels(b) for b in islice(stream, 24)], expected)


def deadly_slow(data: bytes, scratch=None, *others, **named):
    while data.endswith(b"deadly"):
        time.sleep(0.1)
    return decode(data)


@pytest.fixture
def quick(monkeypatch):
    """Looks and limits of seconds, in tenths."""
    monkeypatch.setattr(process, "LOOK_S", 0.1)
    monkeypatch.setattr(process, "TOLD_S", 0.3)
    monkeypatch.setattr(process, "STUCK_S", 1.0)


def test_an_image_whose_decoding_does_not_end_is_skipped_by_name(folder, monkeypatch, quick, caplog):
    monkeypatch.setattr(multi_crop, "decode", deadly_slow)
    reasons = {}
    with closing(loader(folder, threads=2, prefetch=2).batches(0)) as stream:
        for batch in islice(stream, 8):  # an epoch
            reasons |= {s.member: s.reason for s in batch.skipped}
    assert reasons == dict.fromkeys({f"k{i:03d}" for i in DEADLY}, "decoding it takes more than 1 s")
    told = [r.getMessage() for r in caplog.records if "got no further for 1 s while reading lane" in r.getMessage()]
    assert len(told) > len(DEADLY) and all(".tar" in words for words in told)


@pytest.mark.parametrize("where", [(multi_crop, "decode"), (TarShard, "_pread")])
def test_a_reader_that_is_stopped_for_good_is_replaced_and_the_batches_stay_as_they_were(
    folder, expected, monkeypatch, quick, where, caplog
):
    quickly = getattr(*where)

    def slow(*arguments, **named):  # so that it is stopped at work
        time.sleep(0.01)
        return quickly(*arguments, **named)

    monkeypatch.setattr(*where, slow)
    with closing(loader(folder, threads=2, prefetch=3).batches(0)) as stream:
        assert same(killed_at(stream, {1, 9}, signal.SIGSTOP), expected)
    assert not children()
    assert sum("the reader process got no further for 1 s" in r.getMessage() for r in caplog.records) == 2


def test_a_reader_that_is_slow_but_gets_on_is_left_alone(folder, monkeypatch, quick, caplog):
    def slow(data: bytes, scratch=None, *others, **named):
        time.sleep(0.6)
        return decode(data)

    monkeypatch.setattr(multi_crop, "decode", slow)
    monkeypatch.setattr(process, "STUCK_S", 3.0)  # of one image; a machine that is busy elsewhere may hold one up
    with closing(loader(folder, threads=1, prefetch=1).batches(0)) as stream:
        next(stream)  # 4.8 s
    words = [r.getMessage() for r in caplog.records]
    assert any("waiting for images for 0.3 s" in w or "waiting for images for 0 s" in w for w in words)
    assert not any("no further" in w for w in words)


def test_storage_that_does_not_answer_is_told_with_the_place_and_ends_the_run_in_the_end(
    folder, monkeypatch, quick, caplog
):
    def stalled(self, file, offset, size):
        time.sleep(60)

    monkeypatch.setattr(TarShard, "_pread", stalled)
    place = r"reading lane \d+, row \d+ of \S+\.tar"
    with closing(loader(folder, threads=1, patience_s=2.0).batches(0)) as stream:
        with pytest.raises(
            StorageError, match=f"rank 0: storage has not answered for \\d s: {place}.*run the same command"
        ):
            next(stream)
        words = [r.getMessage() for r in caplog.records]
        assert any(re.match(f"rank 0: waiting for images for . s: {place}", w) for w in words)
        assert not any("no further" in w for w in words)  # no image is blamed for its storage


def test_a_death_is_told_on_every_rank(folder, capfd):
    log.setup(1)
    try:
        shards = open_shards(folder)
        lanes = plan([len(s) for s in shards], seed=0, lanes=8, block=10)
        with closing(Loader(Reader(shards, lanes, 0), CROP, batch=BATCH, rank=1, ranks=2).batches(0)) as stream:
            next(stream)
            os.kill(children()[0], signal.SIGKILL)
            for _ in range(8):
                next(stream)
    finally:
        log.setup(0)
        log.log.handlers.clear()
        log.log.propagate = True
    assert "rank 1: the reader process ended by signal SIGKILL while" in capfd.readouterr().err


def test_what_was_skipped_before_a_run_of_bad_images_comes_with_the_error(tmp_path):
    bad = {f"k{i:03d}" for i in range(63)}
    made = ((f"k{i:03d}", {"png": b"no image" if f"k{i:03d}" in bad else png(i)}) for i in range(66))
    write_shards(made, tmp_path, total=66, per_shard=66)
    shards, found = open_shards(tmp_path), []
    for threads in (0, 2):
        reader = Reader(shards, plan([66], seed=0, lanes=1), 0)
        stream = Loader(reader, CROP, batch=8 * CHUNK, threads=threads).batches(0)
        with closing(stream), pytest.raises(BadDataError, match=f"{MOST_BAD} images in a row") as error:
            next(stream)
        found.append([(s.member, s.attempt) for s in error.value.skipped])
    alone, in_parts = found
    assert {name for name, _ in in_parts} == bad and (alone[-1][1], alone[-MOST_BAD][1]) == (MOST_BAD - 1, 0)
    assert len(alone) > 2 * MOST_BAD  # those of the images before it, too
    assert in_parts[: len(alone)] == alone and len(in_parts) > len(alone)  # other threads may have got further


def test_pages_that_the_device_will_not_let_go_hold_up_no_end(folder, monkeypatch):
    monkeypatch.setattr(process, "END_S", 0.5)
    released = threading.Event()
    monkeypatch.setattr(process, "_unpin", lambda memory, device: released.wait(600))
    builder = loader(folder).builder
    one = process.ReaderProcess(builder, BatchLayout(CROP.layout(BATCH), BATCH), blocks=2, threads=1)
    one._pinned = True
    start = time.monotonic()
    one.close()
    assert time.monotonic() - start < 60 and not children()
    released.set()
