"""The queue against a plain list of images, in one process and gathered from ranks."""

import pytest
import torch
from torch import Tensor

from seer.losses.queue import Queue
from tests.messages import naming


class Group:
    """Rank `rank` of `ranks`, as far as the queue's slice asks."""

    def __init__(self, rank: int, ranks: int):
        self._rank, self._ranks = rank, ranks

    def rank(self) -> int:
        return self._rank

    def size(self) -> int:
        return self._ranks


def images(first: int, count: int) -> Tensor:
    """[2, count, 3]: image i is (i, i, i) in view 0 and its negative in view 1."""
    numbers = torch.arange(first, first + count, dtype=torch.float32)[:, None].expand(-1, 3)
    return torch.stack([numbers, -numbers])


def test_it_starts_empty_and_is_full_only_with_as_many_images_as_its_length():
    queue = Queue(10)
    assert not queue.full and queue.state_dict() == {}
    for batch, full in enumerate([False, False, True, True]):
        queue.push(images(4 * batch, 4))
        assert queue.full is full


def test_it_keeps_the_newest_images_in_their_order_also_where_the_batch_does_not_divide_the_length():
    queue, everything = Queue(10), images(0, 28)
    for first in range(0, 28, 4):
        queue.push(everything[:, first : first + 4])
    assert torch.equal(queue.local_rows(torch.device("cpu")), everything[:, -10:])
    queue.push(images(100, 25))  # a batch larger than the queue
    assert torch.equal(queue.local_rows(torch.device("cpu")), images(115, 10))


@pytest.mark.parametrize("ranks", [2, 3])
def test_slices_of_the_ranks_are_the_whole_each_row_once(ranks):
    shares = []
    for rank in range(ranks):
        queue = Queue(10)
        queue.push(images(0, 10))
        queue.group = Group(rank, ranks)  # type: ignore[assignment]
        shares.append(queue.local_rows(torch.device("cpu")))
    assert torch.equal(torch.cat(shares, dim=1), images(0, 10))


def test_what_is_kept_does_not_change_with_what_was_pushed_and_has_no_gradient():
    queue, batch = Queue(4), images(0, 4).requires_grad_()
    queue.push(batch)
    with torch.no_grad():
        batch.zero_()
    kept = queue.local_rows(torch.device("cpu"))
    assert torch.equal(kept, images(0, 4)) and not kept.requires_grad


def test_a_saved_queue_goes_on_as_the_original_also_when_half_full():
    for pushed in (0, 1, 5):
        one, two = Queue(6), Queue(6)
        for batch in range(pushed):
            one.push(images(4 * batch, 4))
        two.load_state_dict(one.state_dict())
        assert two.full is one.full
        for queue in (one, two):
            queue.push(images(50, 4))
            queue.push(images(60, 4))
        assert torch.equal(one.state_dict()["rows"], two.state_dict()["rows"])


def test_a_length_of_nothing_and_the_rows_of_a_longer_queue_are_refused():
    with pytest.raises(ValueError, match=naming("queue", 0, 1)):
        Queue(0)
    longer = Queue(8)
    longer.push(images(0, 8))
    with pytest.raises(ValueError, match=naming(8, 4)):
        Queue(4).load_state_dict(longer.state_dict())
