"""Runs `seer plan`: words -> what a training step needs of each GPU, before a job is queued."""

from pathlib import Path
from typing import Any

from seer.core import schema
from seer.core.budget import Budget
from seer.run.config import RunConfig


def run(settings: dict[str, Any], output: list[Path]) -> dict[str, Any]:
    """Returns the sum and its parts, in GB of each GPU. Raises RequestError."""
    gpus, gpu_memory = settings.pop("gpus"), settings.pop("gpu_memory")
    budget = schema.read(Budget, settings.pop("budget"), "budget.")
    del settings["replay"]
    asked = RunConfig.of(settings)
    from seer.run.plan import plan  # torch costs seconds, which a wrong word need not wait for

    return plan(asked, gpus, gpu_memory, budget)
