"""A checkpoint exists whole and checked, or not at all: damage, interruption, a full disk and hostile files."""

import json
import logging
import os
import pickle
import resource
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from seer.core.errors import RequestError, StorageError
from seer.core.log import log
from seer.engine.manifest import described, read_manifest, sealed
from seer.engine.retention import Keep
from seer.engine.saving import Checkpoints
from seer.parallel.collectives import waited
from seer.parallel.world import World

ALONE = World(0, 1, 0, torch.device("cpu"))
FACTS = {"data": "abc", "batch": 64}
TENSORS = "shard-00001-model-00001-of-00001.safetensors"


def state(step: int, size: int = 100) -> dict:
    parameter = torch.nn.Parameter(torch.full((size,), float(step)))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    return {
        "task": {"backbone.w": parameter.detach(), "backbone.bn.num_batches_tracked": torch.tensor(step)},
        "optimizer": optimizer.state_dict(),
        "precision": {},
    }


def same(a, b) -> bool:
    if torch.is_tensor(a):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def two(tmp_path) -> Checkpoints:
    checkpoints = Checkpoints(tmp_path, ALONE)
    for step in (10, 20):
        checkpoints.save(step, state(step), FACTS)
    return checkpoints


@pytest.fixture
def told(caplog, monkeypatch):
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.WARNING)
    return caplog


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_what_is_saved_is_loaded_bit_by_bit_with_its_facts(tmp_path):
    saved = state(10)
    saved["task"]["odd"] = torch.tensor([float("nan"), -0.0, 1e-45, float("inf")])
    path = Checkpoints(tmp_path, ALONE).save(10, saved, FACTS)
    found, manifest = Checkpoints(tmp_path, ALONE).load_newest()
    assert found["task"].pop("odd").view(torch.int32).equal(saved["task"].pop("odd").view(torch.int32))
    assert same(found, saved)
    assert (manifest["step"], manifest["ranks"], manifest["data"], manifest["batch"]) == (10, 1, "abc", 64)
    assert path.name == "step-00000010" and os.readlink(tmp_path / "last") == path.name
    assert set(manifest["files"]) == {TENSORS, "state.json"}


def test_nothing_saved_yet_is_none(tmp_path):
    assert Checkpoints(tmp_path / "new", ALONE).load_newest() is None


def test_the_newest_of_several_is_loaded_also_beyond_eight_digits(two, tmp_path):
    assert two.load_newest()[1]["step"] == 20
    two.save(1_234_567_890, state(1), FACTS)
    assert two.load_newest()[1]["step"] == 1_234_567_890


