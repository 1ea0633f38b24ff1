"""The accuracy of the int8 file itself, of a network that has learned something, paired with the same network in float.

Releases of torch, torchao and executorch that break quantization leave cosines and sizes as they are: a public report has a
network that fell from 66.5 to 0.09 % between two of them. Only labelled images see that.
"""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from seer.data import synthetic as sample
from seer.data.augment import normalize
from seer.evals.features import center
from seer.evals.resampling import interval
from seer.export import to_executorch
from seer.export.program import Program, fed
from seer.models.bundle import plain
from seer.models.head_files import HeadCard, hash_of_tensors, stored
from seer.models.multi_head import MultiHead
from seer.models.regnet import RegNet

SIDE, HELD_OUT = 32, 2000
CARD = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "input_size": SIDE}
CLASSES = ("disc", "triangle", "lattice", "stripes", "dots")  # that 32 pixels tell apart
LEAST = -0.01  # what the 95 % interval of the difference must lie above: one point


def drawn(first: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images uint8 [count, 3, SIDE, SIDE] and their classes. Five alone: of all ten, float is right on 62 %, 6 % of all images lie so
    near a border that int8 decides otherwise, and 2,000 gave an interval of -1.25 to +0.05 points (2026-11-28)."""
    at = [i % len(CLASSES) for i in range(first, first + count)]
    kinds = [sample.SHAPE_CLASSES.index(CLASSES[c]) for c in at]
    pixels = torch.stack([center(sample.draw(kind, first + i), SIDE, SIDE) for i, kind in enumerate(kinds)])
    return pixels, torch.tensor(at)


def trained() -> tuple[RegNet, dict]:
    """A network of 0.05 M parameters after 6 epochs of 2,000 images, and its head as a bundle holds it."""
    torch.manual_seed(0)
    card = HeadCard("classify", (), (64,), len(CLASSES), CLASSES)
    backbone = RegNet((16, 24, 40, 64), (1, 1, 1, 1), (8, 8, 8, 16), stem_stride=1)
    model = MultiHead(backbone, {"kind": card.build()}).train()
    pixels, classes = drawn(0, 2000)
    x = normalize(pixels.float() / 255, CARD["mean"], CARD["std"])
    steps, batch = 6 * len(x) // 64, 64
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (batch,))
        loss = F.cross_entropy(model(x[rows])["kind"], classes[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    own = hash_of_tensors({name: plain(one) for name, one in backbone.eval().state_dict().items()})
    tensors = {name: plain(one.detach()) for name, one in model.kind.state_dict().items()}
    return backbone, {"kind": stored(card, tensors, backbone=own)}


def difference(found: torch.Tensor, wanted: torch.Tensor, classes: torch.Tensor):
    """The 95 % interval of how much more often `found` is right than `wanted`, over the same images."""
    gained = ((found.argmax(1) == classes).double() - (wanted.argmax(1) == classes).double()).numpy()
    return interval(len(gained), 2000, 0, lambda weights: weights @ gained / len(gained))


def test_the_gate_sees_two_points_that_are_lost():
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(len(CLASSES), (HELD_OUT,), generator=generator)
    right = F.one_hot(classes, len(CLASSES)).double()
    worse = right.clone()
    worse[: HELD_OUT // 50] = right[: HELD_OUT // 50].roll(1, 1)
    lost, same = difference(worse, right, classes), difference(right, right, classes)
    assert lost.low < -0.02 < lost.high < LEAST < same.low == same.high == 0
    assert np.isfinite([lost.low, lost.high]).all()


@pytest.mark.slow  # a minute: training, and twice torch's and ExecuTorch's translation
def test_an_int8_file_of_a_trained_network_is_as_right_as_the_network(tmp_path):
    for module in to_executorch.MODULES:
        pytest.importorskip(module, reason="the extra [device] is not installed: pip install 'seer-pretrain[device]'")
    backbone, heads = trained()
    pixels, classes = drawn(10_000, HELD_OUT)
    program = Program(backbone, CARD, "uint8", heads)
    with torch.no_grad():
        wanted = torch.cat([program.truth(one)["kind"] for one in fed(program, pixels)[1].split(250)])
    accuracy = (wanted.argmax(1) == classes).double().mean().item()
    assert accuracy > 0.6, accuracy  # it has learned; chance is 0.2
    made = to_executorch.export(
        backbone, CARD, tmp_path, pixels[:64], "uint8", heads=heads, int8=True, calibration=drawn(5_000, 128)[0]
    )
    found = to_executorch.load(made["file"])(pixels)["kind"]
    assert not torch.equal(found, wanted)
    gap = difference(found, wanted, classes)
    print(f"float {accuracy:.4f}, int8 less float {gap.low:+.4f} to {gap.high:+.4f} on {HELD_OUT} images")
    assert gap.low > LEAST, (gap, made["agreement"])
    assert made["agreement"]["kind"]["argmax"] > 0.9
