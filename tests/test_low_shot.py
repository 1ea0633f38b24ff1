"""`benchmarks/low_shot.py`: both arms get the same images, words and choices, and differ in the weights they start from alone.

The figures of a toy say nothing; what is tested is that the comparison is one.
"""

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from seer.cli import config, evaluate
from seer.data.shards.open import open_shards
from seer.models.bundle import read_description
from seer.models.head_files import hash_of_tensors

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import low_shot  # noqa: E402


def test_what_is_kept_aside_is_of_each_class_and_the_rest_is_learned_from():
    labels = torch.tensor([0] * 9 + [1] * 3 + [2] + [0] * 5)
    rows = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])  # 9 of class 0, 3 of class 1, 1 of class 2
    parts = low_shot.split(labels, rows)
    assert parts["aside"].tolist() == [3, 7, 11] and parts["all"].tolist() == rows.tolist()
    assert sorted([*parts["fit"].tolist(), *parts["aside"].tolist()]) == rows.tolist()


def test_an_arm_is_ahead_where_student_s_interval_of_the_pairs_leaves_zero_out():
    stats = pytest.importorskip("scipy.stats")
    one, other = [0.50, 0.52, 0.47, 0.55, 0.51], [0.48, 0.47, 0.46, 0.50, 0.50]
    found = low_shot.difference(one, other)
    interval = stats.ttest_rel(one, other).confidence_interval(0.95)
    assert found["difference"] - found["half_width"] == pytest.approx(interval.low, abs=1e-6)
    assert found["difference"] + found["half_width"] == pytest.approx(interval.high, abs=1e-6)
    assert found["beats"] == (interval.low > 0) and found["beats"]
    assert not low_shot.difference(other, one)["beats"]
    # the same means, and pairs that do not agree
    assert not low_shot.difference(one, sorted(other, reverse=True))["beats"]


def test_words_are_told_apart_from_those_of_adapt_and_wrong_ones_end_the_program():
    need = ["train=a", "test=b", "weights=c", "output=d"]
    asked = low_shot.read([*need, "parts=4,1%", "tuned=2,1", "rates=0.1,0.2,0.3", "batch=64"])
    assert asked.parts == (4.0, 0.01) and asked.tuned == (2, 1) and asked.words == ("batch=64",)
    assert asked.grid[:2] == [("0.1", "200"), ("0.1", "600")] and len(asked.grid) == 6
    assert low_shot.at_edge(asked, ("0.2", "600")) == ["length"]
    for wrong in (need[:3], [*need, "draws=1"], [*need, "tuned=6"], [*need, "tuned=1,1,1"]):
        with pytest.raises(SystemExit):
            low_shot.read(wrong)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    words = low_shot.built_in(tmp_path_factory.mktemp("toy"))
    return words, low_shot.run(low_shot.read(words))


def configs(output: Path, name: str) -> list[dict]:
    return [yaml.safe_load((output / arm / name / "config.yaml").read_text()) for arm in low_shot.ARMS]


@pytest.mark.slow
def test_the_arms_differ_in_their_weights_alone(toy):
    words, _ = toy
    asked = low_shot.read(words)
    cells = [path.name for path in (asked.output / "pretrained").iterdir() if "aside" in path.name]
    assert len(cells) == 4  # two parts, two lengths
    for name in cells:
        pretrained, scratch = configs(asked.output, name)
        assert {key for key in pretrained if pretrained[key] != scratch[key]} == {"weights", "output"}
        assert scratch["weights"] is None and scratch["surgery"]["steps"] == []
        # what chooses sees images that it did not learn from, and none of the test images
        assert pretrained["data"]["source"].endswith("fit") and pretrained["eval"]["test"].endswith("aside")
    own = hash_of_tensors(load_file(Path(asked.weights) / "bundle" / "backbone.safetensors"))
    parents = [read_description(asked.output / arm / cells[0] / "bundle")["lineage"]["parent"] for arm in low_shot.ARMS]
    assert parents == [own, None]


@pytest.mark.slow
def test_a_draw_holds_so_many_images_of_each_class_and_they_are_those_of_train_with_their_class(toy):
    words, result = toy
    asked = low_shot.read(words)
    of = {}
    for shard in open_shards(asked.train):
        for row in range(len(shard)):
            fields = shard.read(0, row).fields
            of[fields["jpg"]] = shard.classes[int(fields["cls"])]
    for part, each in (("2", 2), ("20%", None)):
        for i in range(asked.draws):
            (shard,) = open_shards(str(asked.output / "few" / f"{part}-{i}" / "all"))
            found = [shard.read(0, row).fields for row in range(len(shard))]
            assert len({fields["jpg"] for fields in found}) == len(found) == result["parts"][part]["images"]
            assert all(of[fields["jpg"]] == shard.classes[int(fields["cls"])] for fields in found)
            counts, whole = Counter(of[fields["jpg"]] for fields in found), Counter(of.values())
            assert all(count == (each or round(0.2 * whole[name])) for name, count in counts.items())
            assert len(counts) == len(whole) == 10


@pytest.mark.slow
def test_each_arm_takes_what_did_best_aside_and_a_second_call_trains_nothing(toy, monkeypatch):
    words, result = toy
    monkeypatch.setattr(low_shot.adapt, "run", lambda *_: pytest.fail("trained again"))
    again = low_shot.run(low_shot.read(words))
    assert again["parts"] == result["parts"]
    for found in result["parts"].values():
        for arm in low_shot.ARMS:
            one = found["rows"][arm]
            assert (
                one["tuning"][f"{one['rate']} {one['length']}"] == max(one["tuning"].values())
                and len(one["tuning"]) == 2
            )
        ahead = found["over_scratch"]["pretrained"]["difference"]
        assert ahead == pytest.approx(found["rows"]["pretrained"]["top1"] - found["rows"]["scratch"]["top1"])
    with pytest.raises(SystemExit, match="seed"):
        low_shot.run(low_shot.read([*words, "seed=1"]))


@pytest.mark.slow
def test_the_linear_probe_beside_them_is_that_of_seer_evaluate_on_the_same_draws(toy):
    words, result = toy
    asked = low_shot.read(words)
    data = [f"weights={asked.weights}", f"data.train={asked.train}", f"data.test={asked.test}"]
    found = evaluate.run(config.read("evaluate", ["eval=lowshot", *data, "eval.parts=[2,0.2]", "eval.draws=2"]), [])
    rows = [part["rows"]["linear, pretrained"]["draws"] for part in result["parts"].values()]
    assert rows == list(found["draws"].values())
