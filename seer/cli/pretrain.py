"""Runs `seer pretrain`: words -> one training run, or the step of a capture again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seer.cli import config
from seer.run.config import RunConfig
from seer.run.replay import replay
from seer.run.session import train


def run(words: Sequence[str], output: list[Path]) -> dict[str, Any]:
    """Returns the result for the JSON line. Raises RequestError and what `train` raises.

    Words given beside `replay` do not count, but for `data.source` and `parallel.device`.
    """
    wanted = config.read("pretrain", words)
    capture = wanted.pop("replay")
    if capture:
        return replay(Path(capture), wanted["data"]["source"], wanted["parallel"]["device"])
    return train(RunConfig.of(wanted), output=output)
