"""The SwAV step against the method written out plainly in float64, over its options: queue, heads, hard codes, ranks."""

import copy

import pytest
import torch
from torch import Tensor, nn

from seer.core import rng
from seer.core.errors import RequestError
from seer.core.records import Batch
from seer.data.augment import augment_batch
from seer.data.loading.batch_buffer import BatchLayout
from seer.data.multicrop import MultiCrop
from seer.losses.swav import used_prototypes
from seer.models.kmeans import spherical_kmeans
from seer.parallel.world import World
from seer.tasks.swav import SwAVTask
from tests.messages import naming
from tests.ranks import run_ranks

CROP = MultiCrop(sizes=(8,), counts=(3,), scales=((0.3, 1.0),), blur=0.0, jitter=0.0, grayscale=0.0)
IMAGES, PROTOTYPES, STEPS = 12, 20, 7


class Flat(nn.Module):
    """A backbone of one layer, so that the rest is under test."""

    feature_dim = 16

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 8 * 8, self.feature_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1))


def task(group=None, **options) -> SwAVTask:
    torch.manual_seed(0)
    plain = dict(hidden=(16,), embedding=8, prototypes=PROTOTYPES, batch_norm=False, epsilon=0.05, iterations=3)
    return SwAVTask(Flat(), CROP, group, **{**plain, **options})  # type: ignore[arg-type]


def batch(step: int, rank: int = 0, ranks: int = 1) -> Batch:
    """This rank's part of the images of a step: neighbours, as the loader gives them."""
    pixels = torch.randint(0, 256, (3, IMAGES, 3, 8, 8), generator=torch.Generator().manual_seed(step))
    mine = pixels.to(torch.uint8).chunk(ranks, dim=1)[rank]
    layout = BatchLayout(CROP.layout(mine.shape[1]), mine.shape[1])
    buffer = layout.buffer(torch.empty(layout.bytes, dtype=torch.uint8))
    for i in range(mine.shape[1]):
        CROP.store_params(CROP.draw(8, 8, rng.key(0, i)), buffer.arrays, i)
    return Batch({**buffer.tensors, "views/8": mine.flatten(0, 1)}, [], 0)


def move(one: SwAVTask, step: int) -> None:
    """Stands for the optimizer: other prototypes after every step, the same for everyone."""
    with torch.no_grad():
        noise = torch.randn(one.head.prototypes.weight.shape, generator=torch.Generator().manual_seed(100 + step))
        one.head.prototypes.weight.add_(0.3 * noise)
    one.after_step(step)


def losses(one: SwAVTask, steps: range, rank: int = 0, ranks: int = 1) -> list[float]:
    found = []
    for step in steps:
        one.before_step(step)
        found.append(one.loss(batch(step, rank, ranks)).loss.item())
        move(one, step)
    return found


class Plain:
    """The method in float64 with no vectors, groups or classes of ours: full matrices and lists."""

    def __init__(self, one: SwAVTask, queue: int = 0, queue_from: int = 0, hard_until: int = 0):
        self.one, self.length, self.begin, self.hard = one, queue, queue_from, hard_until
        self.kept: list[list[Tensor]] = [[], []]  # per assign view, oldest first

    def codes(self, now: Tensor, view: int, weights: Tensor, step: int) -> Tensor:
        rows = torch.cat([torch.stack(self.kept[view]), now]) if len(self.kept[view]) == self.length > 0 else now
        plan = torch.exp(rows @ weights.T / self.one.epsilon)
        for _ in range(self.one.iterations):
            plan = plan / plan.sum(0, keepdim=True)
            plan = plan / plan.sum(1, keepdim=True)
        plan = plan[-len(now) :]
        return nn.functional.one_hot(plan.argmax(1), plan.shape[1]).double() if step < self.hard else plan

    def loss(self, step: int) -> float:
        one = self.one
        with torch.no_grad():
            pixels = batch(step).fields["views/8"].double() / 255
            mean, std = (torch.tensor(x, dtype=torch.float64).view(1, 3, 1, 1) for x in (CROP.mean, CROP.std))
            double = copy.deepcopy(nn.Sequential(one.backbone, one.head.projector)).double()
            z = nn.functional.normalize(double((pixels - mean) / std), dim=1).unflatten(0, (3, -1))  # [V, B, D]
            terms = []
            for weights in one.head.prototypes.weight.double().split(one.prototypes):
                for a in (0, 1):
                    codes = self.codes(z[a], a, weights, step)
                    for p in {0, 1, 2} - {a}:
                        log_p = torch.log_softmax(z[p] @ weights.T / one.temperature, dim=1)
                        terms.append(-(codes * log_p).sum(1).mean())
            if step >= self.begin and self.length:
                self.kept = [(old + list(new))[-self.length :] for old, new in zip(self.kept, z, strict=False)]
        return torch.stack(terms).mean().item()


