"""How a verb ends: the last line of standard output, the same in the output folder, the exit status."""

import errno
import json
import os

import pytest

from seer.cli.main import _end, main
from seer.core.errors import LostPeer, StorageError
from seer.models.bundle import write_bundle
from seer.models.zoo import build
from tests.data.image_files import jpeg
from tests.engine.checkpoints import full_disk
from tests.messages import naming, says
from tests.program import processor_s, seer, slowness


@pytest.mark.parametrize("ended", [0, 65, 75])
def test_where_the_result_cannot_be_written_the_line_is_printed_and_done_becomes_a_failure_of_storage(
    tmp_path, capfd, ended
):
    (tmp_path / "result.json").mkdir()  # os.replace fails on it
    status = _end({"verb": "pretrain", "exit": ended, "loss": 1.5}, 0, tmp_path)
    told = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert status == told["exit"] == (ended or 74) and told["loss"] == 1.5
    assert says(told.get("error", ""), "result.json", "written") == (ended == 0)


@pytest.mark.parametrize("code", ["ENOSPC", "EIO", "ESTALE", "EROFS"])
def test_a_storage_that_fails_anywhere_ends_a_verb_with_74_and_the_remedy(capfd, monkeypatch, code):
    def refuse(words, output):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)), "/data/x")

    monkeypatch.setattr("seer.cli.plan.run", refuse)
    ended = seer(capfd, "plan")
    assert ended.status == ended.result["exit"] == 74 and "Traceback" not in ended.words
    assert says(ended.result["error"], "'/data/x'", os.strerror(getattr(errno, code)), "storage")


def test_a_name_that_no_file_system_takes_is_a_wrong_request(capfd, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").write_bytes(jpeg(1, 40, 40))
    for words in (
        ("pretrain", f"data.source={tmp_path / 'a'}", f"output={tmp_path / ('x' * 300)}"),
        ("shard", f"source={tmp_path / 'a'}", f"output={tmp_path / ('x' * 300)}"),
        ("evaluate", f"weights={tmp_path / ('x' * 300)}", "data.train=a", "data.test=b"),
    ):
        ended = seer(capfd, *words)
        assert ended.status == 78 and "Traceback" not in ended.words and says(ended.words, "letters", "path")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("reports", [True, False])
def test_of_several_ranks_the_one_that_failed_first_tells_the_result(capfd, monkeypatch, rank, reports):
    def refuse(words, output):
        raise LostPeer("rank 1 failed: no room", 74, reports=reports)

    monkeypatch.setattr("seer.cli.plan.run", refuse)
    for name, value in {
        "RANK": rank,
        "WORLD_SIZE": 2,
        "LOCAL_RANK": rank,
        "MASTER_ADDR": "x",
        "MASTER_PORT": 1,
    }.items():
        monkeypatch.setenv(name, str(value))
    status = main(["plan"])
    told = capfd.readouterr()
    assert status == 74 and ("no room" in told.out) == ("no room" in told.err) == reports


def test_another_error_of_the_system_is_a_defect_with_its_traceback(capfd, monkeypatch):
    def refuse(words, output):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr("seer.cli.plan.run", refuse)
    ended = seer(capfd, "plan")
    assert ended.status == 70 and "Traceback" in ended.words


def test_a_bundle_that_the_disk_does_not_take_is_a_failure_of_storage_and_the_older_one_stays(tmp_path):
    write_bundle(tmp_path, build("regnety_200mf"), card={})
    before = (tmp_path / "backbone.safetensors").read_bytes()
    with full_disk(1000), pytest.raises(StorageError, match=naming("weights", tmp_path, "room")):
        write_bundle(tmp_path, build("regnety_200mf"), card={})
    assert (tmp_path / "backbone.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backbone.safetensors", "bundle.json"]


@pytest.mark.slow
def test_a_wrong_word_is_told_before_torch_is_imported():
    """In a second of processor time: importing torch alone takes more."""
    code = (
        "import sys; from seer.cli.main import main; status = main(['pretrain', 'modle=x']); "
        "print(status, 'torch' in sys.modules)"
    )
    said, seconds = processor_s(code)
    assert said[-2:] == ["78", "False"] and (seconds < 1.5 or seconds < 1.5 * slowness())
