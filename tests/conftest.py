"""Shared by all tests: one thread a process, since tests share two cores with the ranks that they start."""

import sys
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real pictures beside the checkout; tests that need it are skipped without it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real pictures beside the checkout")
    return folder


def run_words(*words: str, env: dict[str, str] | None = None) -> list[str]:
    """The command line of `seer` with this interpreter."""
    return [sys.executable, "-m", "seer", *words]
