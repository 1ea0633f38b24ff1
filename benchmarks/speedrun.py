"""CIFAR-10 without labels against the clock: train for a given time, then ask the last network by weighted kNN.

    python benchmarks/speedrun.py cifar10-train.tar [time=20min] [seeds=0,1,2] [recipe=cifar_fast] [final=false]
        [size=PIXELS] [peer=lightly] [WORD=VALUE …]

The rules. The training images are those of CIFAR-10's training set, without labels; 5,000 of them, drawn by a seed, are
held out and never trained on (`final=true` asks the official test set, given by test=cifar10-test.tar, and is run once, at
the end). The clock is that of `steps=TIME`: from the first step to the last, reading, augmentation and saving included;
making shards, imports and asking stand outside. What is told: top-1 of a weighted kNN, k = 200, temperature 0.1, single
view, the network of the last step, features of the backbone, images of the size that `size=` or the recipe's `eval.size`
says, which like every setting is chosen on the own split; without one, of the largest view. Other words go to `seer
pretrain` as they are. Each seed is a run of its own; the table has every one, their mean and its standard error, and the
row for docs/speedrun.md.

peer=lightly trains by lightly's SwAV loop (`benchmarks/lightly_swav.py`) instead of `seer pretrain`, under the same clock, on the
same split, and is asked in the same way; recipe=cifar then says the network and the views, and is its default.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from seer.cli import config
from seer.run.environment import commit_of, processor

HELD_OUT = 5000  # of 50,000 images
JUDGE = ["eval=knn", "eval.k=200", "eval.temperature=0.1"]  # whole images
OURS = {
    "time": "20min",
    "seeds": "0,1,2",
    "recipe": "",
    "peer": "",
    "final": "false",
    "test": "",
    "size": "",
    "output": "",
    "held_out": str(HELD_OUT),
}


ROOT = Path(__file__).resolve().parents[1]
RECIPES = {"": "cifar_fast", "lightly": "cifar"}  # by peer, where no recipe is named
COLUMNS = ["date", "who", "time", "processor", "cores", "seeds", "images seen", "kNN", "error", "commit"]


def seer(*words: str) -> dict:
    """Runs one command of the program. Returns its result, the last line that it prints."""
    return told([sys.executable, "-m", "seer", *words])


def told(command: list[str]) -> dict:
    """Returns what the last line of a command's output says. Ends the program where the command fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[1:])} ended with {done.returncode}; its own words stand above")
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
    recipe = f"recipe={given['recipe']}"
    if given["peer"]:
        script = [sys.executable, str(Path(__file__).with_name("lightly_swav.py")), str(train), str(run)]
        ended = told([*script, recipe, f"seed={seed}", f"time={given['time']}", *words])
    else:
        begun = [recipe, f"seed={seed}", f"data.source={train}", f"output={run}", "every.evaluate=0"]
        ended = seer("pretrain", *begun, f"steps={given['time']}", *words)
    size = given["size"] or config.read("pretrain", [recipe])["eval"]["size"]
    judge = [*JUDGE, f"data.size={size}"] if size else JUDGE
    asked = seer("evaluate", *judge, f"weights={run}", f"data.train={train}", f"data.test={test}")
    return {"seed": int(seed), "knn": asked["knn_top1"], "pretrain": ended, "evaluate": asked}


def main() -> None:
    if len(sys.argv) < 2 or "=" in sys.argv[1]:
        print(f"{__doc__}\nnot run: no images were given")
        return
    words = [word.split("=", 1) for word in sys.argv[2:]]
    given = OURS | {key: value for key, value in words if key in OURS}
    if given["peer"] not in RECIPES:
        raise SystemExit(f"peer={given['peer']}: lightly, or none")
    given["recipe"] = given["recipe"] or RECIPES[given["peer"]]
    passed_on = [f"{key}={value}" for key, value in words if key not in OURS]
    with tempfile.TemporaryDirectory() as spare:
        folder = Path(given["output"] or spare)
        train, test = shards(sys.argv[1], given, folder)
        rows = []
        for seed in given["seeds"].split(","):
            run = folder / f"{given['peer'] or given['recipe'].replace('/', '_')}-seed-{seed}"
            rows.append(one(seed, train, test, run, given, passed_on))
            print(json.dumps(rows[-1]), flush=True)
        tell(rows, given, passed_on)


def tell(rows: list[dict], given: dict[str, str], words: list[str]) -> None:
    """Prints the table on stderr, so that stdout holds a line of JSON a run."""
    found = [row["knn"] for row in rows]
    error = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else float("nan")
    print(f"{given['time']} a run, kNN top-1, k = 200, T = 0.1", file=sys.stderr)
    for row in rows:
        print(f"  seed {row['seed']}  {row['knn']:.4f}", file=sys.stderr)
    print(f"  mean {statistics.mean(found):.4f}  standard error {error:.4f}", file=sys.stderr)
    print(f"for docs/speedrun.md ({', '.join(COLUMNS)}):\n{line(rows, given, words)}", file=sys.stderr)


def line(rows: list[dict], given: dict[str, str], words: list[str]) -> str:
    """Returns the row of the public table, in Markdown: what ran where, and what it reached."""
    found = [row["knn"] for row in rows]
    error = f"{statistics.stdev(found) / len(found) ** 0.5:.4f}" if len(found) > 1 else "-"
    seen = statistics.mean(row["pretrain"]["images"] for row in rows)
    commit, changed = commit_of(ROOT)
    name = f"{commit[:10]}{' and changes' if changed else ''}" if commit else "unknown"
    named = [f"{key}={given[key]}" for key in ("peer", "recipe", "size") if given[key]]
    what = " ".join([*named, *words])
    share = "test set" if given["final"] == "true" else "own split"
    cores = os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))
    columns = [f"{datetime.now(UTC):%Y-%m-%d}", f"`{what}`", given["time"], processor(), cores, len(rows)]
    columns += [f"{seen:,.0f}", f"{statistics.mean(found):.4f} ({share})", error, name]
    return f"| {' | '.join(map(str, columns))} |"


if __name__ == "__main__":
    main()
