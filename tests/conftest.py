"""Shared by all tests: one thread a process, since tests share two cores with the ranks that they start."""

import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from seer.core.log import log
from seer.core.signals import SIGNALS
from seer.data import synthetic as sample

torch.set_num_threads(1)
# Ignored where a script starts the tests in the background, and then by all processes that they start.
for number in SIGNALS:
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def told(caplog, monkeypatch) -> Iterator[pytest.LogCaptureFixture]:
    """What people are told, from warnings on; not what libraries say in between, some of them once a process."""
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.WARNING, logger="seer")
    ours = logging.Filter("seer")
    caplog.handler.addFilter(ours)
    yield caplog
    caplog.handler.removeFilter(ours)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the checkout; tests that need it are skipped without it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real images beside the checkout")
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 20 drawn images, to be read only."""
    folder = tmp_path_factory.mktemp("pictures")
    for key, fields in sample.samples(20, seed=2):
        (folder / f"{key}.jpg").write_bytes(fields["jpg"])
    return folder


@pytest.fixture(scope="session")
def wheel_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this tree, about 3 s. From a copy, since pip builds in place and a left-over build/lib would put
    deleted files into it; without isolation, from the setuptools of this environment, so that nothing is fetched."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in ("setup.py", "pyproject.toml", "LICENSE", "seer", "configs"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    made = subprocess.run([*command, "-w", folder, folder / "source"], capture_output=True, text=True, timeout=120)
    assert made.returncode == 0, made.stdout + made.stderr
    (path,) = folder.glob("*.whl")
    return path
