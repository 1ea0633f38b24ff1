"""An installed wheel needs no checkout: it runs in another environment, outside, with the torch that is there."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


def test_an_installed_wheel_pretrains_outside_the_checkout(wheel_path: Path, tmp_path: Path) -> None:
    home = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True, timeout=60)
    (packages,) = home.glob("lib/python*/site-packages")
    # Names the folder of the installed torch. Python reads no .pth files there, so an editable SEER in it stays unseen.
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", f"--python={home / 'bin' / 'python'}"]
    install = [*pip, "install", "-q", "--no-deps", str(wheel_path)]
    subprocess.run(install, check=True, timeout=120)
    place = tmp_path / "elsewhere"
    place.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    where = [str(home / "bin" / "python"), "-c", "import seer; print(seer.__file__)"]
    found = subprocess.run(where, check=True, capture_output=True, text=True, cwd=place, env=environment).stdout
    assert found.startswith(str(home))
    words = ["pretrain", "recipe=sample", "steps=20", "data.drawn=400", "data.drawn_test=50", "parallel.device=cpu"]
    run = subprocess.run(
        [str(home / "bin" / "seer"), *words], capture_output=True, text=True, cwd=place, env=environment, timeout=300
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.strip().splitlines()[-1])
    assert result["steps"] == 20 and (place / "runs" / "sample" / "bundle" / "backbone.safetensors").exists()
