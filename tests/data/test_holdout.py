"""Images kept out of training: exact counts, by the seed alone, spread over all shards."""

import pytest

from seer.core.errors import RequestError
from seer.data.holdout import chosen


def test_so_many_are_chosen_once_each_and_by_the_seed():
    counts = [300, 0, 700]
    one = chosen(counts, "20%", 1)
    assert len(one) == 200 == len(set(one)) and one == sorted(one) == chosen(counts, 0.2, 1)
    assert all(0 <= row < counts[shard] for shard, row in one)
    assert 35 < sum(shard == 0 for shard, _ in one) < 90  # 60 by chance, within five deviations
    assert set(one) != set(chosen(counts, "20%", 2))
    assert set(chosen(counts, 50, 1)) < set(one)
    assert chosen(counts, 0, 1) == []


@pytest.mark.parametrize("holdout", [-1, "100%", 10, "0.1%"])
def test_what_leaves_none_is_refused(holdout):
    with pytest.raises(RequestError, match="holdout"):
        chosen([4, 6], holdout, 0)
