"""Runs `seer pretrain`: words -> one training run, or the step of a capture again.

Surprising: torch is imported once the words are understood, so that a wrong one is told at once.
"""

from pathlib import Path
from typing import Any

from seer.cli.config import Settings
from seer.run.config import RunConfig


def run(settings: Settings, output: list[Path]) -> dict[str, Any]:
    """Returns the result for the JSON line. Raises RequestError and what `train` raises.

    Words given beside `replay` do not count, but for `data.source` and `parallel.device`.
    """
    capture = settings.pop("replay")
    if capture:
        from seer.run.replay import replay

        return replay(Path(capture), settings["data"]["source"], settings["parallel"]["device"])
    asked = RunConfig.of(settings)
    from seer.run.session import train

    return train(asked, output=output, numbered="output" not in settings.typed)
