"""A classifier on a backbone: its loss by hand, on one process and on two ranks in each mode, resumed to the bit."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from seer.core.errors import RequestError
from seer.core.records import Batch
from seer.data import synthetic as sample
from seer.data.multicrop import MultiCrop
from seer.data.shards.writer import write_shards
from seer.data.transforms.one_view import OneView
from seer.models.regnet import RegNet
from seer.tasks.heads import HeadsTask
from tests.program import losses, seer, start, wait

# Three blocks, float32, SGD, statistics over all ranks: what two ranks and one process can agree on to 1e-4.
WORDS = (
    "pretrain", "task=heads", "augment=one_view", "augment.size=16", "model=regnety_tiny", "model.widths=[8,16,24]",
    "model.group_widths=[8,8,8]", "optim=sgd", "optim.momentum=0.9", "schedule.peak=0.05", "schedule.warmup=0", "batch=16",
    "steps=10", "every.log=1", "every.evaluate=0", "every.checkpoint=4", "log.tensorboard=false", "data.threads=1",
    "parallel.device=cpu",
)  # fmt: skip


def backbone() -> RegNet:
    torch.manual_seed(0)
    return RegNet(widths=[8, 16], depths=[1, 1], group_widths=[8, 8])


def batch(task: HeadsTask, **targets: torch.Tensor) -> Batch:
    made = task.transform.layout(6, painted=True)
    views = torch.randint(256, made["views/16"][1], dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return Batch({"views/16": views.contiguous(memory_format=torch.channels_last), **targets}, [], 6)


def view_of(given: Batch, task: HeadsTask) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (task.transform.mean, task.transform.std))
    return (given.fields["views/16"].float() / 255 - mean) / std


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_one_class_is_cross_entropy_by_hand(smoothing):
    task = HeadsTask(backbone(), OneView(16), classes=["a", "b", "c"], smoothing=smoothing)
    given = batch(task, label=torch.tensor([0, 1, 2, 2, 1, 0]))
    task.model.eval()
    scores = (task.backbone(view_of(given, task)) @ task.head.weight.T + task.head.bias).double()
    logs = scores - scores.logsumexp(1, keepdim=True)
    soft = nn.functional.one_hot(given.fields["label"], 3) * (1 - smoothing) + smoothing / 3
    output = task.loss(given)
    assert output.loss.item() == pytest.approx(-(soft * logs).sum(1).mean().item(), abs=1e-6)
    right = (scores.argmax(1) == given.fields["label"]).float().mean().item()
    assert output.metrics["classify/train_right"].item() == pytest.approx(right)
    assert task.chance_loss == pytest.approx(math.log(3))


def test_the_loss_of_several_classes_is_binary_cross_entropy_by_hand():
    task = HeadsTask(backbone(), OneView(16), classes=["a", "b"], several=True)
    wanted = torch.tensor([[1.0, 0], [0, 0], [1, 1], [0, 1], [1, 0], [0, 0]])
    given = batch(task, labels=wanted)
    task.model.eval()
    p = torch.sigmoid((task.backbone(view_of(given, task)) @ task.head.weight.T + task.head.bias).double())
    by_hand = -(wanted * p.log() + (1 - wanted) * (1 - p).log()).mean().item()
    assert task.loss(given).loss.item() == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize(
    "wrong", [{"classes": ["a"]}, {"classes": ["a", "a"]}, {"classes": ["a", "b"], "smoothing": 1.0}, {"classes": []}]
)
def test_what_cannot_be_learned_is_refused(wrong):
    with pytest.raises(RequestError):
        HeadsTask(backbone(), OneView(16), **wrong)


def test_views_of_another_transform_are_refused():
    with pytest.raises(RequestError) as caught:
        HeadsTask(backbone(), MultiCrop(sizes=[16], counts=[2], scales=[[0.3, 1.0]]), classes=["a", "b"])
    assert "one_view" in str(caught.value)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    card = {"classes": list(sample.SHAPE_CLASSES)}
    write_shards(sample.samples(80, seed=3), folder / "train", total=80, per_shard=40, card=card)
    write_shards(sample.samples(40, seed=4), folder / "test", total=40, per_shard=40, card=card)
    return folder


@pytest.fixture(scope="module")
def alone(labelled, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("heads") / "run"
    probe = (f"eval.train={labelled / 'train'}", f"eval.test={labelled / 'test'}")
    ended = wait(start(*WORDS, *probe, f"data.source={labelled / 'train'}", f"output={run}"))
    assert ended.status == 0, ended.words
    return run


@pytest.mark.slow
def test_a_run_knows_its_classes_and_tells_the_accuracy_of_its_head(alone):
    rows = [json.loads(line) for line in (alone / "metrics.jsonl").read_text().splitlines()]
    judged = [row for row in rows if "classify/top1" in row]
    assert [row["step"] for row in judged] == [0, 9] and all(0 <= row["classify/top1"] <= 1 for row in judged)
    assert losses(alone)[0] == pytest.approx(math.log(len(sample.SHAPE_CLASSES)), abs=0.05)
    assert json.loads((alone / "result.json").read_text())["classify/top1"] == judged[-1]["classify/top1"]
    config = (alone / "config.yaml").read_text()
    assert all(f"- {name}" in config for name in sample.SHAPE_CLASSES)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_two_ranks_give_the_losses_of_one_process(labelled, alone, tmp_path, mode):
    words = (*WORDS, f"parallel.mode={mode}", f"data.source={labelled / 'train'}", f"output={tmp_path / 'run'}")
    ended = wait(start(*words, ranks=2))
    assert ended.status == 0, ended.words
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), abs=1e-4)


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_to_the_bit(labelled, alone, tmp_path, monkeypatch, capfd):
    import signal

    after = HeadsTask.after_step

    def stop(task: HeadsTask, step: int) -> None:
        after(task, step)
        if step == 5:
            signal.raise_signal(signal.SIGTERM)

    words = (*WORDS, f"data.source={labelled / 'train'}", f"output={tmp_path / 'run'}")
    with monkeypatch.context() as patch:
        patch.setattr(HeadsTask, "after_step", stop)
        assert seer(capfd, *words).status == 75
    assert seer(capfd, *words).status == 0
    assert losses(tmp_path / "run") == losses(alone)


@pytest.mark.slow
def test_images_without_labels_are_a_wrong_request(images, tmp_path, capfd):
    ended = seer(capfd, *WORDS, f"data.source={images}", f"output={tmp_path / 'run'}")
    assert ended.status == 78 and "label" in ended.result["error"] and not (tmp_path / "run").exists()
