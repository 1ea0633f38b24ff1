"""Faults for tests of several ranks, put into the real program: a folder on PYTHONPATH whose sitecustomize Python imports.

SEER_FAULT says which, and it strikes rank 1 from step 5 on; "disk" strikes saves on rank 0, "full" on rank 1, "storage" the
hundredth image that a process reads.
"""

import os
import sys
import time
from pathlib import Path

FAULT = os.environ.get("SEER_FAULT")

if FAULT == "disk" and os.environ.get("RANK") == "0":
    from seer.engine import checkpoint_files as checkpoint

    made = checkpoint._made

    def make_slowly(final: Path) -> str:
        """Makes the folder of a checkpoint, with which a save begins: notes beside RUN how many rows of metrics there are before
        and after."""
        run = next(path for path in final.parents if (path / "metrics.jsonl").exists())
        before = (run / "metrics.jsonl").read_text().count("\n")
        time.sleep(1)
        with open(run.parent / "rows-before-and-after-saves", "a") as file:
            file.write(f"{before} {(run / 'metrics.jsonl').read_text().count(chr(10))}\n")
        return made(final)

    checkpoint._made = make_slowly

elif FAULT == "storage":
    from seer.data.shards.tar_shard import TarShard

    read, count = TarShard.read, iter(range(100))

    def read_a_while(shard: TarShard, number: int, row: int):  # type: ignore[no-untyped-def]
        if next(count, None) is None:
            time.sleep(3600)
        return read(shard, number, row)

    TarShard.read = read_a_while  # type: ignore[method-assign]

elif FAULT == "full" and os.environ.get("RANK") == "1":
    from seer.engine import checkpoint_files as checkpoint

    def refuse(path: Path) -> None:
        raise OSError(28, "No space left on device")

    checkpoint.file_digest = refuse  # type: ignore[assignment]

elif FAULT and os.environ.get("RANK") == "1":
    if FAULT == "words":
        sys.argv.append("optim.momentum=0.5")
    else:
        import torch

        from seer.tasks.swav import SwAVTask

        after_step = SwAVTask.after_step

        def strike(task: SwAVTask, step: int) -> None:
            after_step(task, step)
            if FAULT == "slow":
                time.sleep(0.5)
            if step < 5:
                return
            if FAULT == "bit" and step == 5:
                weight = next(task.backbone.parameters())
                weight.detach().view(torch.int32)[0, 0, 0, 0] ^= 1
            elif FAULT == "error":
                raise ValueError("the battery of rank 1 is empty")
            elif FAULT == "hang":
                time.sleep(3600)

        SwAVTask.after_step = strike  # type: ignore[method-assign]