@pytest.mark.parametrize("file", [TENSORS, "state.json"])
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_one_flipped_bit_in_any_file_leads_to_the_older_checkpoint_and_is_told(two, tmp_path, told, file, place):
    path = tmp_path / "step-00000020" / file
    size = path.stat().st_size
    at = {"first": 0, "middle": size // 2, "last": size - 1}[place]
    flip(path, at)
    found, manifest = two.load_newest()
    assert manifest["step"] == 10 and same(found, state(10))
    assert f"step-00000020 is passed over: {file}" in told.text


@pytest.mark.slow
def test_whichever_bit_of_a_manifest_flips_what_is_loaded_is_right(two, tmp_path):
    path = tmp_path / "step-00000020" / "manifest.json"
    whole = path.read_bytes()
    for at in range(len(whole)):
        flip(path, at)
        found, manifest = two.load_newest()
        assert same(found, state(manifest["step"])), at
        assert manifest["step"] in (10, 20)
        path.write_bytes(whole)


@pytest.mark.parametrize("damage", ["cut", "missing", "empty", "no manifest", "cut manifest", "other format"])
def test_a_damaged_checkpoint_is_passed_over(two, tmp_path, told, damage):
    folder = tmp_path / "step-00000020"
    if damage == "cut":
        os.truncate(folder / TENSORS, 100)
    elif damage == "missing":
        (folder / "state.json").unlink()
    elif damage == "empty":
        (folder / TENSORS).write_bytes(b"")
    elif damage == "no manifest":
        (folder / "manifest.json").unlink()
    elif damage == "cut manifest":
        os.truncate(folder / "manifest.json", 50)
    else:
        text = (folder / "manifest.json").read_text()
        (folder / "manifest.json").write_text(text.replace('"format": 2', '"format": 3'))
    assert two.load_newest()[1]["step"] == 10
    assert "step-00000020 is passed over" in told.text


def test_when_none_is_whole_the_error_says_so_and_training_does_not_start_anew(two, tmp_path):
    for step in (10, 20):
        flip(tmp_path / f"step-{step:08d}" / TENSORS, 500)
    with pytest.raises(StorageError, match="none of 2 checkpoints"):
        two.load_newest()


def test_strange_folders_are_left_alone(two, tmp_path, told):
    for name in ("step-99", "step-00000030.bak", "notes"):
        (tmp_path / name).mkdir()
    assert two.load_newest()[1]["step"] == 20 and told.text == ""
    two.save(30, state(30), FACTS)
    assert {"step-99", "step-00000030.bak", "notes"} <= set(names(tmp_path))


def test_half_written_folders_go_when_a_run_starts_and_never_count(two, tmp_path):
    half = tmp_path / "step-00000030.writing"
    half.mkdir()
    (half / TENSORS).write_bytes(b"half")
    assert two.load_newest()[1]["step"] == 20
    assert Checkpoints(tmp_path, ALONE).load_newest()[1]["step"] == 20
    assert names(tmp_path) == ["last", "step-00000010", "step-00000020"]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_few_stay(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path, ALONE, Keep(keep))
    for step in (10, 20, 30, 40):
        checkpoints.save(step, state(step), FACTS)
    assert names(tmp_path) == ["last", *(f"step-{s:08d}" for s in (10, 20, 30, 40)[-keep:])]
    assert (tmp_path / "last").resolve().name == "step-00000040"


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(RequestError, match="keep=0"):
        Checkpoints(tmp_path, ALONE, Keep(0))


@pytest.mark.parametrize("keep", [1, 2])
def test_broken_checkpoints_ahead_do_not_push_out_the_whole_ones_behind(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path, ALONE, Keep(3))
    for step in (10, 20, 30):
        checkpoints.save(step, state(step), FACTS)
    for step in (20, 30):
        flip(tmp_path / f"step-{step:08d}" / TENSORS, 500)
    going_on = Checkpoints(tmp_path, ALONE, Keep(keep))
    assert going_on.load_newest()[1]["step"] == 10
    going_on.save(15, state(15), FACTS)
    assert going_on.load_newest()[1]["step"] == 15


def test_saving_a_step_again_replaces_it_whole(two, tmp_path):
    flip(tmp_path / "step-00000020" / TENSORS, 500)
    two.save(20, state(77), FACTS)
    assert same(two.load_newest()[0], state(77))


@contextmanager
def full_disk(most: int):
    """No file of this process may grow beyond so many bytes: writes fail as on a full disk (File too large)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("most", [0, 1, 8, 9, *range(100, 400_000, 25_000)])
def test_a_full_disk_is_told_with_the_free_space_and_the_older_checkpoint_loads(two, tmp_path, most):
    with (
        full_disk(most),
        pytest.raises(StorageError, match=r"step 30 .*GB free.*older checkpoints are intact") as caught,
    ):
        two.save(30, state(30, size=100_000), FACTS)
        two.settle()
    assert caught.value.exit_status == 74
    assert not (tmp_path / "step-00000030").exists() and os.readlink(tmp_path / "last") == "step-00000020"
    assert same(Checkpoints(tmp_path, ALONE).load_newest()[0], state(20))
    assert not list(tmp_path.glob("*.writing"))


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system of four megabytes, where this machine lets us make one."""
    folder = tmp_path_factory.mktemp("disk")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("pages", [*range(7), 8, 10, 15, *range(20, 200, 20), 195, 300])
def test_a_disk_with_room_for_so_many_pages_keeps_the_older_checkpoint_and_says_space(small_disk, pages):
    """Weights and momentum of 400 kB each need about 200 pages of 4 kB; wherever room ends, nothing else is lost."""
    folder = small_disk / str(pages)
    checkpoints = Checkpoints(folder, ALONE)
    checkpoints.save(10, state(10), FACTS)
    ballast = small_disk / "ballast"
    free = os.statvfs(small_disk)
    ballast.write_bytes(bytes((free.f_bavail - pages) * free.f_frsize))
    try:
        try:
            checkpoints.save(20, state(20, size=100_000), FACTS)
            checkpoints.settle()
            saved = 20
        except StorageError as error:
            assert "No space left on device" in str(error) and "GB free" in str(error)
            saved = 10
        assert (saved == 20) == (pages == 300)
        loaded, manifest = Checkpoints(folder, ALONE).load_newest()
        assert manifest["step"] == saved and same(loaded, state(10) if saved == 10 else state(20, size=100_000))
    finally:
        ballast.unlink()
        shutil.rmtree(folder)


def test_a_disk_that_fails_while_the_manifest_is_written_leaves_the_older_checkpoint(two, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("seer.engine.manifest.json.dump", fail)
        with pytest.raises(StorageError, match="No space left on device"):
            two.save(30, state(30), FACTS)
            two.settle()
    assert two.load_newest()[1]["step"] == 20
    two.save(30, state(30), FACTS)  # once there is room again
    assert two.load_newest()[1]["step"] == 30


def test_a_kill_between_any_two_system_calls_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    """Every fsync, rename and link of a save is made the last one, in turn."""

    class Killed(BaseException):
        pass

    Checkpoints(tmp_path, ALONE).save(10, state(10), FACTS)
    calls = {"left": 0}

    def dying(real):
        def call(*arguments, **named):
            if calls["left"] == 0:
                raise Killed
            calls["left"] -= 1
            return real(*arguments, **named)

        return call

    for last in range(40):
        calls["left"] = last
        with monkeypatch.context() as m:
            for name in ("fsync", "rename", "replace", "open"):
                m.setattr(f"seer.engine.manifest.os.{name}", dying(getattr(os, name)))
            try:
                Checkpoints(tmp_path, ALONE).save(20, state(20), FACTS)
                done = True
            except Killed:
                done = False
        found, manifest = Checkpoints(tmp_path, ALONE).load_newest()
        assert same(found, state(manifest["step"])) and manifest["step"] in ({20} if done else {10, 20})
        if done:
            break
    assert done and last >= 6  # three files, the manifest, the rename, the link, the folder


class Evil:
    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder / "ran"),)


