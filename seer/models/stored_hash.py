"""Says by a hash whether a file of weights is what was written, so that flipped bits and exchanged files are not taken for weights.

Surprising:
- safetensors files carry the hash of their tensors in their own metadata (`TENSORS`), which transformers and timm pass over. It goes
  where the file goes, and is of values rather than bytes, because a file cannot hold its own hash. The texts around the tensors
  (config.json, bundle.json) are for people to edit and have none.
- A file of torch.save has no room for it: `FILE.json` lies beside. Moved without that, or written before there were hashes, a file
  loads as ever.
- Hashing reads the weights once more.

FILE.json, version 1: {"format": "seer-weights", "version": 1, "file", "bytes", "sha256"}
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from seer.core.errors import BadDataError
from seer.models.head_files import hash_of_tensors

TENSORS = "seer-sha256-of-tensors"  # in the metadata of a safetensors file
FORMAT, VERSION = "seer-weights", 1


def beside(file: Path) -> Path:
    """Returns where the description of a file of weights lies."""
    return file.with_name(f"{file.name}.json")


def described(file: Path, name: str) -> str:
    """Returns the text of the description of `file`, which is to be called `name`."""
    what = {"format": FORMAT, "version": VERSION, "file": name, "bytes": file.stat().st_size, "sha256": _sha256(file)}
    return json.dumps(what, indent=2) + "\n"


def check_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], what: Path) -> None:
    """Raises BadDataError where tensors are not those that the metadata of their file was written for."""
    wanted = metadata.get(TENSORS)
    if wanted is not None and (found := hash_of_tensors(tensors)) != wanted:
        raise BadDataError(
            f"{what} holds tensors of the sha256 {found[:12]}…, its own metadata says {wanted[:12]}…: it was damaged or altered; "
            "copy or export it again"
        )


def check_beside(file: Path) -> None:
    """Raises BadDataError where a file has another hash than its description beside it says; without one of ours, nothing is asked."""
    if not beside(file).is_file():
        return
    try:
        told = json.loads(beside(file).read_text(encoding="utf-8"))
    except ValueError:  # of whoever wrote it: nothing says that it is of these weights
        return
    if not isinstance(told, dict) or told.get("format") != FORMAT:
        return
    if (found := _sha256(file)) != told.get("sha256"):
        raise BadDataError(
            f"{file} has the sha256 {found[:12]}…, {beside(file).name} says {str(told.get('sha256'))[:12]}…: it was damaged, altered "
            f"or replaced; copy both or export it again, or remove {beside(file).name} if the file was replaced on purpose"
        )


def _sha256(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
