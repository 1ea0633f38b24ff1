"""The result of a run, by its own arithmetic: images are steps times the batch, losses are counted where they are named."""

import json
from types import SimpleNamespace
from typing import Any, cast

import torch

from seer.engine.alarms import FlightRecorder
from seer.parallel.world import World
from seer.run.finish import Ending


def test_a_stop_between_two_logged_steps_tells_the_images_and_the_losses_up_to_the_stop(tmp_path):
    row = {"step": 2, "loss": 4.0, "images_per_s": 10.0, "images": 48, "skipped": 1.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    lost = [
        {"step": 1, "kind": "truncated"},
        {"step": 4, "kind": "format"},
        {"step": 9, "kind": "format", "undone": True},
    ]
    (tmp_path / "skipped.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lost))
    alone = World(0, 1, 0, torch.device("cpu"))
    none = cast(Any, SimpleNamespace(newest=-1, data="print", config=SimpleNamespace(seed=3)))
    ending = Ending(tmp_path, none, alone, 16, FlightRecorder())
    result = ending.result(5, bundle=False)
    assert (result["steps"], result["images"], result["loss"]) == (5, 80, 4.0)
    assert result["skipped"] == 2 and result["skipped_by_reason"] == {"truncated": 1, "format": 1}
