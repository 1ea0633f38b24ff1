"""A checkpoint exists whole and checked, or not at all: damage, interruption, a full disk and hostile files."""

import errno
import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from seer.core.errors import StorageError
from seer.engine.checkpoint_policy import Checkpoints
from seer.engine.manifest import file_digest, read_manifest, with_checksum
from seer.parallel.world import World
from tests.engine.checkpoints import ALONE, FACTS, TENSORS, flip, full_disk, names, same, state
from tests.messages import naming, says


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
    assert says(told.text, "step-00000020", file)


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
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(with_checksum({**manifest, "format": 3})))
    assert two.load_newest()[1]["step"] == 10
    assert says(told.text, "step-00000020")
    assert says(told.text, "format 2") == (damage == "other format")


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_checkpoint_with_a_file_that_cannot_be_read_is_passed_over(two, tmp_path, told, monkeypatch, code):
    def refuse(path: Path):
        if path.parent.name == "step-00000020":
            raise OSError(code, os.strerror(code))
        return file_digest(path)

    monkeypatch.setattr("seer.engine.checkpoint_files.file_digest", refuse)
    assert two.load_newest()[1]["step"] == 10
    assert says(told.text, "step-00000020", TENSORS, os.strerror(code))


def test_when_none_is_whole_the_error_says_so_and_training_does_not_start_anew(two, tmp_path):
    for step in (10, 20):
        flip(tmp_path / f"step-{step:08d}" / TENSORS, 500)
    with pytest.raises(StorageError, match=naming(2, "checkpoints", tmp_path)):
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


def test_saving_a_step_again_replaces_it_whole(two, tmp_path):
    flip(tmp_path / "step-00000020" / TENSORS, 500)
    two.save(20, state(77), FACTS)
    assert same(two.load_newest()[0], state(77))


@pytest.mark.parametrize("most", [0, 1, 8, 9, *range(100, 400_000, 25_000)])
def test_a_full_disk_is_told_with_the_free_space_and_the_older_checkpoint_loads(two, tmp_path, most):
    with (
        full_disk(most),
        pytest.raises(StorageError, match=naming("step 30", tmp_path, "GB free")) as caught,
    ):
        two.save(30, state(30, size=100_000), FACTS)
        two.wait()
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
            checkpoints.wait()
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
        with pytest.raises(StorageError, match=naming("step 30", "No space left on device")):
            two.save(30, state(30), FACTS)
            two.wait()
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
    assert says(told.text, "step-00000020", "tensors")


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
    manifest["files"][file.name] = file_digest(file)
    (file.parent / "manifest.json").write_text(json.dumps(with_checksum(manifest)))


def test_a_disk_too_small_for_the_checkpoints_is_told_before_training(two, tmp_path):
    free = shutil.disk_usage(tmp_path).free
    two.check_room(1000)
    with pytest.raises(StorageError, match=naming("GB each", "GB free", tmp_path, "every.keep=2")):
        two.check_room(free + 10**9)


def test_of_what_every_rank_holds_whole_each_copies_a_share_and_no_tensor_is_left_out(tmp_path):
    sizes = {"a": 700, "b": 400, "c": 300, "d": 10, "e": 0}
    whole = {"task": {name: torch.zeros(size) for name, size in sizes.items()}}
    worlds = [World(rank, 3, rank, torch.device("cpu")) for rank in range(3)]
    shares = [Checkpoints(tmp_path, world).files.local_tensors(whole, copied=False)[0] for world in worlds]
    assert sorted(name for local_tensors in shares for name in local_tensors) == [f"task/{name}" for name in sizes]
    assert [sum(t.numel() for t in local_tensors.values()) for local_tensors in shares] == [700, 400, 310]


def test_a_value_that_is_neither_tensor_nor_plain_is_refused_with_its_path(tmp_path):
    with pytest.raises(TypeError, match=naming("task/odd/0", "set")):
        Checkpoints(tmp_path, ALONE).save(10, {"task": {"odd": [{1}]}}, FACTS)
