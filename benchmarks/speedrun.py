"""CIFAR-10 without labels against the clock: train for a given time, then ask the last network by weighted kNN.

    python benchmarks/speedrun.py cifar10-train.tar [time=20min] [seeds=0,1,2] [recipe=cifar] [final=false] [WORD=VALUE …]

The rules. The training images are those of CIFAR-10's training set, without labels; 5,000 of them, drawn by a seed, are
held out and never trained on (`final=true` asks the official test set, given by test=cifar10-test.tar, and is run once, at
the end). The clock is that of `steps=TIME`: from the first step to the last, reading, augmentation and saving included;
making shards, imports and asking stand outside. What is told: top-1 of a weighted kNN, k = 200, temperature 0.1, single
view, the network of the last step, features of the backbone. Other words go to `seer pretrain` as they are. Each seed is
a run of its own; the table has every one, their mean and its standard error.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HELD_OUT = 5000  # of 50,000 images
JUDGE = ["eval=knn", "eval.k=200", "eval.temperature=0.1"]
OURS = {
    "time": "20min",
    "seeds": "0,1,2",
    "recipe": "cifar",
    "final": "false",
    "test": "",
    "output": "",
    "held_out": str(HELD_OUT),
}


def seer(*words: str) -> dict:
    """Runs one command of the program. Returns its result, the last line that it prints."""
    done = subprocess.run([sys.executable, "-m", "seer", *words], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"seer {' '.join(words)} ended with {done.returncode}; its own words stand above")
    return json.loads(done.stdout.strip().splitlines()[-1])


def shards(source: str, given: dict[str, str], folder: Path) -> tuple[Path, Path]:
    """Makes shards of what is trained on, and of what is asked. Both are kept for the next call."""
    made = folder / "shards" if given["final"] == "true" else folder / "split"
    if given["final"] == "true":
        for name, tar in (("train", source), ("test", given["test"])):
            if not (made / name).exists():
                seer("shard", f"source={tar}", f"output={made / name}", "labels=folder")
    elif not made.exists():
        seer("shard", f"source={source}", f"output={made}", "labels=folder", f"holdout={given['held_out']}")
    return made / "train", made / "test"


def one(seed: str, train: Path, test: Path, run: Path, given: dict[str, str], words: list[str]) -> dict:
    """Trains for the time and asks the last network. Returns what the table tells."""
    begun = [f"recipe={given['recipe']}", f"seed={seed}", f"data.source={train}", f"output={run}", "every.evaluate=0"]
    ended = seer("pretrain", *begun, f"steps={given['time']}", *words)
    asked = seer("evaluate", *JUDGE, f"weights={run}", f"data.train={train}", f"data.test={test}")
    return {"seed": int(seed), "knn": asked["knn_top1"], "pretrain": ended, "evaluate": asked}


def main() -> None:
    if len(sys.argv) < 2 or "=" in sys.argv[1]:
        print(f"{__doc__}\nnot run: no images were given")  # `make bench` calls every script without any
        return
    words = [word.split("=", 1) for word in sys.argv[2:]]
    given = OURS | {key: value for key, value in words if key in OURS}
    passed_on = [f"{key}={value}" for key, value in words if key not in OURS]
    with tempfile.TemporaryDirectory() as spare:
        folder = Path(given["output"] or spare)
        train, test = shards(sys.argv[1], given, folder)
        rows = []
        for seed in given["seeds"].split(","):
            rows.append(one(seed, train, test, folder / f"seed-{seed}", given, passed_on))
            print(json.dumps(rows[-1]), flush=True)
        tell(rows, given)


def tell(rows: list[dict], given: dict[str, str]) -> None:
    """Prints the table on stderr, so that stdout holds a line of JSON a run."""
    found = [row["knn"] for row in rows]
    error = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else float("nan")
    print(f"{given['time']} a run, kNN top-1, k = 200, T = 0.1", file=sys.stderr)
    for row in rows:
        print(f"  seed {row['seed']}  {row['knn']:.4f}", file=sys.stderr)
    print(f"  mean {statistics.mean(found):.4f}  standard error {error:.4f}", file=sys.stderr)


if __name__ == "__main__":
    main()
