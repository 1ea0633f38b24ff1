"""`seer evaluate` on labels of two folders and of strangers' shards, as people run it; the images of classes differ in color."""

import pytest

from seer.cli.main import main
from seer.data import synthetic as sample
from seer.data.shards.writer import write_shards
from tests.evals.test_labels import ROWS, folder, foreign, sharded
from tests.program import SMALL, seer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of one step: what was hardly trained tells colors apart."""
    place = tmp_path_factory.mktemp("weights")
    write_shards(sample.samples(16, seed=1), place / "pictures", total=16, per_shard=16)
    assert main(["pretrain", *SMALL, f"data.source={place / 'pictures'}", f"output={place / 'run'}", "steps=1"]) == 0
    return place / "run"


@pytest.mark.parametrize("kind", ["knn", "linear", "rankme"])
def test_two_folders_that_were_sharded_apart_give_the_figure_of_the_folders(tmp_path, capfd, weights, kind):
    """Numbered anew in each, the classes of test were others: kNN 1.000 from the folders, 0.000 from the shards."""
    train, test = ["ant", "bee", "cat"], ["bee", "cat"]
    loose = folder(tmp_path / "a", train), folder(tmp_path / "b", test)
    shards = sharded(tmp_path / "c", train), sharded(tmp_path / "d", test)
    words = ("evaluate", f"eval={kind}", f"weights={weights}", "data.size=32")
    for pair in (loose, shards, (loose[0], shards[1]), (shards[0], loose[1])):
        ended = seer(capfd, *words, f"data.train={pair[0]}", f"data.test={pair[1]}")
        assert ended.status == 0, ended.words
        assert {name: ended.result[name] for name in ("classes", "train", "test")} == {
            "classes": 3,
            "train": 12,
            "test": 0 if kind == "rankme" else 8,  # which looks at no test image
        }
        assert "unlabelled" not in ended.result and ended.result.get(f"{kind}_top1", 1.0) == 1.0


def test_what_was_used_of_a_strangers_shards_is_counted(tmp_path, capfd, weights):
    words = ("evaluate", "eval=knn", "eval.k=2", f"weights={weights}", "data.size=32")
    source = foreign(tmp_path, ROWS)
    ended = seer(capfd, *words, f"data.train={source}", f"data.test={source}")
    told = {name: ended.result[name] for name in ("classes", "train", "test", "unlabelled")}
    assert ended.status == 0 and told == {"classes": 2, "train": 4, "test": 4, "unlabelled": 4}


def test_labels_that_do_not_match_are_a_wrong_request_of_both_verbs_before_anything_is_made(tmp_path, capfd, weights):
    named, numbers = folder(tmp_path / "a", ["ant", "bee"]), foreign(tmp_path / "b", ROWS)
    other = folder(tmp_path / "c", ["cat", "dog"])
    for test in (numbers, other):
        evaluated = seer(capfd, "evaluate", f"weights={weights}", f"data.train={named}", f"data.test={test}")
        words = (f"data.source={named}", f"output={tmp_path / 'run'}", f"eval.train={named}", f"eval.test={test}")
        trained = seer(capfd, "pretrain", *SMALL, *words, "steps=1")
        assert (evaluated.status, trained.status) == (78, 78) and "ant" in evaluated.words and "ant" in trained.words
        assert not (tmp_path / "run").exists()
