"""Runs `seer plan`: words -> what a training step needs of each GPU, before a job is queued."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seer.cli import config
from seer.run.config import RunConfig


def run(words: Sequence[str], output: list[Path]) -> dict[str, Any]:
    """Returns the sum and its parts, in GB of each GPU. Raises RequestError."""
    settings = config.read("plan", words)
    gpus, gpu_memory = settings.pop("gpus"), settings.pop("gpu_memory")
    del settings["replay"]
    asked = RunConfig.of(settings)
    from seer.run.plan import plan  # torch costs seconds, which a wrong word need not wait for

    return plan(asked, gpus, gpu_memory)
