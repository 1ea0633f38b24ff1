"""Reads every sample of the same tar once, in order, as webdataset does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import webdataset


def make(given: dict[str, Any]) -> dict[str, Callable[[], dict[str, Any]]]:
    tars = sorted(str(path) for path in Path(given["folder"], "tars").glob("*.tar"))

    def run() -> dict[str, Any]:
        stream = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).to_tuple("jpg")
        return {"amount": sum(1 for _ in stream)}

    return {"webdataset": run}
