"""Reads the layouts of model folders of Hugging Face and timm: one file of weights, or an index and its parts.

Surprising:
- An index is a stranger's word: it may name files beside itself, by their plain names, and no other. (A link in the folder may
  lead elsewhere: the hub's own cache is made of such.)
- Beside the weights such a folder says how pixels are normalized (`pixels_in`), which their names and shapes do not.
- What the index names is taken, from the part that it says; what parts hold besides is not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from seer.core.errors import RequestError
from seer.core.log import log

MODEL_FILE = "model.safetensors"  # what timm and Hugging Face call the weights in a model's folder
INDEX = ".index.json"
# In the order of preference, as transformers has it.
LAYOUTS = (MODEL_FILE, MODEL_FILE + INDEX, "pytorch_model.bin", "pytorch_model.bin" + INDEX)
_OTHERS = ("tf_model.h5", "flax_model.msgpack")


def file_in(folder: Path) -> tuple[Path | None, list[str]]:
    """Returns (the file of weights, or an index, of a model folder; names of others there that would do). None where there is
    neither."""
    there = [name for name in LAYOUTS if (folder / name).is_file()]
    return (folder / there[0] if there else None), there[1:]


def unread_in(folder: Path) -> list[str]:
    """Returns names of weights of other frameworks in a folder, which are not read."""
    return [name for name in _OTHERS if (folder / name).is_file()]


def pixels_in(folder: Path) -> dict[str, Any]:
    """Returns `mean`, `std` and `input_size`, as far as a model folder of timm (config.json) or Hugging Face
    (preprocessor_config.json) says them; what cannot be meant so is told and passed over."""
    found: dict[str, Any] = {}
    for name, keys in _CONFIGS.items():
        file = folder / name
        if not file.is_file():
            continue
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            log.warning(f"{file} is not read: {error}; what it says of the pixels is not known")
            continue
        content = content.get("pretrained_cfg", content) if isinstance(content, dict) else {}
        if isinstance(content, dict) and content.get("do_center_crop") and content.get("crop_size") is not None:
            content = content | {"size": content["crop_size"]}  # `size` is then what the image is resized to before
        for ours, (theirs, sound) in keys.items():
            if isinstance(content, dict) and content.get(theirs) is not None:
                value = sound(content[theirs])
                if value is None:
                    log.warning(f"{file}: {theirs}={content[theirs]!r} is not understood and passed over")
                else:
                    found[ours] = value
    return found


def _mean(value: Any) -> list[float] | None:
    numbers = isinstance(value, list) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    return [float(v) for v in value] if numbers and len(value) == 3 and all(map(math.isfinite, value)) else None


def _std(value: Any) -> list[float] | None:
    found = _mean(value)
    return found if found and min(found) > 0 else None


def _side(value: Any) -> int | None:
    """Returns the side of square images: of 224, of [3, 224, 224] or of {"shortest_edge": 224} and the like."""
    if isinstance(value, dict):
        value = next((value[key] for key in ("shortest_edge", "height") if key in value), None)
    if isinstance(value, list) and len(value) == 3:
        value = value[-1]
    return value if isinstance(value, int) and not isinstance(value, bool) and 8 <= value <= 4096 else None


# file -> ours -> (theirs, what makes sense of it); what comes later goes before
_CONFIGS: dict[str, dict[str, tuple[str, Callable[[Any], Any]]]] = {
    "preprocessor_config.json": {
        "mean": ("image_mean", _mean),
        "std": ("image_std", _std),
        "input_size": ("size", _side),
    },
    "config.json": {"mean": ("mean", _mean), "std": ("std", _std), "input_size": ("input_size", _side)},
}


def read_parts(index: Path, read: Callable[[Path], Mapping[Any, Any]]) -> dict[str, Any]:
    """Returns the state dict that an index is of. read: a part's file -> its state dict. Raises RequestError."""
    named = _weight_map(index)
    state: dict[str, Any] = {}
    for file in dict.fromkeys(named.values()):
        part = index.parent / file
        if not part.is_file():
            raise RequestError(f"{index} names the part {file!r}, which is not in {index.parent}: put all parts there")
        held = read(part)
        expected = [key for key, of in named.items() if of == file]
        absent = [key for key in expected if key not in held]
        if absent:
            raise RequestError(
                f"{index} says that {file} holds {', '.join(map(repr, absent[:5]))}, which it does not: take index and parts "
                "from one place"
            )
        state |= {key: held[key] for key in expected}
    return state


def _weight_map(index: Path) -> dict[str, str]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RequestError(f"{index} is no JSON ({error}): fetch it again") from error
    named = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(named, dict) or not named:
        raise RequestError(
            f"{index} has no weight_map, names of tensors -> files: give the index that lies with the parts"
        )
    for key, file in named.items():
        if not isinstance(file, str) or file in ("", ".", "..") or "/" in file or "\\" in file or "\0" in file:
            raise RequestError(
                f"{index} places {key!r} in {file!r}, wanted the plain name of a file beside the index: it is not followed "
                "out of its folder"
            )
    return named
