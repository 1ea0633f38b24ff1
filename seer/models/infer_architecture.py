"""Tells the architecture of a RegNetY's state dict from the shapes of its tensors.

Surprising: everything is decided by majority within a stage, so that a single bad tensor is named later, when the keys are
compared, and does not bend the architecture to itself. The squeeze ratio was rounded away: of the ratios that the tensors
suggest, the one that explains most blocks wins. The stem's stride leaves no trace in any shape. Legend: S stage from 1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from seer.core.errors import RequestError

_BLOCK = re.compile(r"stage(\d{1,4})\.block(\d{1,6})\.([a-z]+\.[a-z]+)\.([a-z_]+)")


def architecture_of(ours: Mapping[str, Any], *, entries: int, what: str) -> dict[str, Any]:
    """Returns the arguments of `RegNet`, but for the stem's stride, that fit these tensors under our names.

    `entries` is how many keys the file has: more blocks than that cannot be. Raises RequestError when a stage lacks
    everything that would tell its shape.
    """
    depths: dict[int, int] = {}
    widths: dict[int, Counter[int]] = {}
    group_widths: dict[int, Counter[int]] = {}
    squeezed: dict[tuple[int, int], int] = {}
    for key, tensor in ours.items():
        found = _BLOCK.fullmatch(key)
        if not found or not isinstance(tensor, Tensor):
            continue
        stage, block, part, leaf = int(found[1]), int(found[2]), found[3], found[4]
        depths[stage] = max(depths.get(stage, 0), block + 1)
        if part.endswith(".bn") and tensor.ndim == 1:
            widths.setdefault(stage, Counter())[tensor.shape[0]] += 1
        elif (part, leaf) == ("b.conv", "weight") and tensor.ndim == 4:
            group_widths.setdefault(stage, Counter())[tensor.shape[1]] += 1
        elif (part, leaf) == ("se.reduce", "weight") and tensor.ndim == 4:
            squeezed[stage, block] = tensor.shape[0]
    stages = range(1, len(depths) + 1)
    stem = Counter(
        tensor.shape[0]
        for key, tensor in ours.items()
        if key.startswith("stem.") and isinstance(tensor, Tensor) and tensor.ndim
    )
    if not stem or sorted(depths) != list(stages) or any(s not in widths or s not in group_widths for s in stages):
        raise RequestError(
            f"{what} does not tell its architecture: wanted the stem, and batch norms and grouped convolutions of each "
            f"stage from 1 on; it has stages {sorted(depths)} and {'a' if stem else 'no'} stem. Give the whole file"
        )
    if sum(depths.values()) > entries:
        raise RequestError(
            f"{what} numbers {sum(depths.values())} blocks but has {entries} entries: it is not whole. Give the whole file"
        )
    stem_width = _most(stem)
    width = {stage: _most(widths[stage]) for stage in stages}
    return {
        "widths": list(width.values()),
        "depths": [depths[stage] for stage in stages],
        "group_widths": [_most(group_widths[stage]) for stage in stages],
        "se_ratio": _se_ratio(squeezed, width, stem_width),
        "stem_width": stem_width,
        **in_channels(ours.get("stem.conv.weight")),
    }


def in_channels(first: Any) -> dict[str, int]:
    """Returns the entry of an architecture for the channels of an image, by the first convolution's weight: none for three."""
    channels = first.shape[1] if isinstance(first, Tensor) and first.ndim == 4 else 3
    return {} if channels == 3 else {"in_channels": channels}


def _se_ratio(squeezed: Mapping[tuple[int, int], int], width: Mapping[int, int], stem_width: int) -> float:
    entering = {
        (stage, block): max(1, width[stage] if block else width.get(stage - 1, stem_width)) for stage, block in squeezed
    }

    def explained(ratio: float) -> int:
        return sum(round(ratio * entering[place]) == count for place, count in squeezed.items())

    return max([0.25, *(count / entering[place] for place, count in squeezed.items())], key=explained)  # a tie: 0.25


def _most(counts: Counter[int]) -> int:
    return counts.most_common(1)[0][0]
