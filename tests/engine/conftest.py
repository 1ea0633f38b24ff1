import logging

import pytest

from seer.core.log import log
from seer.engine.saving import Checkpoints
from tests.engine.checkpoints import ALONE, FACTS, state


@pytest.fixture
def told(caplog, monkeypatch):
    """What people are told, from warnings on; libraries may speak in between."""
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.WARNING, logger="seer")
    return caplog


@pytest.fixture
def two(tmp_path) -> Checkpoints:
    """Of steps 10 and 20, in tmp_path."""
    checkpoints = Checkpoints(tmp_path, ALONE)
    for step in (10, 20):
        checkpoints.save(step, state(step), FACTS)
    return checkpoints
