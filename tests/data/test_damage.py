"""Mutated images and damaged tars by the thousand, seeded: no crash, no hang, and every loss counted and named.

The decoder is native code that may take the process with it, so images are fed to it in a child whose death or silence
names the mutant. `make test` runs 5,000 and 1,000; `make test-long` 100,000 and 10,000.
"""

import io
import json
import os
import signal
import struct
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from seer.core.errors import BadDataError, RequestError, StorageError
from seer.core.records import SKIP_REASONS
from seer.data.decode import LEAST_SIDE, MOST_PIXELS, Undecodable, decode
from seer.data.loading.reader import Reader
from seer.data.multicrop import MultiCrop
from seer.data.order import plan
from seer.data.shards.index import build_index
from seer.data.shards.open import open_shards
from seer.data.shards.tar import TarError
from tests.data.image_files import jpeg, png
from tests.data.mutations import TAR_DAMAGE, UNSEEN, archives, bases, mutant

MOST_SECONDS = 2.0  # of processor time for one image
SILENCE = 60.0  # of wall clock, for a machine that is busy with other things
ROWS = 8
SHIFTED = ("bytes gone", "bytes put in")  # in the last member they change its data alone


def fates(seed: int, count: int) -> dict[str, dict[str, int]]:
    """What became of each mutant, by format: {"JPEG": {"decoded": 1, "truncated": 2}}. In the child process."""
    sources, found = bases(), {form: Counter() for form in bases()}
    for i in range(count):
        form, data = mutant(sources, seed, i)
        os.lseek(_progress, 0, os.SEEK_SET)
        os.write(_progress, struct.pack("<q", i))
        start = time.process_time()
        try:
            image = decode(data)
        except Undecodable as error:
            assert error.kind in SKIP_REASONS and str(error) and "\n" not in str(error), (i, error)
            found[form][error.kind] += 1
        else:
            height, width, channels = image.shape
            assert image.dtype == np.uint8 and channels == 3, i
            assert min(height, width) >= LEAST_SIDE and height * width <= MOST_PIXELS, i
            found[form]["decoded"] += 1
        spent = time.process_time() - start
        assert spent <= MOST_SECONDS, f"mutant {i} of seed {seed} took {spent:.1f} s"
    return {form: dict(kinds) for form, kinds in found.items()}


_progress = -1


def in_a_child(seed: int, count: int, folder: Path) -> dict[str, dict[str, int]]:
    global _progress
    _progress = os.open(folder / "progress", os.O_RDWR | os.O_CREAT)
    os.write(_progress, bytes(8))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            warnings.simplefilter("ignore", UserWarning)
            (folder / "fates").write_text(json.dumps(fates(seed, count)))
            status = 0
        except BaseException as error:
            (folder / "fates").write_text(json.dumps(repr(error)))
        finally:
            os._exit(status)
    last, since = b"", time.monotonic()
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        now = os.pread(_progress, 8, 0)
        if now != last:
            last, since = now, time.monotonic()
        if time.monotonic() - since > SILENCE:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError(f"mutant {struct.unpack('<q', now)[0]} of seed {seed} hangs")
        time.sleep(0.01)
    at = struct.unpack("<q", os.pread(_progress, 8, 0))[0]
    os.close(_progress)
    said = (folder / "fates").read_text() if (folder / "fates").exists() else "nothing"
    assert ended[1] == 0, f"the process ended with status {ended[1]} at mutant {at} of seed {seed}: {said}"
    return json.loads(said)


@pytest.mark.parametrize(
    ("seed", "count"),
    [
        pytest.param(1, 5_000, marks=pytest.mark.slow),
        *(pytest.param(seed, 10_000, marks=pytest.mark.long) for seed in range(2, 12)),
    ],
)
def test_mutated_images_neither_crash_nor_hang_and_each_is_decoded_or_named(seed, count, tmp_path):
    found = in_a_child(seed, count, tmp_path)
    assert sum(sum(kinds.values()) for kinds in found.values()) == count
    for form in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"):
        assert found[form]["decoded"] > 20 and sum(found[form].values()) - found[form]["decoded"] > count / 20, found
    assert set(found["PPM"]) <= {"format", "empty"}, found