@pytest.mark.parametrize("how", ["torch.save", "plain pickle"])
def test_a_hostile_pickle_with_right_checksums_runs_nothing_and_is_passed_over(two, tmp_path, told, how):
    file = tmp_path / "step-00000020" / TENSORS
    torch.save({"w": Evil(tmp_path)}, file) if how == "torch.save" else file.write_bytes(pickle.dumps(Evil(tmp_path)))
    seal_again(file)
    assert two.load_newest()[1]["step"] == 10
    assert not (tmp_path / "ran").exists()
    assert "step-00000020 is passed over: its tensors cannot be read" in told.text


@pytest.mark.parametrize("text", ['{"task": {"tensor of this checkpoint": "task/none"}}', '{"pairs": 3}', "[", "7"])
def test_a_state_that_asks_for_what_is_not_there_is_passed_over(two, tmp_path, told, text):
    file = tmp_path / "step-00000020" / "state.json"
    file.write_text(text)
    seal_again(file)
    if text == "7":  # nothing but a number is a state, if an odd one
        assert two.load_newest()[0] == 7
    else:
        assert two.load_newest()[1]["step"] == 10


def seal_again(file: Path) -> None:
    """Make the manifest agree with what the file holds now."""
    manifest = read_manifest(file.parent)
    manifest["files"][file.name] = described(file)
    (file.parent / "manifest.json").write_text(json.dumps(sealed(manifest)))


