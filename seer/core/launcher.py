"""Reads which rank this process is from the variables that launchers set: torchrun's, or those of SLURM's srun.

torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. srun sets its own; from these the others are made, so
that `srun seer pretrain …` trains as many ranks as there are tasks. Surprising: SLURM_PROCID and SLURM_NTASKS also stand in a
batch script, which is one process whatever it asked for; srun's SLURM_STEP_NUM_TASKS tells the two apart.

Imports nothing heavy: the program asks before its words are read.
"""

import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from seer.core.errors import RequestError

ALONE = "for one process unset {name}; for several start them with torchrun or srun"
MEANT = {  # what launchers put there
    "RANK": "the number of this process among all, from 0",
    "WORLD_SIZE": "how many processes train together, 1 or more",
    "LOCAL_RANK": "the number of this process on its machine, from 0",
    "MASTER_ADDR": "the host of rank 0",
    "MASTER_PORT": "a port of that host, 1 to 65535",
    "SLURM_PROCID": "the number of this task among all, from 0",
    "SLURM_LOCALID": "the number of this task on its node, from 0",
    "SLURM_NTASKS": "how many tasks there are",
    "SLURM_STEP_NUM_TASKS": "how many tasks the step has",
}


@dataclass(frozen=True)
class Place:
    """Holds where this process stands among those that train together. note: what people should know of it; "" for
    nothing."""

    rank: int = 0
    size: int = 1
    local: int = 0
    note: str = ""


def place(given: Mapping[str, str]) -> Place:
    """Returns the place that torchrun's variables tell, or those of a launcher that sets the same. Raises RequestError, with
    the variable, for what is no number and for a rank outside of its world."""
    _check_not_empty(given, "RANK", "WORLD_SIZE", "LOCAL_RANK")
    rank, size, local = (_whole(given, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if rank is None and size in (None, 1):
        return Place()
    if rank is None:
        raise RequestError(f"WORLD_SIZE={size} is set, but RANK is not; {ALONE.format(name='WORLD_SIZE')}")
    if size is None and rank:
        raise RequestError(f"RANK={rank} is set, but WORLD_SIZE is not; {ALONE.format(name='RANK')}")
    size = 1 if size is None else size
    if size == 0:
        raise RequestError(f"WORLD_SIZE=0 with RANK={rank}: it is {MEANT['WORLD_SIZE']}; {ALONE.format(name='both')}")
    if rank >= size:
        raise RequestError(f"RANK={rank} of WORLD_SIZE={size}: ranks count from 0 to {size - 1}; see to the launcher")
    return Place(rank, size, rank if local is None else local)


def adopt(given: MutableMapping[str, str]) -> Place:
    """Returns the place of this process; where srun alone has told it, sets torchrun's variables, which libraries read.

    Raises RequestError.
    """
    if "RANK" in given or "WORLD_SIZE" in given or "SLURM_PROCID" not in given:
        return place(given)
    _check_not_empty(given, "SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    told = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in given else "SLURM_NTASKS"
    size, rank = _whole(given, told) or 1, _whole(given, "SLURM_PROCID") or 0
    if size == 1:
        return Place()
    if told == "SLURM_NTASKS" and rank == 0 and "SLURM_JOB_ID" in given:
        words = f"SLURM_NTASKS={size}, but this is one process, started without srun; all of them: srun seer pretrain …"
        return Place(note=words)
    if rank >= size:
        raise RequestError(f"SLURM_PROCID={rank} of {told}={size}: ranks count from 0 to {size - 1}")
    local = _whole(given, "SLURM_LOCALID")
    given.update(RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank if local is None else local))
    given.setdefault("MASTER_ADDR", _first_host(given))
    given.setdefault("MASTER_PORT", str(_port(given)))
    return place(given)


def check_meeting(given: Mapping[str, str]) -> None:
    """Raises RequestError where several ranks could not find each other, since the first one's address is not told."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not given.get(name, "").strip():
            raise RequestError(
                f"WORLD_SIZE={given.get('WORLD_SIZE')}, but {name} is {'empty' if name in given else 'not set'}, so ranks cannot "
                f"find each other; start them with torchrun, or set {name} to {MEANT[name]}"
            )
    _whole(given, "MASTER_PORT")


def device_index(local: int, count: int, given: Mapping[str, str]) -> int:
    """Returns which of the GPUs that a process sees is its own: that of its local rank, or the only one that SLURM's binding
    (--gpus-per-task, --gpu-bind) has left it. Raises RequestError where ranks are more than GPUs."""
    if local < count:
        return local
    bound = count == 1 and ("SLURM_GPUS_PER_TASK" in given or (_whole(given, "SLURM_GPUS_ON_NODE") or 0) > 1)
    if bound:
        return 0
    raise RequestError(f"local rank {local}, but {count} GPUs; start one rank a GPU")


def idle_gpus(count: int, given: Mapping[str, str]) -> str:
    """Returns a line for one process that uses one of several GPUs: how to use all; "" where there are no others."""
    if count < 2:
        return ""
    in_slurm = "SLURM_JOB_ID" in given
    command = f"srun --ntasks={count} seer" if in_slurm else f"torchrun --standalone --nproc_per_node={count} -m seer"
    return f"1 of {count} GPUs is used; for all of them: {command} pretrain …"


def _check_not_empty(given: Mapping[str, str], *names: str) -> None:
    """Raises RequestError for variables that are set and empty, all of them named: a script has mostly passed several on that
    nothing had filled."""
    empty = [name for name in names if name in given and not given[name].strip()]
    if empty:
        told = ", ".join(f"{name}= ({MEANT[name]})" for name in empty)
        raise RequestError(
            f"set in the environment, but empty: {told}. Whatever was to fill {'it' if len(empty) == 1 else 'them'} has not; "
            f"{ALONE.format(name=' '.join(empty))}"
        )


def _whole(given: Mapping[str, str], name: str) -> int | None:
    """Returns a variable's whole number, None where it is not set. Raises RequestError."""
    value = given.get(name)
    if value is None:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", value.strip(), re.ASCII):
        meant = MEANT.get(name, "a whole number")
        raise RequestError(f"{name}={value[:40]} in the environment: {meant} is expected; {ALONE.format(name=name)}")
    return int(value)


def _first_host(given: Mapping[str, str]) -> str:
    """Returns the host of rank 0: `n7r1` of `n[7-9,12]r[1-2],m1`. Raises RequestError without a list of nodes."""
    nodes = given.get("SLURM_STEP_NODELIST") or given.get("SLURM_JOB_NODELIST") or ""
    if nodes and not any(sign in nodes for sign in ",["):
        return "127.0.0.1"  # one host, whose name need not be known to itself
    found = re.match(r"(?:[^,\[\]]|\[[^\]]*\])+", nodes)  # up to the first comma that stands in no range
    if not found:
        raise RequestError(
            f"SLURM_PROCID={given['SLURM_PROCID']} of {given.get('SLURM_NTASKS')}, but no SLURM_JOB_NODELIST that names the host "
            "of the first rank; start with srun inside a job, as launch/slurm.sbatch does, or set MASTER_ADDR and MASTER_PORT"
        )
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", found[0])


def _port(given: Mapping[str, str]) -> int:
    """Returns a port that all ranks of a step find by themselves, and another step of the job hardly shares."""
    job, step = (_whole(given, name) or 0 for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return 20000 + (job + 7919 * step) % 20000
