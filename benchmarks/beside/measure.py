"""Measures one area: starts its workers, lets them take turns, and hands over rows of turns; nothing is summed up here."""

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from areas import Plan
from turns import Worker, environment, pool, take_turns

Row = dict[str, Any]  # area, case, party, side, start, turn, seconds and wall of one unit, and what else a worker says
FLOOR = "import torch"


def measure(
    area: str, plan: Plan, pythons: dict[str, str], given: dict[str, Any], shared: list[Worker] | None = None
) -> list[Row]:
    """Returns a row for every turn of every party, those of the warm-up too (turn below 0).

    pythons: side -> interpreter; a side without one is left out. shared: workers that go from area to area, one a side; None:
    fresh ones. Raises Failed where a worker ends early.
    """
    if area == "startup":
        return start_up(plan, pythons)
    rows: list[Row] = []
    for start in range(plan.starts):
        if shared is not None and plan.shared:
            rows += _turns(area, plan, start, shared, given)
        else:
            with pool(pythons, [side for side, _ in plan.workers]) as fresh:
                rows += _turns(area, plan, start, fresh, given)
    return rows


def _turns(area: str, plan: Plan, start: int, workers: list[Worker], given: dict[str, Any]) -> list[Row]:
    """Returns the rows of one pair of processes."""
    core = max(os.sched_getaffinity(0)) if plan.pinned else None
    parties = [party for side, party in plan.workers if any(worker.side == side for worker in workers)]
    for number, (worker, party) in enumerate(zip(workers, parties, strict=True)):
        own = {"party": party, "core": core, "run": f"{area}-{start}-{number}", "all_turns": plan.turns + plan.warm_up}
        worker.make(plan.script, {**given, **plan.given, **own})
    for worker in workers:
        worker.ready()
    rows = []
    for turn, worker, name, answer in take_turns(workers, plan.turns, plan.warm_up):
        case, _, party = name.rpartition("\t")
        here = {"area": area, "case": case, "party": party, "side": worker.side, "start": start, "turn": turn}
        each = {key: answer[key] / answer["amount"] for key in ("seconds", "wall")}
        rows.append({**answer, **here, **each})
    return rows


def commands(pythons: dict[str, str], brief: bool) -> list[tuple[str, str, str, list[str]]]:
    """Returns (case, party, side, command) of each start that is measured; brief: those of the two programs alone."""
    trained = {
        "ours": "from seer.run.session import train; from seer.tasks.swav import SwAVTask; from seer.optim.lars import LARS",
        "peers": "from lightly.loss import SwaVLoss; from lightly.transforms import SwaVTransform; import torchvision;"
        "from lightly.models.modules import SwaVPrototypes; from lightly.utils.lars import LARS; from lightly.data import LightlyDataset",
    }
    found = []
    if "ours" in pythons:
        python = pythons["ours"]
        found += [("import", "ours", "ours", [python, "-c", "import seer"])]
        found += [] if brief else [("import", FLOOR, "ours", [python, "-c", FLOOR])]
        found += [("what training imports", "ours", "ours", [python, "-c", trained["ours"]])]
        found += [("--help", "ours", "ours", [python, "-m", "seer", "--help"])]
        found += [("--help", "ours, of pretrain", "ours", [python, "-m", "seer", "pretrain", "--help"])]
    if "peers" in pythons:
        python = pythons["peers"]
        script = shutil.which("lightly-ssl-train", path=str(Path(python).parent))
        libraries = ("lightly",) if brief else ("lightly", "timm", "webdataset")
        found += [("import", one, "peers", [python, "-c", f"import {one}"]) for one in libraries]
        found += [("what training imports", "lightly", "peers", [python, "-c", trained["peers"]])]
        found += [("--help", "lightly", "peers", [script, "--help"])] if script else []
    return found


def start_up(plan: Plan, pythons: dict[str, str]) -> list[Row]:
    """Returns rows of processes that begin and end: processor seconds of the process and all of its children."""
    rows: list[Row] = []
    asked = commands(pythons, brief=plan.turns < 6)
    for turn in range(-plan.warm_up, plan.turns):
        for case, party, side, command in asked:
            wall = time.perf_counter()
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(), cwd="/"
            )
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
            spent = used.ru_utime + used.ru_stime
            here = {"area": "startup", "case": case, "party": party, "side": side, "start": 0, "turn": turn}
            rows.append({**here, "amount": 1, "seconds": spent, "wall": time.perf_counter() - wall})
    return rows
