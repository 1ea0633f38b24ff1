"""Several networks in one command: equal to each evaluation by itself, and what few labels are worth against hand-made draws."""

import csv
import itertools
import math
from pathlib import Path

import pytest
import torch

from seer.compare.suite import Row, worth
from seer.data import synthetic as sample
from seer.data.shards.writer import write_shards
from seer.models.regnet import RegNet
from seer.run.weights import digest, load
from tests.program import SMALL, last_of_each, seer, start, wait

TINY = (
    *(word for word in SMALL if not word.startswith(("model=", "augment"))),
    *("model=regnety_tiny", "steps=1", "batch=8"),
)
FAST = ("eval.iterations=5", "eval.parts=[1,0.5]", "eval.draws=3", "data.size=32", "device=cpu")
VARYING = {"seconds", "date", "command"}


def row(name: str, kind: str, draws: dict[str, list[float]]) -> Row:
    about = {"name": name, "kind": kind, "shape": "s", "size": 32, "images_seen": 0, "parameters": 1, "weights": None}
    return Row(about, {f"lowshot_images/{part}": 10.0 for part in draws}, {}, draws)


def test_what_training_is_worth_is_the_mean_of_differences_draw_by_draw():
    """The draws lie far apart, and both networks alike: the interval is that of their difference."""
    base = row("untrained", "scratch", {"1": [0.2, 0.5, 0.8]})
    better = row("better", "self-supervised", {"1": [0.31, 0.59, 0.9]})
    worse = row("worse", "supervised", {"1": [0.1, 0.41, 0.69]})
    open_ = row("open", "imported", {"1": [0.3, 0.4, 0.85]})
    found = {one["name"]: one for one in worth([base, better, worse, open_], 50)}
    differences = [0.11, 0.09, 0.1]
    mean = sum(differences) / 3
    deviation = math.sqrt(sum((d - mean) ** 2 for d in differences) / 2)
    half = 4.3027 * deviation / math.sqrt(3)  # Student's t with 2 degrees of freedom
    assert found["better"]["difference"] == pytest.approx(0.1)
    assert found["better"]["interval95"] == pytest.approx([mean - half, mean + half])
    assert found["better"]["says"].endswith("it was worth it") and "10.0 points above" in found["better"]["says"]
    assert "worse than none" in found["worse"]["says"] and "below" in found["worse"]["says"]
    assert "not seen to be worth it" in found["open"]["says"] and found["open"]["interval95"][0] < 0
    assert all("the same 50 test images" in one["says"] and "frozen" in one["says"] for one in found.values())


def test_one_draw_leaves_it_open_and_without_an_untrained_network_nothing_is_said():
    base, other = row("untrained", "scratch", {"10%": [0.2]}), row("x", "imported", {"10%": [0.9]})
    (one,) = worth([base, other], 9)
    assert one["interval95"] is None and "open" in one["says"] and "10% of the labels" in one["says"]
    assert worth([other], 9) == []


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    """A run of SwAV, one of heads, one of heads that goes on from the first, and weights without a request of ours."""
    from seer.cli.main import main

    folder = tmp_path_factory.mktemp("networks")
    for part, first in (("train", 0), ("test", 100)):
        write_shards(sample.samples(24, seed=1, first=first), folder / part, total=24, per_shard=24)
    source = f"data.source={folder / 'train'}"
    swav = ("augment=small", "augment.sizes=[32,16]", "augment.counts=[2,1]")
    heads = [word for word in TINY if not word.startswith("task.")] + [
        "task=heads",
        "augment=one_view",
        "augment.size=32",
    ]
    for name, words in (
        ("swav", (*TINY, *swav)),
        ("heads", heads),
        ("adapted", (*heads, f"weights={folder / 'swav'}")),
    ):
        assert main(last_of_each(("pretrain", *words, source, f"output={folder / name}"))) == 0
    torch.manual_seed(5)
    foreign = RegNet([32, 64, 160], [1, 1, 1], [16, 16, 16])
    torch.save(foreign.state_dict(), folder / "foreign.pth")
    return {name: folder / name for name in ("train", "test", "swav", "heads", "adapted", "foreign.pth")}


def words(places: dict[str, Path], *names: str) -> tuple[str, ...]:
    weights = ",".join(str(places[name]) for name in names)
    return ("evaluate", f"weights=[{weights}]", f"data.train={places['train']}", f"data.test={places['test']}")