def test_a_child_that_crashes_or_hangs_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "SILENCE", 2.0)
    monkeypatch.setitem(globals(), "decode", lambda data: os.kill(os.getpid(), signal.SIGSEGV))
    with pytest.raises(AssertionError, match=r"status 11 at mutant 0 of seed 1"):
        in_a_child(1, 5, tmp_path)
    monkeypatch.setitem(globals(), "decode", lambda data: time.sleep(60))
    with pytest.raises(AssertionError, match="mutant 0 of seed 1 hangs"):
        in_a_child(1, 5, tmp_path)


MEMBERS = [(f"{i:03d}.{'png' if i % 3 else 'jpg'}", (png if i % 3 else jpeg)(i, 12, 12)) for i in range(ROWS)]
PIXELS = [decode(data) for _, data in MEMBERS]


def read_epoch(path: Path) -> tuple[int, dict[int, np.ndarray], list]:
    """Rows that the shard claims, pixels of those that were read as themselves, and what was skipped."""
    shards = open_shards(path)
    reader = Reader(shards, plan([len(shards[0])], seed=5, lanes=1, block=100), 0)
    good, skipped = {}, []
    for at in range(len(shards[0])):
        places = reader.plan.places(at, 1)
        decoded, _, bad = reader.read(places, 0, MultiCrop().decode)
        skipped += bad
        if not bad:
            good[int(places.row[0])] = decoded["image"]
    return len(shards[0]), good, skipped


def verdict(path: Path, exact: bool) -> str:
    """refused, harmless or counted. Raises AssertionError for a loss that nobody would hear of."""
    try:
        rows, good, skipped = read_epoch(path)
    except (TarError, StorageError, RequestError, BadDataError) as error:
        assert str(path) in str(error) and "\n" not in str(error), error
        return "refused"
    lost = {s.row for s in skipped if s.attempt == 0}
    assert rows == ROWS, f"{rows} of {ROWS} rows"
    assert len(good) == ROWS - len(lost), (len(good), lost)
    assert all(s.kind in SKIP_REASONS and s.reason and "\n" not in s.reason and s.shard == str(path) for s in skipped)
    if exact:
        assert all(np.array_equal(image, PIXELS[row]) for row, image in good.items())
    return "counted" if lost else "harmless"


@pytest.mark.parametrize("indexed", [True, False], ids=["with an index", "without an index"])
@pytest.mark.parametrize(
    "count", [pytest.param(500, marks=pytest.mark.slow), pytest.param(5_000, marks=pytest.mark.long)]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_tars_lose_nothing_in_silence(count, indexed, tmp_path):
    path, wholes = tmp_path / "x.tar", archives(MEMBERS)
    kinds = {**TAR_DAMAGE, **(UNSEEN if indexed else {})}
    indexes = []
    for whole in wholes:
        path.write_bytes(whole)
        np.save(buffer := io.BytesIO(), build_index(path))
        indexes.append(buffer.getvalue())
        assert verdict(path, True) == "harmless"
    found = {kind: Counter() for kind in kinds}
    for i in range(count):
        random, kind = np.random.default_rng((count, indexed, i)), list(kinds)[i % len(kinds)]
        form = int(random.integers(len(wholes)))
        path.write_bytes(kinds[kind](wholes[form], random))
        if indexed:
            Path(f"{path}.index.npy").write_bytes(indexes[form])
        start = time.process_time()
        try:
            found[kind][verdict(path, exact=indexed or kind not in SHIFTED)] += 1
        except AssertionError as error:
            raise AssertionError(f"tar {i} ({kind}, form {form}): {error}") from error
        assert time.process_time() - start <= MOST_SECONDS, (i, kind)
    assert sum(sum(f.values()) for f in found.values()) == count
    for kind in set(kinds) - {"cut anywhere", "cut at a block", "zeroed tail", "bytes gone", "bit of data"}:
        assert found[kind]["harmless"] <= 0.05 * sum(found[kind].values()), (kind, found[kind])
    if indexed:
        assert all(found[kind]["counted"] for kind in ("bit of data", "noise in data", "zeroed header")), found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_without_an_index_no_row_goes_missing_when_data_is_damaged_but_its_pixels_may_change(tmp_path):
    path, whole = tmp_path / "x.tar", archives(MEMBERS)[0]
    for i in range(60):
        path.write_bytes(UNSEEN["bit of data"](whole, np.random.default_rng(i)))
        assert verdict(path, exact=False) in ("harmless", "counted")
