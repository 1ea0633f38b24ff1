"""How a verb ends: the last line of standard output, the same in the output folder, the exit status."""

import json

import pytest

from seer.cli.main import _end


@pytest.mark.parametrize("ended", [0, 65, 75])
def test_where_the_result_cannot_be_written_the_line_is_printed_and_done_becomes_a_failure_of_storage(
    tmp_path, capfd, ended
):
    (tmp_path / "result.json").mkdir()  # os.replace fails on it
    status = _end({"verb": "pretrain", "exit": ended, "loss": 1.5}, 0, tmp_path)
    told = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert status == told["exit"] == (ended or 74) and told["loss"] == 1.5
    assert ("cannot be written" in told.get("error", "")) == (ended == 0)
