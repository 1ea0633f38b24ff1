"""Mixup and cutmix: torchvision's own answer on pairs, the same for every split of a batch, and nothing drawn from elsewhere."""

import pytest
import torch
from torchvision.transforms import v2

from seer.core import rng
from seer.core.errors import RequestError
from seer.core.records import Batch
from seer.data.transforms.one_view import OneView
from seer.models.regnet import RegNet
from seer.tasks.heads import HeadsTask
from seer.tasks.mixing import mixing

KEY = rng.key(5, "mixing", 11)


def images(count: int = 8) -> torch.Tensor:
    made = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return made.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_each_pair_is_what_torchvision_makes_of_it(kind):
    x, label = images(), torch.tensor([0, 1, 2, 2, 1, 0, 0, 2])
    labels = torch.rand(8, 4, generator=torch.Generator().manual_seed(2))
    mix = mixing(0.7 * (kind == "mixup"), 0.7 * (kind == "cutmix"), {"a": "classify", "b": "tags"})
    found, fields = mix(x, {"label": label, "labels": labels, "color/16/gray": label}, 3, KEY)
    assert torch.equal(fields["color/16/gray"], label) and found.is_contiguous(memory_format=torch.channels_last)
    for first in range(0, 8, 2):
        pair = slice(first, first + 2)
        theirs = (v2.MixUp if kind == "mixup" else v2.CutMix)(alpha=0.7, num_classes=3)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(KEY & 0x7FFFFFFFFFFFFFFF)
            image, shares = theirs(x[pair], label[pair])
        assert torch.equal(found[pair], image) and torch.equal(fields["label"][pair], shares)
    assert not torch.equal(found, x)
    torch.testing.assert_close(fields["label"].sum(1), torch.ones(8))
    # the share of each target is that of the image
    share = fields["label"][0, 0]
    torch.testing.assert_close(fields["labels"][0], share * labels[0] + (1 - share) * labels[1])


def test_a_split_batch_is_mixed_as_the_whole_and_the_global_generator_stays():
    x, label, mix = images(), torch.arange(8) % 3, mixing(0.8, 1.0, {"a": "classify"})
    before = torch.get_rng_state()
    for step in range(6):
        key = rng.key(0, "mixing", step)
        whole, fields = mix(x, {"label": label}, 3, key)
        halves = [mix(x[part], {"label": label[part]}, 3, key) for part in (slice(0, 4), slice(4, 8))]
        assert torch.equal(whole, torch.cat([one for one, _ in halves]))
        assert torch.equal(fields["label"], torch.cat([one["label"] for _, one in halves]))
    assert torch.equal(before, torch.get_rng_state())


def test_both_come_and_shares_are_spread_as_the_beta_distribution_has_it():
    x, label = images(2), torch.tensor([0, 1])
    boxes, shares = 0, []
    for step in range(400):
        whole, fields = mixing(1.0, 1.0, {"a": "classify"})(x, {"label": label}, 2, rng.key(3, "mixing", step))
        boxes += bool((whole[0] == x[0]).any())  # a box leaves pixels as they are
        shares.append(float(fields["label"][0, 0]))
    assert 160 < boxes < 240
    plain = torch.tensor(shares)  # uniform for alpha 1, but for the cut at the image's edge
    assert 0.4 < plain.mean() < 0.62 and plain.min() < 0.05 and plain.max() > 0.95


def test_the_loss_is_that_of_mixed_images_and_shares():
    torch.manual_seed(0)
    task = HeadsTask(
        RegNet(widths=[8], depths=[1], group_widths=[8]), OneView(16), classes=["a", "b", "c"], mixup=0.5, smoothing=0.1
    )
    task.seed = 9
    assert task.mixes and not task.reads_features
    views = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    given = Batch({"views/16": views, "label": torch.tensor([0, 2, 1, 1])}, [], 4)
    task.before_step(3)
    task.model.eval()
    x, fields = mixing(0.5, 0.0, {"a": "classify"})(task._view(given), given.fields, 3, rng.key(9, "mixing", 3))
    logs = (task.backbone(x) @ task.head.weight.T + task.head.bias).log_softmax(1).double()
    soft = fields["label"].double() * 0.9 + 0.1 / 3
    assert task.loss(given).loss.item() == pytest.approx(-(soft * logs).sum(1).mean().item(), abs=1e-6)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ({"mixup": -1.0}, "task.mixup"),
        ({"cutmix": float("nan")}, "task.cutmix"),
        ({"mixup": 1.0, "kinds": {"m": "map"}}, "map"),
    ],
)
def test_what_cannot_be_blended_is_refused(words, named):
    with pytest.raises(RequestError, match=named):
        mixing(**{"mixup": 0.0, "cutmix": 0.0, "kinds": {"a": "classify"}, **words})
