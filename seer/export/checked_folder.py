"""Writes a folder of another library only once its features were compared there: a failed check leaves the older files."""

import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from seer.export import parity
from seer.models.bundle import write_safetensors
from seer.models.model_folders import MODEL_FILE


def write_checked(
    output: Path,
    state: Mapping[str, Tensor],
    texts: Mapping[str, str],
    features_of: Callable[[Path], Tensor],
    expected: Tensor,
    *,
    tolerance: float,
    what: str,
) -> float:
    """Writes weights and texts, by file name, and returns the largest difference of features over the largest feature.

    features_of: reads the folder in the other library, [N, C]. expected: [N, C]. what: for the message. Raises ValueError for a
    difference above `tolerance`.
    """
    output.mkdir(parents=True, exist_ok=True)
    unchecked = output / f".{uuid.uuid4().hex}.tmp"
    unchecked.mkdir()
    try:
        write_safetensors(state, unchecked / MODEL_FILE)
        for name, text in texts.items():
            (unchecked / name).write_text(text, encoding="utf-8")
        difference = parity.relative_difference(features_of(unchecked), expected)
        parity.require(difference, tolerance=tolerance, what=what)
        for name in (MODEL_FILE, *texts):
            os.replace(unchecked / name, output / name)
    finally:
        shutil.rmtree(unchecked)
    return difference