OPTIONS = [
    {},
    {"queue": 24},
    {"queue": 30, "queue_from": 2},
    {"heads": 3},
    {"hard_until": 3},
    {"heads": 2, "queue": 12, "hard_until": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_step_costs_what_the_plain_method_says(options):
    one = task(**options)
    plain = Plain(one, **{k: v for k, v in options.items() if k != "heads"})
    for step in range(STEPS):
        one.before_step(step)
        expected = plain.loss(step)
        assert one.loss(batch(step)).loss.item() == pytest.approx(expected, rel=2e-6), step
        move(one, step)


def test_the_queue_changes_nothing_before_it_is_full_and_something_after():
    without, queued, later = (
        losses(task(**o), range(STEPS)) for o in ({}, {"queue": 24}, {"queue": 24, "queue_from": 3})
    )
    assert queued[:2] == without[:2] and all(a != b for a, b in zip(queued[2:], without[2:], strict=True))
    assert later[:5] == without[:5] and later[5:] != without[5:]


def test_every_head_gets_a_gradient_and_unit_rows_and_one_head_is_named_as_before():
    one = task(heads=3)
    one.loss(batch(0)).loss.backward()
    by_head = one.head.prototypes.weight.grad.split(PROTOTYPES)
    assert len(by_head) == 3 and all(g.abs().sum() > 0 for g in by_head)
    assert torch.allclose(one.head.prototypes.weight.norm(dim=1), torch.ones(3 * PROTOTYPES))
    assert one.chance_loss == task().chance_loss
    assert task().state_dict().keys() == one.state_dict().keys()


def test_used_prototypes_is_the_mean_over_heads(monkeypatch):
    found = []

    def counted(codes, group):
        found.append(used_prototypes(codes, group))
        return found[-1]

    monkeypatch.setattr("seer.tasks.swav.used_prototypes", counted)
    metrics = task(heads=4).loss(batch(0)).metrics
    assert len(found) == 4 and len(set(map(int, found))) > 1
    assert metrics["codes/used_prototypes"] == sum(map(int, found)) / 4


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"heads": 0}, "task.heads=0"), ({"queue": -1}, "task.queue=-1"), ({"epsilon": 0.003}, "task.epsilon=0.003")],
)
def test_wrong_numbers_are_refused(wrong, named):
    with pytest.raises(RequestError, match=named):
        task(**wrong)


def train(world: World) -> tuple[list[float], dict[str, Tensor], Tensor]:
    one = task(world.group, queue=18, heads=2)
    found = losses(one, range(4), world.rank, 2)
    seeded = task(world.group, kmeans=30)
    seeded.seed_prototypes((batch(i, world.rank, 2) for i in range(9)), seed=4)
    return found, one.state_dict(), seeded.head.prototypes.weight.detach()


@pytest.mark.slow
def test_two_ranks_equal_one_process_and_their_checkpoint_goes_on_in_one():
    (first, saved, centers), (second, other, also) = run_ranks(train, 2)
    alone = task(queue=18, heads=2)
    assert [(a + b) / 2 for a, b in zip(first, second, strict=True)] == pytest.approx(losses(alone, range(4)), abs=2e-6)
    assert torch.equal(saved["queue.rows"], other["queue.rows"]) and saved["queue.rows"].shape == (2, 18, 8)
    assert torch.allclose(saved["queue.rows"], alone.state_dict()["queue.rows"], atol=1e-6)
    resumed = task(queue=18, heads=2)
    resumed.load_state_dict(saved)
    assert losses(resumed, range(4, STEPS)) == pytest.approx(losses(alone, range(4, STEPS)), abs=2e-6)
    seeded = task(kmeans=30)
    seeded.seed_prototypes((batch(i) for i in range(9)), seed=4)
    assert torch.equal(centers, also) and torch.allclose(centers, seeded.head.prototypes.weight, atol=1e-5)


def test_prototypes_by_kmeans_are_centers_of_the_first_embeddings_and_nothing_else_moves():
    one = task(kmeans=30, heads=2, batch_norm=True)
    before = {name: value.clone() for name, value in one.state_dict().items()}
    taken = []
    one.seed_prototypes((taken.append(i) or batch(i) for i in range(9)), seed=4)
    assert taken == [0, 1, 2]  # 12 images each
    differ = [name for name, value in one.state_dict().items() if not torch.equal(value, before[name])]
    assert differ == ["head.prototypes.weight"]
    with torch.no_grad():
        views = [augment_batch(b.fields, 8, CROP.mean, CROP.std) for b in map(batch, taken)]
        rows = torch.cat([one.head(one.backbone(v))[0][:IMAGES] for v in views])[:30]  # first view of each
    wanted = torch.cat([spherical_kmeans(rows, PROTOTYPES, seed=s) for s in (4, 5)])
    assert torch.allclose(one.head.prototypes.weight, wanted, atol=1e-5)


def test_one_view_is_refused_by_the_task_that_predicts_one_from_another():
    one = MultiCrop(sizes=(8,), counts=(1,), scales=((0.3, 1.0),))
    with pytest.raises(RequestError, match=r"augment\.counts"):
        SwAVTask(Flat(), one, hidden=(16,), embedding=8, prototypes=PROTOTYPES, assign=(0,))


def test_fewer_images_than_prototypes_are_refused():
    with pytest.raises(RequestError, match=naming("task.kmeans=19", 20)):
        task(kmeans=19)
