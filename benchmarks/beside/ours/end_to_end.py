"""`seer pretrain` on the folder's tar, stopped between turns: a turn is a few steps, with reading, augmentation and learning.

What the reader process does while others have their turn is counted in the next one, so nothing gets lost.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from process import spent_with_children

from seer.cli.main import main
from seer.tasks.swav import SwAVTask

PARTIES = {"ours": "fp32", "ours, bf16": "bf16"}


def words(given: dict[str, Any]) -> list[str]:
    """Returns the request. A step more than the turns take, so that the last turn ends before the run begins to save."""
    steps = given["every"] * given["all_turns"] + 1
    return [
        "pretrain",
        f"data.source={Path(given['folder'], 'tars')}",
        f"output={Path(given['folder'], given['run'])}",
        f"model={given['model']}",
        f"augment.sizes={json.dumps(given['sizes'], separators=(',', ':'))}",
        f"augment.counts={json.dumps(given['counts'], separators=(',', ':'))}",
        f"task.prototypes={given['prototypes']}",
        f"precision={PARTIES[given['party']]}",
        f"batch={given['batch']}",
        f"steps={steps}",
        "data.threads=1",
        "every.evaluate=0",
        "every.checkpoint=0",
        "log.tensorboard=false",
        "parallel.device=cpu",
    ]


def serve(given: dict[str, Any], answers: TextIO) -> None:
    before = SwAVTask.before_step
    spent, wall = 0.0, 0.0

    def before_step(task: SwAVTask, step: int) -> None:
        nonlocal spent, wall
        if step % given["every"] == 0:
            now = spent_with_children()
            passed = time.perf_counter() - wall
            answer: dict[str, Any] = {"parties": [given["party"]]}
            if step:
                amount = given["every"] * given["batch"]
                answer = {"amount": amount, "seconds": now - spent, "wall": passed, "peak": 0}
            print(json.dumps(answer), file=answers)
            spent = now
            if step < given["every"] * given["all_turns"] and not sys.stdin.readline():
                raise SystemExit("the driver has ended")
            wall = time.perf_counter()
        before(task, step)

    SwAVTask.before_step = before_step  # type: ignore[method-assign]
    status = main(words(given))
    if status:
        raise SystemExit(f"seer {' '.join(words(given))} ended with {status}")
