"""Reads off its folder what a run has come to."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from seer.core.errors import LostPeer
from seer.engine.metrics import read_rows
from seer.engine.retention import steps_in
from seer.run.skipped import SKIPPED, counted, parts_of

# how the name of the figure ends that stands for a head
OF_HEADS = ("/top1", "/map", "/miou", "/ap", "/correlation")
# how names of the figures begin that probes measure besides kNN
OF_PROBES = ("linear_", "lowshot_", "rankme", "uniformity", "alignment")


def describe_lost_peer(folder: Path, lost: LostPeer) -> LostPeer:
    """Returns the error with what is left of the run: exit 75 where running again goes on."""
    if lost.exit_status != 75:
        return lost
    steps = steps_in(folder / "checkpoints")
    if steps:
        words = f"step {steps[-1]} is saved: run the same command again to go on from it"
        return LostPeer(f"{lost}; {words}", reports=lost.reports)
    return LostPeer(f"{lost}; nothing was saved yet, the run starts anew", 70, reports=lost.reports)


def finished(folder: Path) -> dict[str, Any] | None:
    """Returns the result of a run that is done, None for any other."""
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if result.get("exit") == 0 else None


def summary(folder: Path) -> dict[str, Any]:
    """Returns what `metrics.jsonl` says in the end (last values, and for kNN also the first, of the untrained
    backbone), and the counts of `skipped.jsonl`."""
    rows = read_rows(folder / "metrics.jsonl")
    trained = [row for row in rows if "loss" in row]
    probed = [row["knn_top1"] for row in rows if "knn_top1" in row]
    values: dict[str, Any] = {}
    if trained:
        rates = sorted(row["images_per_s"] for row in trained)
        values = {"loss": trained[-1]["loss"], "images_per_s": rates[len(rates) // 2]}
    if probed:
        values |= {"knn_top1": probed[-1], "knn_top1_untrained": probed[0], "knn_curve": probed}
    for row in rows:
        pixels = ("knn_pixels", "knn_colours")
        values |= {k: v for k, v in row.items() if k in pixels or k.endswith(OF_HEADS) or k.startswith(OF_PROBES)}
    parts = (folder / SKIPPED, *parts_of(folder))
    reasons = Counter(row["kind"] for part in parts for row in counted(part))
    values |= {"skipped": reasons.total(), "skipped_by_reason": dict(reasons.most_common())}
    return values
