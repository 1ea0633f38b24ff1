"""What the scripts in launch/ ask of the launcher."""

import subprocess
import sys
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
