"""What the scripts in launch/ ask of the launcher."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.program import ROOT, environment

STAND_IN = f"""#!/usr/bin/env bash
if [ "$2" = torch.distributed.run ]; then exec {sys.executable} -c '
from torch.distributed.launcher.api import LaunchConfig
print(LaunchConfig(1, 1, 1).shutdown_timeout)'; fi
exit 1
"""


@pytest.mark.slow
def test_torchrun_gives_ranks_that_save_as_long_as_a_collective_may_wait(tmp_path: Path) -> None:
    """Its own 30 s from SIGTERM to SIGKILL are less than a save of a large model takes."""
    python = tmp_path / "python"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    names = environment()
    names["PATH"] = f"{tmp_path}:{names['PATH']}"
    script = ROOT / "launch" / "torchrun.sh"
    ended = subprocess.run(["bash", script], cwd=tmp_path, env=names, capture_output=True, text=True, timeout=60)
    assert ended.stdout.split() == ["600"], ended.stderr


@pytest.mark.parametrize(
    ("printed", "kept", "status"),
    [
        ('{"exit": 75}', None, 75),  # told to stop before the run had its folder
        ('{"exit": 75}', '{"exit": 74}', 74),
        ("", None, 1),
    ],
)
def test_the_script_ends_with_the_status_of_the_run_and_not_of_torchrun(tmp_path: Path, printed, kept, status) -> None:
    (tmp_path / "runs" / "first").mkdir(parents=True)
    keep = f"echo '{kept}' > runs/first/result.json" if kept else ":"
    ranks = f"{keep}; echo '{printed}'; exit 1" if printed else "exit 1"
    python = tmp_path / "python"
    python.write_text(
        f'#!/usr/bin/env bash\nif [ "$2" = torch.distributed.run ]; then {ranks}; fi\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    names = {**environment(), "PATH": f"{tmp_path}:{environment()['PATH']}"}
    command = ["bash", ROOT / "launch" / "torchrun.sh"]
    ended = subprocess.run(command, cwd=tmp_path, env=names, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout.strip()) == (status, printed), ended.stderr


SLURM = {  # stand-ins for its commands
    "scontrol": 'if [ "$1" = show ]; then echo n1; else echo "$@" >> told; fi',
    "squeue": "cat state",
    "srun": "trap 'exit 75' USR1; touch begun; for _ in $(seq 200); do [ -e status ] && exit $(cat status); sleep 0.05; done",
}


@pytest.mark.parametrize(
    ("ended", "state", "again"),
    [
        ("signal", "RUNNING/None", True),
        (75, "RUNNING/None", True),
        (138, "RUNNING/None", True),  # USR1 before Python ran
        (75, "COMPLETING/TimeLimit", True),
        (75, "COMPLETING/None", False),  # somebody cancelled the job
        (0, "RUNNING/None", False),
        (70, "RUNNING/None", False),
    ],
)
def test_a_job_queues_itself_again_where_it_was_told_to_stop(tmp_path: Path, ended, state: str, again: bool) -> None:
    for name, lines in SLURM.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{lines}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "state").write_text(state)
    names = {**environment(), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"}
    names["PATH"] = f"{tmp_path}:{names['PATH']}"
    if ended != "signal":
        (tmp_path / "status").write_text(str(ended))
    script = subprocess.Popen(["bash", ROOT / "launch" / "slurm.sbatch"], cwd=tmp_path, env=names)
    if ended == "signal":
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        script.send_signal(signal.SIGUSR1)  # to the script alone, as from scancel --batch
    assert script.wait(30) == (75 if ended == "signal" else ended)
    assert (tmp_path / "told").exists() == again