@pytest.mark.slow
def test_a_comparison_tells_of_each_network_what_it_is_and_what_each_evaluation_says(places, tmp_path, capfd):
    given = words(places, "swav", "heads", "adapted", "foreign.pth")
    ended = seer(capfd, *given, "eval=suite", *FAST, f"output={tmp_path / 'out'}")
    assert ended.status == 0, ended.words
    rows = ended.result["rows"]
    # one untrained network for three runs of a shape, and one for what wants images of another size
    told = {one["name"]: (one["kind"], one["images_seen"]) for one in rows}
    assert told["swav"] == ("self-supervised", 8) and told["heads"] == ("supervised", 8)
    assert told["adapted"] == ("adapted", 8) and told["foreign.pth"] == ("imported", None)
    assert [one["kind"] for one in rows].count("scratch") == len({(o["parameters"], o["size"]) for o in rows})
    for one in rows:
        assert one["interval95"]["knn_top1"][0] <= one["knn_top1"] <= one["interval95"]["knn_top1"][1]
        assert one["weights_sha256"] and one["parameters"] > 0
    (swav,) = [one for one in rows if one["name"] == "swav"]
    assert swav["weights_sha256"] == digest(load(str(places["swav"]))[0])
    for kind, more in (("knn", ()), ("lowshot", ("eval.iterations=5", "eval.parts=[1,0.5]", "eval.draws=3"))):
        alone = seer(capfd, *words(places, "swav"), f"eval={kind}", "data.size=32", *more)
        assert alone.status == 0, alone.words
        for name in alone.result["interval95"]:
            assert swav[name] == alone.result[name] and swav["interval95"][name] == alone.result["interval95"][name]
        for key in ("data", "seer", "commit"):
            assert ended.result[key] == alone.result[key]
    assert {"command", "seed", "torch", "device", "data", "eval"} <= set(ended.result) and ended.result["seed"] == 0
    said = [one["says"] for one in ended.result["worth"]]
    assert len(said) == 2 * 4 and all(one in ended.words for one in said)
    with open(tmp_path / "out" / "suite.csv", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [one["name"] for one in table] == [one["name"] for one in rows]
    assert float(table[0]["knn_top1/low95"]) == rows[0]["interval95"]["knn_top1"][0]
    assert "foreign.pth" in (tmp_path / "out" / "suite.svg").read_text(encoding="utf-8")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"result.json", *ended.result["files"]}


@pytest.mark.slow
def test_a_comparison_is_the_same_again_and_on_two_ranks(places, tmp_path):
    given = (*words(places, "swav", "foreign.pth"), "eval=suite", *FAST, "data.size=32")
    ended = [wait(start(*given, f"output={tmp_path / str(i)}", ranks=ranks)) for i, ranks in enumerate((1, 1, 2))]
    assert [one.status for one in ended] == [0, 0, 0], ended[2].words
    results = [{k: v for k, v in one.result.items() if k not in VARYING} for one in ended]
    for one, other in itertools.pairwise(results):
        assert one == other
    assert {row["size"] for row in results[0]["rows"]} == {32}  # also of weights that want another size by themselves
    for name in ended[0].result["files"]:
        assert len({(tmp_path / str(i) / name).read_bytes() for i in range(3)}) == 1


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("eval=knn",), "eval=suite"),
        (("eval=suite", "eval.run=[knn,head]"), "eval.run"),
        (("eval=suite", "eval.run=[knn]", "eval.plot=linear_top1"), "eval.plot"),
    ],
)
def test_a_wrong_word_of_a_comparison_is_told(places, capfd, given, named):
    ended = seer(capfd, *words(places, "swav", "foreign.pth"), *given, "data.size=32")
    assert ended.status == 78 and named in ended.words


def test_a_path_with_a_comma_is_one_path(places, capfd, tmp_path):
    odd = tmp_path / "a,b.pth"
    odd.write_bytes(places["foreign.pth"].read_bytes())
    given = (f"weights={odd}", f"data.train={places['train']}", f"data.test={places['test']}", "data.size=32")
    ended = seer(capfd, "evaluate", "eval=knn", *given)
    assert ended.status == 0 and ended.result["weights"] == str(odd), ended.words
