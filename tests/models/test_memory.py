"""Loading takes the memory of the weights once: the file is a window, what is copied is what the backbone keeps.

Measured as RssAnon of a process of its own, sampled while it loads: pages of the mapped file do not count, copies do.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from seer.models.key_maps import OURS, VISSL
from seer.models.zoo import build

LOAD = """
import re, sys, threading
from pathlib import Path
from seer.models.pretrained import load_backbone

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

before, highest, done = anonymous(), 0, threading.Event()

def watch():
    global highest
    while not done.wait(0.005):
        highest = max(highest, anonymous())

thread = threading.Thread(target=watch)
thread.start()
backbone = load_backbone(sys.argv[1])
done.set()
thread.join()
weights = sum(t.numel() * t.itemsize for t in backbone.state_dict().values())
print(max(highest, anonymous()) - before, weights)
"""


def write(name: str, kind: str, folder: Path) -> Path:
    """The row's weights, all zero (which costs this process nothing), with momentum beside them where VISSL has it."""
    names = VISSL if kind == "VISSL" else OURS
    shapes = build(name, device="meta").state_dict()
    state = {str(names.from_ours(key)): torch.zeros(value.shape, dtype=value.dtype) for key, value in shapes.items()}
    if kind == "safetensors":
        save_file(state, folder / "w.safetensors")
        return folder / "w.safetensors"
    momentum = {"state": {0: {"momentum_buffer": torch.zeros(10**7)}}}
    model = {"model": {"trunk": {f"_feature_blocks.{key}": value for key, value in state.items()}, "heads": {}}}
    torch.save(
        {"type": "consolidated", "classy_state_dict": {"base_model": model, "optimizer": momentum}}, folder / "w.torch"
    )
    return folder / "w.torch"


@pytest.mark.parametrize("kind", ["VISSL", "safetensors"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("regnety_12gf", marks=pytest.mark.slow),  # 0.2 GB, 4 s
        pytest.param("regnety_256gf", marks=pytest.mark.long),  # 5.1 GB, a minute
    ],
)
def test_loading_takes_no_more_than_1_2_times_the_weights_of_anonymous_memory(tmp_path, name, kind):
    path = write(name, kind, tmp_path)
    command = [sys.executable, "-c", LOAD, str(path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    try:
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    finally:
        path.unlink()
    assert ended.returncode == 0, ended.stderr
    taken, weights = map(int, ended.stdout.split())
    print(f"{name} as {kind}: {taken / 1e9:.3f} GB for {weights / 1e9:.3f} GB of weights")
    assert 0.8 * weights < taken <= 1.2 * weights + 2e7  # 20 MB for the program's own
