"""`seer evaluate` on labels of two folders and of strangers' shards, as people run it; the images of classes differ in color."""

import pytest

from seer import __version__
from seer.cli.main import main
from seer.data import synthetic as sample
from seer.data.shards.open import open_shards
from seer.data.shards.shard import fingerprint
from seer.data.shards.writer import write_shards
from seer.run.weights import digest, load
from tests.data.image_files import png
from tests.evals.test_labels import ROWS, folder, foreign, sharded
from tests.program import SMALL, finished, seer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of one step: what was hardly trained tells colors apart."""
    place = tmp_path_factory.mktemp("weights")
    write_shards(sample.samples(16, seed=1), place / "pictures", total=16, per_shard=16)
    assert main(["pretrain", *SMALL, f"data.source={place / 'pictures'}", f"output={place / 'run'}", "steps=1"]) == 0
    return place / "run"


@pytest.mark.parametrize("kind", ["knn", "linear"])
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
            "test": 8,
        }
        assert "unlabelled" not in ended.result and ended.result[f"{kind}_top1"] == 1.0


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


@pytest.mark.parametrize("kind", ["rankme", "uniformity", "alignment"])
def test_what_needs_no_labels_takes_images_without_any_and_no_test_set(tmp_path, capfd, weights, kind):
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    words = ("evaluate", f"eval={kind}", f"weights={weights}", "data.size=32", f"data.train={tmp_path}")
    first, second = seer(capfd, *words, f"output={tmp_path / 'out'}"), seer(capfd, *words)
    assert first.status == 0, first.words
    assert first.result[kind] == second.result[kind] and (first.result["train"], first.result["test"]) == (5, 0)
    assert "classes" not in first.result and set(first.result["data"]) == {"train"}


def test_images_that_an_evaluation_needs_are_named(tmp_path, capfd, weights):
    assert "data.test" in seer(capfd, "evaluate", "eval=knn", f"weights={weights}", f"data.train={tmp_path}").words
    ended = seer(capfd, "evaluate", "eval=rankme", f"weights={weights}")
    assert ended.status == 78 and "data.train" in ended.words and "data.test" not in ended.words


VARYING = {"seconds", "date", "command", "weights", "weights_from", "weights_step", "files"}


@pytest.mark.parametrize("kind", ["knn", "linear", "lowshot"])
def test_a_result_says_what_it_is_of_and_is_the_same_again_and_from_a_checkpoint(tmp_path, capfd, weights, kind):
    train, test = folder(tmp_path / "a", ["ant", "bee", "cat"]), folder(tmp_path / "b", ["bee", "cat"])
    words = ("evaluate", f"eval={kind}", "data.size=32", f"data.train={train}", f"data.test={test}")
    first = seer(capfd, *words, f"weights={weights}", f"output={tmp_path / 'out'}")
    second = seer(capfd, *words, f"weights={weights / 'checkpoints' / 'step-00000001'}")
    assert (first.status, second.status) == (0, 0), first.words + second.words
    one, other = ({k: v for k, v in ended.result.items() if k not in VARYING} for ended in (first, second))
    assert one == other and first.result["weights_from"] != second.result["weights_from"]
    assert one["weights_sha256"] == digest(load(str(weights))[0]) and one["chance"]["guess"] == 1 / 3
    prints = {name: fingerprint(open_shards(str(one))) for name, one in (("train", train), ("test", test))}
    assert {name: one["data"][name]["fingerprint"] for name in ("train", "test")} == prints
    assert (one["seed"], one["seer"]) == (0 if kind == "lowshot" else None, __version__) and "commit" in one
    assert one["eval"]["_target_"].startswith("seer.evals.") and one["interval95"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"result.json", *first.result.get("files", ())}
    assert (first.result.get("files", []) == []) == (kind == "lowshot")


@pytest.mark.parametrize("kind", ["rankme", "uniformity", "alignment"])
def test_a_result_without_labels_says_what_it_is_of_and_is_the_same_on_two_ranks(tmp_path, weights, kind):
    train = folder(tmp_path / "a", ["ant", "bee", "cat"])
    words = ("evaluate", f"eval={kind}", "data.size=32", f"weights={weights}", f"data.train={train}", "device=cpu")
    one, two = (finished(*words, ranks=ranks) for ranks in (1, 2))
    assert (one.status, two.status) == (0, 0), two.words
    first, second = ({k: v for k, v in e.result.items() if k not in VARYING} for e in (one, two))
    assert first == second and first["weights_sha256"] == digest(load(str(weights))[0])
    assert first["data"]["train"]["fingerprint"] == fingerprint(open_shards(str(train)))
    assert first["seed"] == (0 if kind == "alignment" else None)
    assert "commit" in first and "evaluate" in one.result["command"]


def test_two_ranks_tell_once_what_one_finds(tmp_path, weights):
    train, test = folder(tmp_path / "a", ["ant", "bee", "cat"]), folder(tmp_path / "b", ["bee", "cat"])
    words = ("evaluate", "eval=linear", "data.size=32", f"weights={weights}", f"data.train={train}", "device=cpu")
    ended = [finished(*words, f"data.test={test}", f"output={tmp_path / str(n)}", ranks=n) for n in (1, 2)]
    assert [one.status for one in ended] == [0, 0], ended[1].words
    one, two = ({k: v for k, v in e.result.items() if k not in VARYING - {"files"}} for e in ended)
    assert one == two
    for name in one["files"]:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
