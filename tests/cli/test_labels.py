"""Labels and shares as people give them to the verbs: from tables and folders into shards, figures and heads."""

import csv
import json

import pytest
import yaml

from seer.cli.main import main
from seer.cli.shard import held_out
from seer.core.errors import RequestError
from seer.data import synthetic as sample
from seer.data.shards.open import open_shards
from seer.data.shards.rewrite import Part
from seer.data.shards.shard import image_of
from seer.data.shards.writer import write_shards
from seer.evals.features import LabelledImages
from seer.evals.used import learned
from tests.data.image_files import png
from tests.evals.test_labels import folder, sharded
from tests.evals.test_used import spread
from tests.messages import naming, says
from tests.program import SMALL, seer
from tests.tasks.test_heads import WORDS

ODD = ["007", "null", "true", "1.0", "${x}", "no", "caf\u00e9", "tabby cat", "a: b", "???"]


def written(shards) -> dict[bytes, str | None]:
    """The name of the class of each image of shards, by its bytes."""
    names = json.loads((shards / "manifest.json").read_text())["classes"]
    rows = [shard.read(0, row) for shard in open_shards(shards) for row in range(len(shard))]
    return {image_of(one): names[int(one.fields["cls"])] if "cls" in one.fields else None for one in rows}


def test_shards_get_the_labels_of_a_table_and_what_has_none_gets_none(tmp_path, capfd):
    source = spread(tmp_path / "x", [f"d{n % 3}/{n}" for n in range(12)])
    with open(tmp_path / "l.csv", "w", newline="", encoding="utf-8") as file:
        rows = [(f"d{n % 3}/{n}.png", ODD[n]) for n in range(10)]
        csv.writer(file).writerows([("file", "label"), *rows])
    words = ("shard", f"source={source}", f"labels={tmp_path / 'l.csv'}", "processes=2")
    ended = seer(capfd, *words, f"output={tmp_path / 'o'}")
    assert ended.status == 0 and ended.result["classes"] == sorted(ODD) and ended.result["unlabelled"] == 2
    assert ended.result["parts"]["all"]["per_class"] == dict.fromkeys(sorted(ODD), 1)
    assert written(tmp_path / "o") == {png(n): ODD[n] if n < 10 else None for n in range(12)}
    again = seer(capfd, *words, f"output={tmp_path / 'o'}")
    assert again.status == 0 and again.result["parts"] == ended.result["parts"]
    (tmp_path / "l.csv").write_text((tmp_path / "l.csv").read_text().replace("007", "008"))
    assert seer(capfd, *words, f"output={tmp_path / 'o'}").status == 78  # other labels are another request


def test_a_folder_inside_a_class_and_one_around_all_make_no_classes_of_shards(tmp_path, capfd):
    source = spread(tmp_path / "x", ["all/ant/1", "all/ant/deep/2", "all/bee/3", "4"])
    for word, expected in (("folder:2", ["ant", "ant", "bee", None]), ("folder:-1", ["ant", "deep", "bee", None])):
        output = tmp_path / word.replace(":", "")
        ended = seer(capfd, "shard", f"source={source}", f"output={output}", f"labels={word}", "processes=1")
        assert ended.status == 0 and ended.result["unlabelled"] == 1, ended.words
        assert [written(output)[png(n)] for n in range(4)] == expected


def test_shards_that_an_earlier_version_has_begun_go_on(tmp_path, capfd):
    """Its journal does not count labels, and its request knew the folder that directly holds an image alone."""
    source = spread(tmp_path / "x", [f"{'ab'[n % 2]}/{n}" for n in range(8)])
    words = ("shard", f"source={source}", "labels=folder", "per_shard=4", "processes=1")
    assert seer(capfd, *words, f"output={tmp_path / 'whole'}").status == 0
    manifest = json.loads((tmp_path / "whole/manifest.json").read_text())
    shards = open_shards(source)
    assert manifest["request"] == Part(shards, 0, 8, per_shard=4, classes=["a", "b"]).request
    begun = tmp_path / "begun"
    begun.mkdir()
    entry = {"number": 0, **manifest["shards"][0], "skipped": []}
    (begun / ".unfinished.jsonl").write_text(
        json.dumps({"request": manifest["request"]}) + "\n" + json.dumps(entry) + "\n"
    )
    for name in (entry["name"], f"{entry['name']}.index.npy"):
        (begun / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    assert seer(capfd, *words, f"output={begun}").status == 0
    assert written(begun) == written(tmp_path / "whole")
    assert json.loads((begun / "manifest.json").read_text())["classes"] == ["a", "b"]


@pytest.mark.parametrize("word", ["member", "auto", "folders", "folder:0", "none.csv"])
def test_words_for_labels_that_say_nothing_are_refused_before_anything_is_made(tmp_path, capfd, word):
    source = spread(tmp_path / "x", ["ant/1", "bee/2"])
    ended = seer(capfd, "shard", f"source={source}", f"output={tmp_path / 'o'}", f"labels={word}")
    assert ended.status == 78 and says(ended.result["error"], f"labels={word}") and not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("holdout", "total", "count"),
    [
        ("20%", 10, 2),
        ("20%", 12, 2),
        (0.25, 10, 2),
        ("0.5", 9, 4),
        ("2.5%", 1000, 25),
        (3, 10, 3),
        (0, 10, 0),
        ("0%", 10, 0),
        (1, 2, 1),
    ],
)
def test_a_share_is_held_out_in_whole_images(holdout, total, count):
    assert held_out(holdout, total) == count


