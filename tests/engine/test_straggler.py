"""A rank that is slow window after window is named once; a slow moment is not."""

import pytest
import torch

from seer.engine import straggler
from seer.engine.straggler import Stragglers
from seer.parallel.world import World


@pytest.fixture
def four():
    slow = Stragglers(World(0, 1, 0, torch.device("cpu")), "here")
    slow._hosts = ["a", "b", "c", "d"]
    return slow


def test_three_slow_windows_on_end_name_rank_and_host_once(told, four):
    for window in range(6):
        four.judge([(1.0, 0.1), (1.1, 0.1), (1.7, 1.5), (0.9, 0.1)])
        assert ("rank 2 on c" in told.text) == (window >= 2)
    assert told.text.count("keeps the others waiting") == 1 and "mostly reading images" in told.text


def test_of_two_ranks_the_slow_one_is_named(told, four):
    for _ in range(3):
        four.judge([(1.6, 0.1), (1.0, 0.1)])
    assert "rank 0 on a" in told.text and "mostly computing" in told.text


def test_slow_moments_and_equal_ranks_name_nobody(told, four):
    for rows in [
        [(1, 0), (1.6, 0), (1, 0)],
        [(1, 0), (1.6, 0), (1, 0)],
        [(1, 0), (1.4, 0), (1, 0)],
        [(1.6, 0), (1, 0), (1, 0)],
    ] * 3:
        four.judge(rows)
    assert told.text == ""


def test_what_ranks_tell_each_other_never_meets_the_words_of_a_checkpoint_that_is_being_written(monkeypatch):
    heard = []
    monkeypatch.setattr(straggler, "gather_text", lambda text, group: [text, text])
    monkeypatch.setattr(
        straggler, "all_gather_stack", lambda row, group: heard.append(group) or torch.stack([row, row])
    )
    world = World(0, 2, 0, torch.device("cpu"), group="of the step", side="of the checkpoint")  # type: ignore[arg-type]
    Stragglers(world, "here").end_window(0.0)
    assert heard == ["of the step"]
