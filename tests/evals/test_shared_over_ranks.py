"""Features that ranks share out are those of one process, to the last bit, also where images cannot be read."""

import pytest
import torch

from seer.data.shards.open import open_shards
from seer.evals.features import Alone, LabelledImages, PlainImages, extract
from seer.evals.knn import KNN, baselines
from seer.evals.linear import Linear
from seer.evals.lowshot import LowShot
from seer.evals.rankme import RankMe
from seer.evals.uniformity import Alignment, Uniformity
from seer.models.regnet import RegNet
from tests.data.image_files import png
from tests.ranks import run_ranks

HOW = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
BATCH = 3  # so that 11 images fall into four blocks, which two and three ranks share out unevenly


def folder(place, first: int, broken: tuple[int, ...] = ()):
    for i in range(11):
        path = place / ("ant", "bee", "cat")[i % 3] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(first + i)[: 40 if i in broken else None])
    return place


def everything(world, train: str, test: str) -> dict:
    """Every evaluation that needs no heads, on features of one network."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = RegNet([16, 32], [1, 1], [8, 8], stem_stride=1).eval()
    sets = []
    for place in (train, test):
        like = sets[0] if sets else None
        sets.append(LabelledImages(open_shards(place), size=32, like=like))
        sets[-1].group = world.group
    plain = PlainImages(open_shards(train), size=32)
    plain.group = world.group
    task, options = Alone(network), {**HOW, "batch": BATCH}
    features, labels = extract(network, sets[0], **options)
    found = {"features": features, "labels": labels, **baselines(*sets, k=3)}
    shots = {"parts": (1, 0.5), "draws": 2, "iterations": 5}
    for one in (
        KNN(*sets, k=3, **options),
        Linear(*sets, penalty=(1e-3, 1e-1), iterations=5, **options),
        LowShot(*sets, **shots, **options),
        RankMe(plain, None, most=7, **options),
        Uniformity(plain, None, most=7, **options),
        Alignment(plain, None, most=7, **options),
    ):
        found |= {name: value for name, value in one.run(task).items() if value == value}
    found["used"] = [sets[0].used(), sets[1].used(), plain.used()]
    found["broken"] = sorted(sets[0].broken)
    return found


@pytest.mark.slow
def test_every_evaluation_is_the_same_on_one_two_and_three_ranks(tmp_path):
    # of the second block all are broken: the rank whose turn it is has nothing to run the network on
    train, test = folder(tmp_path / "a", 0, broken=(9, 1, 4)), folder(tmp_path / "b", 50)
    (alone,) = run_ranks(everything, 1, str(train), str(test))
    assert len(alone["features"]) == 8 and len(alone["broken"]) == 3
    assert {"knn_top1", "linear_top1", "lowshot_top1/1", "rankme", "uniformity", "alignment"} <= set(alone)
    for ranks in (2, 3):
        for each in run_ranks(everything, ranks, str(train), str(test)):
            assert torch.equal(each.pop("features"), alone["features"])
            assert torch.equal(each.pop("labels"), alone["labels"])
            assert each == {name: value for name, value in alone.items() if name not in ("features", "labels")}