def test_one_every_so_many_steps_stays_for_ever(tmp_path):
    checkpoints = Checkpoints(tmp_path, ALONE, Keep(1, steps=30))
    for step in range(10, 80, 10):
        checkpoints.save(step, state(step), FACTS)
    assert names(tmp_path) == ["last", "step-00000030", "step-00000060", "step-00000070"]


def test_one_every_so_many_hours_stays_for_ever_also_when_the_clock_jumps_back(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, ALONE, Keep(1, hours=2))
    for step, hour in ((1, 0), (2, 1), (3, 2.5), (4, 3), (5, 1), (6, 4.6), (7, 4.7)):
        monkeypatch.setattr("seer.engine.checkpoint.time.time", lambda hour=hour: 1e9 + 3600 * hour)
        checkpoints.save(step, state(step), FACTS)
    assert names(tmp_path) == ["last", *(f"step-{s:08d}" for s in (1, 3, 6, 7))]


def test_a_disk_too_small_for_the_checkpoints_is_told_before_training(two, tmp_path):
    free = shutil.disk_usage(tmp_path).free
    two.check_room(1000)
    with pytest.raises(StorageError, match=r"checkpoints of .* GB each do not fit into .* GB free.*every\.keep=2"):
        two.check_room(free + 10**9)


def test_what_is_written_in_the_background_is_what_there_was_when_save_was_called(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, ALONE, background=True)
    go_on = threading.Event()
    write = checkpoints.files.write
    monkeypatch.setattr(checkpoints.files, "write", lambda *a: (go_on.wait(20), write(*a)))
    now = state(10)
    checkpoints.save(10, now, FACTS)
    now["task"]["backbone.w"].fill_(77)
    now["optimizer"]["state"][0]["momentum_buffer"].fill_(77)
    now["optimizer"]["param_groups"][0]["lr"] = 77
    assert not (tmp_path / "last").exists()
    go_on.set()
    checkpoints.settle()
    assert same(Checkpoints(tmp_path, ALONE).load_newest()[0], state(10))


def test_what_the_thread_of_a_save_waits_for_others_is_not_counted_as_waiting_of_the_step(tmp_path, monkeypatch):
    def write(*_) -> None:
        with waited:
            time.sleep(0.2)

    checkpoints = Checkpoints(tmp_path, ALONE, background=True)
    monkeypatch.setattr(checkpoints.files, "write", write)
    seconds, entered = waited.seconds, waited.entered
    checkpoints.save(10, state(10), FACTS)
    checkpoints.settle()
    assert (waited.seconds, waited.entered) == (seconds, entered)


def test_on_a_gpu_the_thread_of_a_save_stands_on_the_device_of_its_rank_and_a_stream_of_its_own(tmp_path, monkeypatch):
    """A new thread starts on the first GPU, on the stream that training there uses, and torch's writer waits for it."""
    stands: list[object] = []

    @contextmanager
    def on(what: object) -> Iterator[None]:
        stands.append(what)
        yield
        stands.remove(what)

    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: ("new stream", device))
    place = torch.device("cuda", 1)
    checkpoints, found = Checkpoints(tmp_path, World(0, 1, 1, place), background=True), []
    monkeypatch.setattr(checkpoints.files, "write", lambda *_: found.extend(stands))
    checkpoints.save(10, state(10), FACTS)
    checkpoints.settle()
    assert found == [place, ("new stream", place)] and not stands


def test_of_what_every_rank_holds_whole_each_copies_a_share_and_no_tensor_is_left_out(tmp_path):
    sizes = {"a": 700, "b": 400, "c": 300, "d": 10, "e": 0}
    whole = {"task": {name: torch.zeros(size) for name, size in sizes.items()}}
    worlds = [World(rank, 3, rank, torch.device("cpu")) for rank in range(3)]
    shares = [Checkpoints(tmp_path, world).files.share(whole, copied=False)[0] for world in worlds]
    assert sorted(name for share in shares for name in share) == [f"task/{name}" for name in sizes]
    assert [sum(t.numel() for t in share.values()) for share in shares] == [700, 400, 310]


