"""The speedrun on a GPU: CIFAR-10 without labels in three minutes, asked by weighted kNN (`benchmarks/speedrun.py`).

    python benchmarks/gpu_speed.py data=carried [time=3min] [limit=290] [output=FOLDER] [device=cuda] [WORD=VALUE …]

data is a folder that `make gpu-pack` made, a tar, or anything else that the speedrun takes. Making shards and asking stand
outside the clock of the run, inside `limit` seconds. Other words go to the speedrun as they are. The result is one JSON line
and the file gpu-speed.json (in output, else $OUT, else here), with the card's name. Without a GPU it says so and ends with 0.
Exit status 1: the speedrun failed or was not done in time.
"""

import json
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

PACKED = "cifar10-train.tar.xz"
SPEEDRUN = Path(__file__).with_name("speedrun.py")
OURS = {"data": "", "time": "3min", "limit": "290", "output": "", "device": "cuda", "seeds": "0"}


def unpacked(source: Path, folder: Path) -> Path:
    """Returns what the speedrun reads: a packed tar is written out into the folder first."""
    packed = source / PACKED if source.is_dir() and (source / PACKED).exists() else source
    if packed.suffix != ".xz":
        return source
    plain = folder / packed.stem
    with lzma.open(packed) as narrow, plain.open("wb") as wide:
        shutil.copyfileobj(narrow, wide, 1 << 20)
    return plain


def main() -> int:
    if wrong := [word for word in sys.argv[1:] if "=" not in word]:
        raise SystemExit(f"{' '.join(wrong)}: words are KEY=VALUE, {', '.join(OURS)} or what the speedrun takes")
    words = dict(word.split("=", 1) for word in sys.argv[1:])
    given = OURS | {key: value for key, value in words.items() if key in OURS}
    if given["device"] == "cuda" and not torch.cuda.is_available():
        print("No GPU here that torch can use, so the speedrun was not run.")
        return 0
    if not words:
        print(f"{__doc__}\nnot run: data= names no images")
        return 0
    source = Path(given["data"])
    if not given["data"] or not source.exists():
        raise SystemExit(f"data={given['data']}: no such file or folder; make gpu-pack makes one")
    began, limit = time.monotonic(), float(given["limit"])
    passed_on = [f"{key}={value}" for key, value in words.items() if key not in OURS]
    goal = Path(given["output"] or os.environ.get("OUT", "."))
    with tempfile.TemporaryDirectory() as spare:
        tar = unpacked(source, Path(spare))
        command = [sys.executable, str(SPEEDRUN), str(tar), f"time={given['time']}", f"seeds={given['seeds']}"]
        command += [f"output={Path(spare) / 'run'}", f"parallel.device={given['device']}", *passed_on]
        left = max(1.0, limit - (time.monotonic() - began))
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=left, check=False)
        except subprocess.TimeoutExpired:
            print(f"The speedrun was stopped: it was not done within limit={limit:g} seconds; give a shorter time=")
            return 1
    if done.returncode:
        print(f"The speedrun ended with {done.returncode}; its own words stand above.")
        return 1
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    card = "CPU" if given["device"] == "cpu" else torch.cuda.get_device_name(0)
    report = {"card": card, "torch": torch.__version__, "time": given["time"], "seconds": time.monotonic() - began}
    report |= {"knn": [row["knn"] for row in rows], "runs": rows}
    goal.mkdir(parents=True, exist_ok=True)
    (goal / "gpu-speed.json").write_text(json.dumps(report, indent=1))
    print(json.dumps({key: value for key, value in report.items() if key != "runs"}))
    return 0 if rows else 1


if __name__ == "__main__":
    sys.exit(main())
