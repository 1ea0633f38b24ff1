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
from seer.losses.boxes import assign, focal, giou
from seer.models.heads.detect import boxes_of
from seer.models.regnet import RegNet
from seer.tasks.heads import HeadsTask
from tests.program import finished, losses, seer

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
    ended = finished(*WORDS, *probe, f"data.source={labelled / 'train'}", f"output={run}")
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
    ended = finished(*words, ranks=2)
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


def cells(n: int = 4, side: float = 32.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two stages of a view of 32: 4 x 4 cells of 8 pixels, 2 x 2 of 16."""
    centers, strides = [], []
    for k in (n, n // 2):
        stride = side / k
        y, x = torch.meshgrid(torch.arange(k), torch.arange(k), indexing="ij")
        centers.append((torch.stack([x, y], -1).reshape(-1, 2) + 0.5) * stride)
        strides.append(torch.full((k * k,), stride))
    return torch.cat(centers), torch.cat(strides)


def test_focal_loss_and_overlap_are_torchvisions():
    from torchvision.ops import generalized_box_iou, sigmoid_focal_loss

    g = torch.Generator().manual_seed(0)
    scores, target = torch.randn(50, 3, generator=g) * 4, (torch.rand(50, 3, generator=g) < 0.2).float()
    assert torch.allclose(focal(scores, target), sigmoid_focal_loss(scores, target, reduction="sum"), rtol=1e-5)
    corner, size = torch.rand(2, 40, 2, generator=g) * 20, torch.rand(2, 40, 2, generator=g) * 20
    a, b = (torch.cat([c, c + s], 1) for c, s in zip(corner, size))
    assert torch.allclose(giou(a, b), generalized_box_iou(a, b).diagonal(), atol=1e-5)


def test_each_box_has_cells_of_the_stage_of_its_size_and_the_smaller_box_wins():
    centers, strides = cells()
    large, small, tiny = (
        [2.0, 2, 31, 31],
        [9.0, 9, 23, 23],
        [16.1, 16.1, 17, 17],
    )  # tiny: between the centers of all cells
    edges = torch.tensor([large, small, tiny, [0.0, 0, 0, 0]])
    of = assign(centers, strides, edges, 3)
    assert set(of.tolist()) == {-1, 0, 1, 2} or set(of.tolist()) == {-1, 1, 2}
    for box in (0, 1, 2):
        mine = centers[of == box]
        if box < 2:
            assert ((mine > edges[box, :2]) & (mine < edges[box, 2:])).all()
    assert (of == 2).sum() == 1 and (assign(centers, strides, edges, 0) == -1).all()
    alone = assign(centers, strides, torch.tensor([[0.0, 0, 100, 100]]), 1)  # 100 pixels: beyond 8 strides of 8
    assert (strides[alone == 0] == 16).all() and (alone == 0).any()


@pytest.mark.parametrize("seed", range(20))
def test_no_box_is_without_a_cell_unless_a_smaller_one_has_all_of_its_cells(seed):
    g = torch.Generator().manual_seed(seed)
    centers, strides = cells()
    corner = torch.rand(3, 2, generator=g) * 30
    edges = torch.cat([corner, corner + 0.5 + torch.rand(3, 2, generator=g) * 20], 1)
    area = (edges[:, 2:] - edges[:, :2]).prod(1)
    of = assign(centers, strides, edges, 3)
    for box in range(3):
        alone = assign(centers, strides, edges[box : box + 1], 1) == 0
        assert alone.any() and all(area[other] <= area[box] for other in of[alone].tolist())


def mixed(backbone: RegNet) -> HeadsTask:
    rows = {
        "what": {"kind": "classify", "classes": ["a", "b"]},
        "where": {"kind": "map", "classes": ["x", "y", "z"], "stages": ["stage1"], "weight": 0.5},
        "size": {"kind": "regress", "outputs": 2},
        "things": {"kind": "detect", "classes": ["u"], "width": 8},
    }
    return HeadsTask(backbone, OneView(32), heads=rows)


def mixed_batch(task: HeadsTask) -> Batch:
    layout = task.transform.layout(2, painted=True)
    g = torch.Generator().manual_seed(1)
    fields = {n: torch.zeros(shape, dtype=dtype) for n, (dtype, shape) in layout.items()}
    fields["views/32"] = torch.randint(256, layout["views/32"][1], dtype=torch.uint8, generator=g)
    fields["mask"] = torch.randint(3, (2, 32, 32), generator=g).to(torch.uint8)
    fields["mask"][0, :5] = 255
    fields["label"] = torch.tensor([0, 1])
    fields["values"] = torch.tensor([[1.0, 2], [3, 4]])
    fields["boxes"][0, 0], fields["box_count"][0] = torch.tensor([4.0, 4, 20, 20]), 1
    fields["box_label"][:] = -1
    fields["box_label"][0, 0] = 0
    return Batch(fields, [], 2)


def test_several_heads_share_one_pass_and_their_losses_add_up_by_weight():
    task = mixed(backbone())
    given = mixed_batch(task)
    task.model.eval()
    output = task.loss(given)
    answers = task.model(view_of_32(given, task))
    by_hand = nn.functional.cross_entropy(answers["what"], given.fields["label"])
    target = given.fields["mask"].long()
    by_hand = by_hand + 0.5 * nn.functional.cross_entropy(answers["where"], target, ignore_index=255)
    by_hand = by_hand + (answers["size"] - given.fields["values"]).square().mean() + output.metrics["things/loss"]
    assert output.loss.item() == pytest.approx(by_hand.item(), abs=1e-5)
    assert set(task.modules()) == {"backbone", "what", "where", "size", "things"} and task.chance_loss is None
    known = target != 255
    right = ((answers["where"].argmax(1) == target) & known).sum() / known.sum()
    assert output.metrics["where/train_right"].item() == pytest.approx(right.item())
    assert answers["where"].shape == (2, 3, 32, 32) and {"label", "mask", "values", "boxes"} == set(task.targets)


def view_of_32(given: Batch, task: HeadsTask) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (task.transform.mean, task.transform.std))
    return (given.fields["views/32"].float() / 255 - mean) / std


@pytest.mark.parametrize(
    ("heads", "words"),
    [
        ({}, "at least one head"), ({"a": {"kind": "guess"}}, "classify, tags"), ({"a": {}}, "kind"),
        ({"a": {"kind": "map", "classes": ["x"]}}, "at least 2"), ({"a": {"kind": "classify", "classes": "ab", "size": 3}}, "a.size"),
        ({"a": {"kind": "map", "classes": ["x", "y"], "stages": ["stage9"]}}, "stage9"),
        ({"backbone": {"kind": "regress"}}, "taken"), ({"a": {"kind": "regress", "outputs": 0}}, "outputs=0"),
        ({"a": {"kind": "regress", "weight": 0.0}}, "weight=0"), ({"a-b": {"kind": "regress"}}, "letters"),
    ],
)  # fmt: skip
def test_heads_that_cannot_be_are_refused(heads, words):
    with pytest.raises(RequestError) as caught:
        HeadsTask(backbone(), OneView(32), heads=heads)
    assert words in str(caught.value)


def test_a_mask_that_is_void_everywhere_teaches_nothing_and_is_no_nan():
    task = HeadsTask(backbone(), OneView(16), heads={"m": {"kind": "map", "classes": ["x", "y"]}})
    given = batch(task, mask=torch.full((6, 16, 16), 255, dtype=torch.uint8))
    output = task.loss(given)
    output.loss.backward()
    assert output.loss.item() == 0 and all(p.grad is None or p.grad.abs().max() == 0 for p in task.head.parameters())


@pytest.mark.slow
def test_a_detector_learns_two_images_by_heart():
    torch.manual_seed(0)
    body = RegNet(widths=[16, 24, 32], depths=[1, 1, 1], group_widths=[8, 8, 8], stem_stride=1)
    task = HeadsTask(body, OneView(32), heads={"d": {"kind": "detect", "classes": ["u", "v"], "width": 32}})
    boxes = [torch.tensor([[2.0, 3, 12, 14], [18, 16, 30, 29]]), torch.tensor([[8.0, 6, 26, 22]])]
    labels = [torch.tensor([0, 1]), torch.tensor([1])]
    given = batch_of_boxes(task, boxes, labels)
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        task.loss(given).loss.backward()
        optimizer.step()
    task.model.eval()
    for found, edges, names in zip(
        boxes_of(task.model(view_of_32(given, task))["d"], (32, 32)), boxes, labels, strict=True
    ):
        best = found.edges[: len(edges)]
        for box, label in zip(edges, names):
            overlap = giou(best, box.expand_as(best))
            assert overlap.max() > 0.6 and found.labels[overlap.argmax()] == label


def batch_of_boxes(task: HeadsTask, boxes, labels) -> Batch:
    layout = task.transform.layout(len(boxes), painted=True)
    fields = {n: torch.zeros(shape, dtype=dtype) for n, (dtype, shape) in layout.items()}
    for i, (edges, names) in enumerate(zip(boxes, labels)):
        for box, label in zip(edges.int().tolist(), names.tolist()):
            fields["views/32"][i, label, box[1] : box[3], box[0] : box[2]] = 200
        fields["boxes"][i, : len(edges)], fields["box_label"][i, : len(edges)] = edges, names
        fields["box_count"][i] = len(edges)
    return Batch(fields, [], len(boxes))