@pytest.mark.parametrize("holdout", ["20%", 10, "100%", -1, "-5%", "101%", "some", 5.0, "1%"])
def test_a_holdout_that_leaves_nothing_or_takes_less_than_an_image_is_refused(holdout):
    with pytest.raises(RequestError, match=naming(f"holdout={holdout}")):
        held_out(holdout, 1 if holdout == "20%" else 10)


def test_a_fifth_is_held_out_and_shares_no_image_with_the_rest(tmp_path, capfd):
    source = spread(tmp_path / "x", [f"{'ab'[n % 2]}/{n}" for n in range(20)])
    ended = seer(
        capfd, "shard", f"source={source}", f"output={tmp_path / 'o'}", "holdout=20%", "labels=folder", "processes=1"
    )
    assert ended.status == 0 and {name: part["pictures"] for name, part in ended.result["parts"].items()} == {
        "test": 4, "train": 16,
    }  # fmt: skip
    sides = [written(tmp_path / "o" / part) for part in ("train", "test")]
    assert not sides[0].keys() & sides[1].keys() and len(sides[0] | sides[1]) == 20
    counted = [ended.result["parts"][part]["per_class"] for part in ("train", "test")]
    assert [{k: list(side.values()).count(k) for k in sorted({*side.values()})} for side in sides] == counted


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    place = tmp_path_factory.mktemp("weights")
    write_shards(sample.samples(16, seed=1), place / "pictures", total=16, per_shard=16)
    assert main(["pretrain", *SMALL, f"data.source={place / 'pictures'}", f"output={place / 'run'}", "steps=1"]) == 0
    return place / "run"


@pytest.mark.slow
def test_a_figure_on_the_train_images_themselves_says_so(tmp_path, capfd, weights):
    """kNN was 0.72 instead of 0.27 where data.test was data.train, and no word was said."""
    train, other = folder(tmp_path / "a", ["ant", "bee"]), folder(tmp_path / "b", ["ant", "bee", "cat"], 5)
    words = ("evaluate", "eval=knn", f"weights={weights}", "data.size=32", f"data.train={train}")
    same = seer(capfd, *words, f"data.test={train}")
    assert (same.result["overlap"], same.result["overlap_share"]) == (8, 1.0) and says(
        same.words, "8 of the 8", "100.0%"
    )
    partly = seer(capfd, *words, f"data.test={other}")
    assert (partly.result["overlap"], partly.result["overlap_share"]) == (8, 8 / 15)
    assert partly.result["per_class"] == {"train": {"ant": 4, "bee": 4}, "test": {"ant": 5, "bee": 5, "cat": 5}}
    assert (partly.result["classes"], partly.result["train"], partly.result["test"]) == (2, 8, 15)


