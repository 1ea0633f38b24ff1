import pytest

from seer.engine.checkpoint_policy import Checkpoints
from tests.engine.checkpoints import ALONE, FACTS, state


@pytest.fixture
def two(tmp_path) -> Checkpoints:
    """Of steps 10 and 20, in tmp_path."""
    checkpoints = Checkpoints(tmp_path, ALONE)
    for step in (10, 20):
        checkpoints.save(step, state(step), FACTS)
    return checkpoints
