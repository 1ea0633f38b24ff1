"""100 steps in float32 give the losses of a committed file: to the last bit on a machine like the one that made it.

Elsewhere, since libraries round otherwise there, the first 20 to 1e-4. A change that is meant to move the numbers renews the
file, and says so in its message:  SEER_RENEW_GOLDEN=1 python -m pytest tests/test_golden.py
"""

import json
import os
import re
from pathlib import Path

import cv2
import PIL
import pytest
import torch

from seer.data import synthetic as sample
from seer.data.shards.writer import write_shards
from tests.program import finished, losses

FILE = Path(__file__).parent / "golden" / "losses.json"
WORDS = (
    "pretrain", "model=regnety_tiny", "augment=small", "augment.sizes=[32,16]", "task=swav_small", "task.hidden=[64]",
    "task.prototypes=32", "task.queue=64", "batch=16", "steps=100", "every.log=1", "every.evaluate=0", "every.checkpoint=0",
    "schedule.peak=0.3", "log.tensorboard=false", "data.threads=1", "parallel.device=cpu",
)  # fmt: skip


def machine() -> dict[str, str | int]:
    """What decides how a CPU rounds: libraries, threads (the program gets one), instructions, and the processor, whose kind
    and caches decide how kernels cut their sums."""
    told = dict(re.findall(r"^(\w[\w ]*?)\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M))
    kinds = ("model name", "cpu family", "model", "stepping", "cache size")
    return {
        "torch": torch.__version__,
        "Pillow": PIL.__version__,
        "OpenCV": cv2.__version__,
        "threads": 1,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": ", ".join(told.get(kind, "unknown") for kind in kinds),
    }


@pytest.mark.slow
def test_a_hundred_steps_give_the_committed_losses(tmp_path):
    write_shards(sample.samples(256, seed=0), tmp_path / "pictures", total=256, per_shard=64)
    ended = finished(*WORDS, f"data.source={tmp_path / 'pictures'}", f"output={tmp_path / 'run'}")
    assert ended.status == 0, ended.words
    found = losses(tmp_path / "run")
    if os.environ.get("SEER_RENEW_GOLDEN"):
        FILE.write_text(json.dumps({"made with": machine(), "words": WORDS, "losses": found}, indent=1) + "\n")
    golden = json.loads(FILE.read_text())
    assert golden["words"] == list(WORDS) and len(golden["losses"]) == 100
    assert max(golden["losses"][:20]) - min(golden["losses"][:20]) > 0.01  # they move, so agreeing says something
    if golden["made with"] == machine():
        assert found == golden["losses"]
    else:
        assert found[:20] == pytest.approx(golden["losses"][:20], abs=1e-4)
