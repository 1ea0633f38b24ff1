"""Paths that the system does not take are wrong requests that name the word, in every verb."""

import pytest

from seer.models.bundle import write_bundle
from seer.models.zoo import build
from tests.messages import says
from tests.program import SMALL, seer

LONG = "x" * 300


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("weights"), build("regnety_200mf"), card={})


@pytest.fixture
def words(images, weights, tmp_path):
    """Returns the words of each verb but for its output."""
    (tmp_path / "a.txt").write_text("")
    return {
        "pretrain": [*SMALL, f"data.source={images}"],
        "shard": [f"source={images}"],
        "export": [f"weights={weights}", "to=safetensors"],
        "evaluate": [f"weights={weights}", "eval=knn", f"data.train={images}", f"data.test={images}"],
    }


@pytest.mark.parametrize("verb", ["pretrain", "shard", "export", "evaluate"])
@pytest.mark.parametrize("output", ["a.txt", "a.txt/below", LONG])
def test_an_output_that_can_be_none(capfd, verb, output, words, tmp_path):
    if (verb, output) == ("export", "a.txt"):
        pytest.skip("an export may be a file")
    ended = seer(capfd, verb, *words[verb], f"output={tmp_path / output}")
    assert ended.status == ended.result["exit"] == 78 and "Traceback" not in ended.words
    assert says(ended.result["error"], "output=") and (tmp_path / "a.txt").read_text() == ""


def test_weights_of_a_name_too_long_are_a_wrong_request_that_is_short(capfd):
    ended = seer(capfd, "export", f"weights={LONG}", "to=safetensors", "output=x")
    assert ended.status == 78 and len(ended.result["error"]) < 200 and says(ended.result["error"], "weights=xxx", "300")


def test_a_file_that_no_word_names_stays_a_defect(capfd, monkeypatch):
    def refuse(words, output):
        raise PermissionError(13, "Permission denied", "/somewhere/else")

    monkeypatch.setattr("seer.cli.plan.run", refuse)
    assert seer(capfd, "plan").status == 70
