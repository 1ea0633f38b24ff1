"""Reads every sample of a tar once, in random order, as training does: where it lies, then its bytes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from seer.data.order import choose_lanes, plan
from seer.data.shards.open import open_shards


def make(given: dict[str, Any]) -> dict[str, Callable[[], dict[str, Any]]]:
    folder = str(Path(given["folder"], "tars"))

    def reading(check_crc: bool) -> Callable[[], dict[str, Any]]:
        shards = open_shards(folder, check_crc=check_crc)
        total = sum(len(s) for s in shards)
        order = plan([len(s) for s in shards], seed=0, lanes=choose_lanes(total, total))
        step = 0

        def run() -> dict[str, Any]:
            nonlocal step
            places = order.places(step * total, total)
            step += 1
            for shard, row in zip(places.shard.tolist(), places.row.tolist(), strict=True):
                shards[shard].read(shard, row)
            return {"amount": total}

        return run

    shards = open_shards(folder)
    file = os.open(shards[0].path, os.O_RDONLY)
    runs = [tuple(shards[0].index[row].item()[:2]) for row in range(len(shards[0]))]  # type: ignore[attr-defined]

    def copying() -> dict[str, Any]:
        for offset, length in runs:
            os.pread(file, length, offset)
        return {"amount": len(runs)}

    return {"ours, no CRC": reading(False), "ours, with CRC": reading(True), "os.pread of the same bytes": copying}