def test_a_second_save_waits_for_the_first_and_the_order_stays(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, ALONE, background=True)
    write, running = checkpoints.files.write, []

    def slow(*arguments):
        running.append(arguments[0])
        assert len(running) == 1
        time.sleep(0.2)
        write(*arguments)
        running.pop()

    monkeypatch.setattr(checkpoints.files, "write", slow)
    for step in (10, 20, 30):
        checkpoints.save(step, state(step), FACTS)
    checkpoints.settle()
    assert names(tmp_path) == ["last", "step-00000020", "step-00000030"]


def test_an_error_in_the_background_is_raised_by_settle_and_only_once(two, tmp_path):
    checkpoints = Checkpoints(tmp_path, ALONE, background=True)
    with full_disk(1000):
        checkpoints.save(30, state(30, size=100_000), FACTS)
        with pytest.raises(StorageError, match=r"step 30 .*older checkpoints are intact"):
            checkpoints.settle()
    checkpoints.settle()
    checkpoints.save(40, state(40), FACTS)
    checkpoints.settle()
    assert checkpoints.load_newest()[1]["step"] == 40


@pytest.mark.parametrize("background", [True, False])
def test_a_save_that_failed_is_told_at_once_and_the_next_one_is_tried_anew(two, tmp_path, told, background):
    checkpoints = Checkpoints(tmp_path, ALONE, background=background)
    with full_disk(1000):
        checkpoints.save(30, state(30, size=100_000), FACTS)
        end = time.monotonic() + 20
        while "the next save tries anew" not in told.text and time.monotonic() < end:  # torch tells first, its own way
            time.sleep(0.02)
            assert not checkpoints.look()  # as at the end of each step
    assert "step 30 could not be written" in told.text and "the next save tries anew" in told.text
    checkpoints.save(40, state(40), FACTS)
    checkpoints.settle()
    assert not checkpoints.look() and told.text.count("could not be written") == 1
    assert checkpoints.load_newest()[1]["step"] == 40


def test_three_saves_that_fail_on_end_are_enough_and_one_that_does_not_starts_the_count_anew(two, tmp_path, told):
    checkpoints = Checkpoints(tmp_path, ALONE, background=True)
    for step, room in ((30, 0), (40, 0), (50, 1), (60, 0), (70, 0), (80, 0)):
        with full_disk(10**9 if room else 1000):
            assert not checkpoints.look()
            checkpoints.save(step, state(step, size=100_000), FACTS)
            checkpoints._join()
    assert checkpoints.look()
    with pytest.raises(StorageError, match=r"step 80 .*run the same command again \(the last 3 saves failed\)"):
        checkpoints.settle()
    assert told.text.count("could not be written") == 4 and checkpoints.load_newest()[1]["step"] == 50


def test_an_error_that_is_not_of_storage_is_raised_by_the_next_save(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, ALONE, background=True)
    with monkeypatch.context() as broken:
        broken.setattr(checkpoints.files, "write", lambda *_: 1 / 0)
        checkpoints.save(10, state(10), FACTS)
        checkpoints._join()
    assert checkpoints.look()
    with pytest.raises(ZeroDivisionError):
        checkpoints.save(20, state(20), FACTS)


def test_a_folder_that_has_gone_away_is_a_failure_of_storage(tmp_path):
    checkpoints = Checkpoints(tmp_path / "gone", ALONE)
    (tmp_path / "gone").rmdir()
    checkpoints.save(10, state(10), FACTS)
    with pytest.raises(StorageError, match="does not answer"):
        checkpoints.settle()


def test_a_value_that_is_neither_tensor_nor_plain_is_refused_with_its_path(tmp_path):
    with pytest.raises(TypeError, match="task/odd/0 is a set"):
        Checkpoints(tmp_path, ALONE).save(10, {"task": {"odd": [{1}]}}, FACTS)
