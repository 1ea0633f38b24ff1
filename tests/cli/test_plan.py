"""`seer plan`: the memory of a step by arithmetic that can be done again by hand, for networks no machine here can hold."""

import time

import pytest
import torch

from seer.models import zoo
from tests.program import seer

PARTS = ("weights", "gradients", "momentum", "gathered", "buffers", "pictures", "step")


@pytest.mark.parametrize("name", ["regnety_256gf", "regnety_10b"])
def test_the_largest_are_built_on_meta_in_less_than_a_second(name):
    start = time.process_time()
    with torch.device("meta"):
        zoo.build(name)
    assert time.process_time() - start < 1.0


@pytest.mark.slow
def test_seer_10b_fits_eight_gpus_of_80_gb_when_sharded(capfd):
    ended = seer(capfd, "plan", "recipe=seer_regnety_10b", "batch=128")
    plan = ended.result
    assert ended.status == 0 and plan["fits"] is True
    assert plan["parameters"] == pytest.approx(9628.9e6, abs=0.1e6)  # trunk 9,323.9, head 300.9, prototypes 4.1 million
    for name in ("weights", "gradients", "momentum"):
        assert plan[name] == pytest.approx(4 * plan["parameters"] / 8 / 1e9, abs=0.01)
    assert plan["gathered"] == pytest.approx(2 * (1842.59 + 409.66) / 1e3, abs=0.01)  # bfloat16, the two largest blocks
    assert plan["sum"] == pytest.approx(sum(plan[part] for part in PARTS), abs=0.05) and plan["sum"] < 72
    for words in ("stage4.block0         1842.59 M", "stage3.block16         409.66 M", "fits"):
        assert words in ended.words


@pytest.mark.slow
def test_unsharded_it_does_not_and_the_remedies_are_named(capfd):
    ended = seer(capfd, "plan", "recipe=seer_regnety_10b", "batch=128", "parallel.mode=ddp")
    assert ended.status == 0 and ended.result["fits"] is False
    assert ended.result["momentum"] == pytest.approx(38.52, abs=0.01)
    assert "does not fit; lower batch, or give parallel.mode=fsdp" in ended.words


@pytest.mark.slow
def test_less_is_kept_on_more_gpus_and_with_a_budget(capfd):
    words = ("plan", "model=regnety_16gf", "precision=bf16", "parallel.mode=fsdp", "batch=256")
    two, eight = (seer(capfd, *words, f"gpus={n}").result for n in (2, 8))
    assert eight["sum"] < two["sum"] and eight["weights"] == pytest.approx(two["weights"] / 4, abs=0.01)
    budget = seer(capfd, *words, "gpus=8", "parallel.remat=budget=4")
    assert budget.status == 0 and budget.result["step"] < eight["step"], budget.words


def test_a_batch_that_the_gpus_cannot_share_is_refused(capfd):
    ended = seer(capfd, "plan", "batch=100", "gpus=8")
    assert ended.status == 78 and "batch=100 over gpus=8" in ended.result["error"]
    assert "gpus=0: at least one" in seer(capfd, "plan", "gpus=0").result["error"]
    assert "apex has had no amp" in seer(capfd, "plan", "precision=apex_o1").result["error"]
