"""Grouped batch norm in 2 and 4 gloo processes against nn.BatchNorm on the joined batch of each group."""

import pytest
import torch
from torch import nn

from seer.core.errors import RequestError
from seer.parallel import batchnorm
from seer.parallel.batchnorm import GroupBatchNorm1d, GroupBatchNorm2d, group_batchnorm
from seer.parallel.world import World, batch_norm_groups, same_statistics, statistics_groups
from tests.messages import naming
from tests.ranks import run_ranks

STEPS, PER_RANK = 3, 5
CPU = torch.device("cpu")
KINDS = {
    "1d": lambda: nn.BatchNorm1d(6, momentum=0.3),
    "2d": lambda: nn.BatchNorm2d(6, momentum=0.3, eps=1e-3),
    "counted": lambda: nn.BatchNorm2d(6, momentum=None),
    "plain": lambda: nn.BatchNorm2d(6, affine=False),
    "stateless": lambda: nn.BatchNorm2d(6, track_running_stats=False),
}


def layer(kind: str) -> nn.Module:
    torch.manual_seed(0)
    made = KINDS[kind]()
    if made.affine:
        nn.init.uniform_(made.weight, 0.5, 2)
        nn.init.uniform_(made.bias, -1, 1)
    return made


def images(kind: str, step: int, rank: int) -> torch.Tensor:
    """Ranks see data of different means and spreads; the means are large against the spread."""
    g = torch.Generator().manual_seed(100 * step + rank)
    shape = (PER_RANK, 6) if kind == "1d" else (PER_RANK, 6, 3, 4)
    return torch.randn(shape, generator=g) * (1 + 0.5 * rank) + 4 + rank


def trained(model: nn.Module, batches: list[list[torch.Tensor]]) -> dict:
    """Steps over batches (a list of parts each): outputs, gradients of inputs and parameters, and the statistics in the end."""
    outputs, gradients = [], []
    for parts in batches:
        x = torch.cat(parts).requires_grad_()
        y = model(x)
        y.sin().sum().backward()
        outputs.append(y.detach())
        gradients.append(x.grad)
    model.eval()
    return {
        "outputs": outputs,
        "gradients": gradients,
        "parameters": {k: p.grad for k, p in model.named_parameters()},
        "buffers": dict(model.named_buffers()),
        "evaluated": model(batches[0][0]).detach(),
    }


def on_joined(kind: str, members) -> dict:
    """nn.BatchNorm in one process, in float64: the truth to a digit beyond what float32 can say."""
    model = nn.Sequential(layer(kind)).double()
    found = trained(model, [[images(kind, s, r).double() for r in members] for s in range(STEPS)])
    return torch.utils._pytree.tree_map(lambda v: v.float() if v.is_floating_point() else v, found)


def speak(world: World) -> dict:
    said = {}
    for size in [n for n in (1, 2, 4) if n <= world.size]:
        group = batch_norm_groups(world, size)
        for kind in KINDS:
            model = group_batchnorm(nn.Sequential(layer(kind)), group, CPU)
            said[size, kind] = trained(model, [[images(kind, s, world.rank)] for s in range(STEPS)])
            said[size, kind]["class"] = type(model[0]).__name__
    return said


@pytest.fixture(scope="module", params=[2, 4])
def said(request) -> list[dict]:
    return run_ranks(speak, request.param)


@pytest.mark.slow
def test_groups_of_ranks_do_what_one_batch_norm_does_on_their_joined_batch(said):
    close = {"rtol": 1e-5, "atol": 1e-5}
    ranks = len(said)
    for size, kind in said[0]:
        for first in range(0, ranks, size):
            members = range(first, first + size)
            expected = on_joined(kind, members)
            of_group = [said[r][size, kind] for r in members]
            for step in range(STEPS):
                for what in ("outputs", "gradients"):
                    joined = torch.cat([one[what][step] for one in of_group])
                    torch.testing.assert_close(joined, expected[what][step], **close)
            for name, gradient in expected["parameters"].items():  # what data parallel would sum
                total = sum(one["parameters"][name] for one in of_group)
                torch.testing.assert_close(total, gradient, rtol=1e-5, atol=5e-5)  # sums of up to 240 terms of about 1
            for one in of_group:
                assert one["buffers"].keys() == expected["buffers"].keys()
                for name, buffer in expected["buffers"].items():
                    torch.testing.assert_close(one["buffers"][name], buffer, **close)
            if kind != "stateless":
                torch.testing.assert_close(of_group[0]["evaluated"], expected["evaluated"], **close)


