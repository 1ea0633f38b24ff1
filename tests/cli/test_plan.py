"""`seer plan`: the memory of a step by arithmetic that can be done again by hand, for networks no machine here can hold."""

import time

import pytest
import torch

from seer.models import zoo
from tests.messages import says
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
    assert says(ended.words, "does not fit", "batch", "parallel.mode=fsdp")


@pytest.mark.slow
def test_less_is_kept_on_more_gpus_and_with_a_budget(capfd):
    words = ("plan", "model=regnety_16gf", "precision=bf16", "parallel.mode=fsdp", "batch=256")
    two, eight = (seer(capfd, *words, f"gpus={n}").result for n in (2, 8))
    assert eight["sum"] < two["sum"] and eight["weights"] == pytest.approx(two["weights"] / 4, abs=0.01)
    budget = seer(capfd, *words, "gpus=8", "parallel.remat=budget=4")
    assert budget.status == 0 and budget.result["step"] < eight["step"], budget.words


@pytest.mark.slow
def test_what_the_backbone_costs_in_use_is_told(capfd):
    ended = seer(capfd, "plan", "model=regnety_400mf", "batch=64", "gpus=8")
    backbone = ended.result["backbone"]
    assert backbone["side"] == 224 and backbone["parameters"] == 3_903_144  # docs/zoo.md
    assert backbone["macs"] == pytest.approx(0.402e9 - 440_000, abs=0.5e6)  # there with a layer of 1000 classes
    assert says(ended.words, "3.90 M", "224")


def test_a_batch_that_the_gpus_cannot_share_is_refused(capfd):
    ended = seer(capfd, "plan", "batch=100", "gpus=8")
    assert ended.status == 78 and "batch=100 over gpus=8" in ended.result["error"]
    assert "gpus=0" in seer(capfd, "plan", "gpus=0").result["error"]
    assert says(seer(capfd, "plan", "precision=apex_o1").result["error"], "apex", "precision=fp16")


@pytest.mark.slow
def test_a_process_on_a_cpu_has_an_allocator_and_a_ring_of_batches_and_a_gpu_has_not(capfd):
    words = ("plan", "model=regnety_200mf", "augment=small", "batch=64", "gpus=1", "optim=adamw")
    gpu, cpu = (seer(capfd, *words, *more).result for more in ((), ("parallel.device=cpu",)))
    assert (gpu["device"], cpu["device"]) == ("gpu", "cpu") and "allocator" not in gpu
    assert cpu["allocator"] == pytest.approx(0.39 * cpu["step"], abs=0.01)
    for plan, parts in ((gpu, PARTS), (cpu, (*PARTS, "libraries", "allocator"))):
        assert plan["sum"] == pytest.approx(sum(plan[part] for part in parts), abs=0.04)


@pytest.mark.slow
def test_the_true_loss_is_counted(capfd):
    """With 60,000 prototypes scores are nearly all there is: at the least themselves and the gradient of the loss, of 8 x 4
    views, and the codes of 8 x 2."""
    words = ("plan", "model=regnety_200mf", "augment=small", "batch=8", "gpus=1", "task.prototypes=60000")
    plan, queued = seer(capfd, *words).result, seer(capfd, *words, "task.queue=512").result
    assert plan["step"] >= 4 * 60_000 * (2 * 8 * 4) / 1e9
    rows = 4 * 60_000 * 512 * 2 / 1e9
    assert queued["step"] - plan["step"] >= 2 * rows  # scores of the queue, and Sinkhorn's copy of them


@pytest.mark.slow
def test_adamw_takes_scratch_of_all_tensors_at_once_on_a_gpu(capfd):
    """A wide head and one small image: the update is the worst moment."""
    words = ("plan", "model=regnety_200mf", "augment=small", "batch=2", "gpus=1", "task.hidden=[32768,4096]")
    lars, adamw = (seer(capfd, *words, f"optim={name}").result for name in ("lars", "adamw"))
    assert adamw["step"] == pytest.approx(8 * adamw["parameters"] / 1e9, abs=0.01)
    assert lars["step"] < 0.8 * adamw["step"]


@pytest.mark.slow
def test_a_budget_is_compared_with_what_is_predicted_of_both_forms(capfd):
    ended = seer(capfd, "plan", "model=regnety_800mf", "augment=small", "budget=phone_5mb")
    assert ended.status == 0
    found = ended.result["backbone"]["budget"]
    assert found["float32"]["pass"] is found["int8"]["pass"] is False
    assert [(one["name"], one["form"]) for one in found["nearest"]] == [("regnety_400mf", "int8")]
    ended = seer(capfd, "plan", "model=regnety_400mf", "augment=small", "budget.file_mb=5")
    found = ended.result["backbone"]["budget"]
    assert found["float32"]["pass"] is False and found["int8"]["pass"] is True
    assert (found["nearest"][0]["name"], found["nearest"][0]["form"]) == ("this network", "int8")
    assert "budget" not in seer(capfd, "plan", "model=regnety_400mf", "augment=small").result["backbone"]