@pytest.mark.slow
def test_labels_of_a_table_give_the_figure_of_the_folders(tmp_path, capfd, weights):
    train, test = folder(tmp_path / "a", ["ant", "bee", "cat"]), folder(tmp_path / "b", ["bee", "cat"])
    for source in (train, test):
        rows = [(str(path.relative_to(tmp_path)), path.parent.name) for path in sorted(source.rglob("*.png"))]
        with open(tmp_path / f"{source.name}.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows)
    both = [f"data.train={train}", f"data.test={test}", f"weights={weights}", "data.size=32"]
    for labels in (f"{tmp_path}/a.csv,{tmp_path}/b.csv", f"{tmp_path}/a.csv,folder", f"folder,{tmp_path}/b.csv"):
        ended = seer(capfd, "evaluate", "eval=knn", *both, f"data.labels={labels}")
        assert ended.status == 0 and ended.result["knn_top1"] == 1.0 and ended.result["test"] == 8, ended.words


@pytest.mark.slow
def test_a_head_learns_names_that_look_like_other_things_from_a_table_and_goes_on(tmp_path, capfd):
    """Half of the images have no label: they are left out, and not counted as bad."""
    source = spread(tmp_path / "x", [str(n) for n in range(40)])
    with open(tmp_path / "l.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows((f"{n}.png", ODD[n // 2 % 10]) for n in range(0, 40, 2))
    names = sorted(ODD)
    words = (
        *WORDS,
        f"data.source={source}",
        f"data.labels={tmp_path / 'l.csv'}",
        f"output={tmp_path / 'run'}",
        "batch=4",
    )
    ended = seer(capfd, *words, "steps=2")
    assert ended.status == 0, ended.words
    assert ended.result["skipped"] == 0 and ended.result["per_class"] == dict.fromkeys(names, 2)
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["task"]["classes"] == names
    again = seer(capfd, *words, "steps=2")
    assert again.status == 0, again.words


@pytest.mark.slow
def test_a_head_learns_classes_of_folders_whose_names_are_no_text(tmp_path, capfd):
    source = folder(tmp_path / "x", ["ant", "bee"])
    for n, name in enumerate((b"caf\xe9", b"a\nb")):
        (source / ("ant", "bee")[n]).rename(source / name.decode("utf-8", "surrogateescape"))
    words = (*WORDS, f"data.source={source}", f"output={tmp_path / 'run'}", "batch=4", "steps=1")
    for _ in range(2):
        ended = seer(capfd, *words)
        assert ended.status == 0, ended.words
        assert ended.result["per_class"] == {"a\nb": 4, "caf\udce9": 4}


@pytest.mark.slow
def test_a_head_that_began_with_the_folders_that_directly_hold_images_goes_on_with_them(tmp_path, capfd):
    """Earlier versions had no data.labels, and a class was always the folder that directly holds an image."""
    source = spread(tmp_path / "x", [f"{place}/{n}" for place in ("ant/deep", "bee", "cat") for n in range(4)])
    words = (*WORDS, f"data.source={source}", f"output={tmp_path / 'run'}", "batch=4", "steps=2")
    begun = seer(capfd, *words, "data.labels=folder:-1")
    assert begun.status == 0 and begun.result["per_class"] == {"bee": 4, "cat": 4, "deep": 4}
    kept = tmp_path / "run/config.yaml"
    config = yaml.safe_load(kept.read_text())
    del config["data"]["labels"]
    kept.write_text(yaml.safe_dump(config))
    again = seer(capfd, *words)
    assert again.status == 0 and "is complete" in again.words, again.words
    assert again.result["per_class"] == {"bee": 4, "cat": 4, "deep": 4}
    assert seer(capfd, *words, "data.labels=folder:1").status == 78


@pytest.mark.slow
def test_the_probe_of_a_run_counts_what_it_used_and_tells_an_overlap(tmp_path, capfd):
    train, test = folder(tmp_path / "a", ["ant", "bee"]), folder(tmp_path / "b", ["ant", "bee"], 5)
    words = (f"data.source={train}", f"eval.train={train}", f"eval.test={test}", "batch=8", "steps=1")
    ended = seer(capfd, "pretrain", *SMALL, *words, f"output={tmp_path / 'run'}")
    assert ended.status == 0 and says(ended.words, "8 of the 10", "80.0%")
    assert ended.result["probe"] == {
        "classes": 2, "train": 8, "test": 10, "overlap": 8, "overlap_share": 0.8,
        "per_class": {"train": {"ant": 4, "bee": 4}, "test": {"ant": 5, "bee": 5}},
    }  # fmt: skip


@pytest.mark.slow
def test_a_head_that_is_asked_about_what_it_learned_from_says_so(tmp_path, capfd):
    source = folder(tmp_path / "x/train", ["ant", "bee"]).parent
    folder(tmp_path / "x/test", ["ant", "bee"], 2)
    words = (*WORDS, f"data.source={source}", "batch=4", "steps=1", f"eval.train={source / 'train'}")
    ended = seer(capfd, *words, f"eval.test={source / 'test'}", f"output={tmp_path / 'run'}")
    assert ended.status == 0 and says(ended.words, "4 of the 4", "100.0%") and ended.result["probe"]["learned"] == 4
    assert ended.result["per_class"] == {"ant": 6, "bee": 6}  # train and test are no classes


def test_images_are_known_again_by_file_and_by_tar(tmp_path):
    one, other = sharded(tmp_path / "a", ["ant", "bee"]), sharded(tmp_path / "b", ["ant", "bee"])
    tars, files = open_shards([one]), open_shards(tmp_path / "a/loose")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for source, shards, count in (
        (one, tars, 8), (other, tars, 0), (tmp_path / "link/shards", tars, 8), (tmp_path / "a/loose", tars, 0),
        (tmp_path / "link/loose", files, 8), (tmp_path / "b/loose", files, 0), (one, files, 0),
    ):  # fmt: skip
        assert learned(shards, LabelledImages(open_shards(source), size=16)) == count


def test_labels_for_a_task_that_learns_none_are_refused(tmp_path, capfd):
    source = folder(tmp_path / "a", ["ant", "bee"])
    ended = seer(capfd, "pretrain", *SMALL, f"data.source={source}", "data.labels=folder", f"output={tmp_path / 'run'}")
    assert ended.status == 78 and says(ended.result["error"], "data.labels=folder") and not (tmp_path / "run").exists()