@pytest.mark.slow
def test_groups_hold_their_own_statistics_and_ranks_of_one_group_the_same(said):
    ranks = len(said)
    for size in [n for n in (1, 2, 4) if n <= ranks]:
        variances = [said[r][size, "2d"]["buffers"]["0.running_var"] for r in range(ranks)]
        for a in range(ranks):
            for b in range(ranks):
                assert torch.equal(variances[a], variances[b]) == (a // size == b // size)
        assert said[0][size, "1d"]["class"] == ("BatchNorm1d" if size == 1 else "GroupBatchNorm1d")


def test_without_a_group_the_model_stays_as_it_is():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm1d(3))
    assert group_batchnorm(model, None, CPU) is model
    assert [type(m) for m in model] == [nn.BatchNorm2d, nn.BatchNorm1d]


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_alone_gets_what_torch_gives(kind):
    alone = layer(kind)
    alone.__class__ = {nn.BatchNorm1d: GroupBatchNorm1d, nn.BatchNorm2d: GroupBatchNorm2d}[type(alone)]
    alone.group = None
    batches = [[images(kind, s, 0)] for s in range(STEPS)]
    found, expected = trained(nn.Sequential(alone), batches), on_joined(kind, [0])
    for a, b in zip(found["outputs"] + found["gradients"], expected["outputs"] + expected["gradients"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    for name, buffer in expected["buffers"].items():
        torch.testing.assert_close(found["buffers"][name], buffer, rtol=1e-5, atol=1e-5)


def test_names_parameters_and_buffers_stay_and_other_kinds_of_batch_norm_are_left_alone():
    class Own(nn.BatchNorm2d):
        pass

    model = nn.Sequential(nn.BatchNorm2d(3), nn.ModuleDict({"a": nn.BatchNorm1d(4)}), Own(2), nn.BatchNorm3d(2))
    before = {k: v.data_ptr() for k, v in model.state_dict().items()}
    group_batchnorm(model, object(), CPU)
    assert {k: v.data_ptr() for k, v in model.state_dict().items()} == before
    assert type(model[0]) is GroupBatchNorm2d and type(model[1]["a"]) is GroupBatchNorm1d
    assert type(model[2]) is Own and type(model[3]) is nn.BatchNorm3d


def test_statistics_and_the_result_of_bfloat16_images_are_made_in_float32():
    alone = layer("2d")
    alone.__class__, alone.group = GroupBatchNorm2d, None
    x = images("2d", 0, 0).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = alone(x)
    expected = layer("2d")
    wanted = expected(x.float())
    assert y.dtype == torch.bfloat16 and alone.running_mean.dtype == torch.float32
    torch.testing.assert_close(y, wanted.bfloat16(), rtol=0, atol=0.04)
    torch.testing.assert_close(alone.running_var, expected.running_var, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("slope", ["dense", "expanded", "transposed"])
def test_images_of_any_layout_and_dtype_get_the_gradients_of_float64(dtype, layout, slope):
    alone = layer("2d")
    alone.__class__, alone.group = GroupBatchNorm2d, None
    x = (torch.randn(8, 6, 10, 10, generator=torch.Generator().manual_seed(1)) + 3).to(dtype)
    x = x.contiguous(memory_format=layout).requires_grad_()
    random = torch.randn(10, 10, 6, 8, generator=torch.Generator().manual_seed(2)).to(dtype)
    given = {"dense": random.permute(3, 2, 1, 0).contiguous(), "transposed": random.permute(3, 2, 1, 0)}
    given["expanded"] = random[0, 0, :, 0].view(1, 6, 1, 1).expand(x.shape)
    y = alone(x)
    y.backward(given[slope])
    assert y.dtype == x.grad.dtype == dtype and y.is_contiguous(memory_format=layout)

    truth, exact = layer("2d").double(), x.detach().double().requires_grad_()
    truth(exact).backward(given[slope].double())
    # the same slope everywhere leaves nothing but the rounding of sums of 800 equal numbers, one after the other
    close = {"rtol": 1e-5, "atol": 3e-5 if slope == "expanded" else 1e-5}
    if dtype in (torch.bfloat16, torch.float16):
        close = {"rtol": 0.02, "atol": 0.02}
    torch.testing.assert_close(x.grad.double(), exact.grad, **close)
    for found, expected in zip(alone.parameters(), truth.parameters(), strict=True):  # sums of 800 terms of about 1
        torch.testing.assert_close(found.grad.double(), expected.grad, rtol=1e-5, atol=3e-3)


def test_a_batch_in_parts_of_unequal_length_has_the_moments_and_sums_of_float64(monkeypatch):
    monkeypatch.setattr(batchnorm, "_PART", 300)  # three images of 100 pixels: parts of 3, 3 and 2
    g = torch.Generator().manual_seed(0)
    x = torch.randn(8, 6, 10, 10, generator=g) + torch.arange(8).view(-1, 1, 1, 1)  # means differ from image to image
    slope, wide = torch.randn(8, 6, 10, 10, generator=g), x.double()
    mean, variance = batchnorm._moments(x)
    torch.testing.assert_close(mean.double(), wide.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(variance.double(), wide.var((0, 2, 3), correction=0), rtol=1e-5, atol=1e-6)
    inverse = variance.rsqrt()
    level, tilt = batchnorm._sums(slope, x, mean, inverse)
    normal = (wide - mean.double().view(1, -1, 1, 1)) * inverse.double().view(1, -1, 1, 1)
    torch.testing.assert_close(level.double(), slope.double().sum((0, 2, 3)), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(tilt.double(), (slope.double() * normal).sum((0, 2, 3)), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("ranks", "group", "groups"), [(1, 0, 1), (1, 64, 1), (8, 0, 1), (8, 8, 1), (8, 2, 4), (8, 1, 8)]
)
def test_groups_are_counted(ranks, group, groups):
    assert statistics_groups(World(0, ranks, 0, CPU), group) == groups


@pytest.mark.parametrize(
    ("ranks", "group", "images", "remedy"),
    [
        (8, 4, 32, None),  # 8 ranks of 8 images, groups of 4: 32 images
        (16, 8, 32, None),  # twice the ranks of 4 images each, groups of 8
        (4, 0, 64, None),
        (16, 4, 32, (32, 16, "parallel.batch_norm_group=8")),
        (2, 0, 32, (32, "parallel.batch_norm_group=1")),
        (1, 0, 32, (32, "multiple of 2 ranks")),
        (1, 1, 16, (16, "multiple of 4 ranks")),
    ],
)
def test_batch_statistics_stay_those_of_as_many_images_or_the_run_is_refused(ranks, group, images, remedy):
    world = World(0, ranks, 0, CPU)
    if remedy is None:
        same_statistics(world, group, 64, images)
    else:
        with pytest.raises(RequestError, match=naming(*remedy)):
            same_statistics(world, group, 64, images)
