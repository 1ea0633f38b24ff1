"""Runs the parties of a side, a turn whenever it is told to; what a turn took goes back as one line of JSON.

    python benchmarks/beside/worker.py SIDE

Two kinds of lines on stdin: {"area": NAME, "given": {...}} loads SIDE/NAME.py and calls its `make(given)`, which returns name ->
a call that does one turn and returns {"amount": units done, ...}; {"turn": name, "trim": …} does one, where `trim` asks for it after
freed memory has gone back to the system. Unless a call has measured by itself
and returns "seconds", it is measured here, in processor time of this process. "peak" is the turn's peak of resident memory,
beyond `given["floor"]` bytes where `make` has noted those before its network was made, else beyond what was held before the
turn. A module whose turns lie within a program that cannot be called in parts has `serve(given, answers)` instead, which does
all of this until it ends. Whatever else is printed goes to stderr.
"""

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from process import forget_peak, held, trim

FOLDER = Path(__file__).parent


def load(side: str, area: str) -> Any:
    """Returns the module of a side and an area, which may import its neighbours."""
    spec = importlib.util.spec_from_file_location(f"{side}_{area}", FOLDER / side / f"{area}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def turn(call: Any, floor: int | None) -> dict[str, Any]:
    """Does one turn and returns what it took. floor: bytes beyond which memory counts, None for those held right now."""
    forget_peak()
    before = held("VmRSS") if floor is None else floor
    wall, start = time.perf_counter(), time.process_time()
    done: dict[str, Any] = call()
    spent, passed = time.process_time() - start, time.perf_counter() - wall
    return {"seconds": spent, "wall": passed, "peak": held("VmHWM") - before, **done}


def main() -> None:
    side = sys.argv[1]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries may print; only answers go to the driver
    torch.set_num_threads(1)
    sys.path.insert(0, str(FOLDER / side))
    free = os.sched_getaffinity(0)
    parties: dict[str, Any] = {}
    given: dict[str, Any] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if "turn" in asked:
            if asked["trim"]:
                trim()
            print(json.dumps(turn(parties[asked["turn"]], given.get("floor"))), file=answers)
            continue
        parties, given = {}, asked["given"]
        os.sched_setaffinity(0, free if given.get("core") is None else {given["core"]})
        torch.manual_seed(0)
        module = load(side, asked["area"])
        if hasattr(module, "serve"):
            module.serve(given, answers)
            return
        parties = module.make(given)
        print(json.dumps({"parties": list(parties)}), file=answers)


if __name__ == "__main__":
    main()
