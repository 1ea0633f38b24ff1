"""Loading a backbone: our bundles and runs, and state dicts in our names or in torchvision's.

Surprising:
- A file's name says nothing here: widths, depths, group widths and the squeeze ratio are read off the tensors' shapes,
  because published files exist whose names promise another model than they hold. Only the stem's stride is not in any
  shape: it comes from a bundle's description, and is 2 for everything else.
- Pickles are opened with `weights_only=True`, so a file cannot run code; one that holds more than tensors is refused.
- Checkpoints of VISSL and of timm are recognised and refused for now.

Legend: S stage from 1, i block from 0.
"""

from __future__ import annotations

import os
import pickle
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from seer.models.bundle import DESCRIPTION, WEIGHTS, check_weights, fill, read_bundle, read_safetensors, stem_stride_of
from seer.models.regnet import RegNet

if TYPE_CHECKING:
    from seer.core.protocols import Backbone

# Inside a block, ours -> torchvision's; what follows (weight, bias, running_mean, …) is the same on both sides.
_BLOCK_PARTS = {
    "a.conv": "f.a.0",
    "a.bn": "f.a.1",
    "b.conv": "f.b.0",
    "b.bn": "f.b.1",
    "se.reduce": "f.se.fc1",
    "se.expand": "f.se.fc2",
    "c.conv": "f.c.0",
    "c.bn": "f.c.1",
    "shortcut.conv": "proj.0",
    "shortcut.bn": "proj.1",
}
_STEM_PARTS = {"stem.conv": "stem.0", "stem.bn": "stem.1"}
_OUR_PARTS = {theirs: ours for ours, theirs in _BLOCK_PARTS.items()}
_OUR_STEM_PARTS = {theirs: ours for ours, theirs in _STEM_PARTS.items()}
_LEAF = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
_OURS = re.compile(rf"stage(\d{{1,4}})\.block(\d{{1,6}})\.([a-z]+\.[a-z]+)\.{_LEAF}")
_THEIRS = re.compile(rf"trunk_output\.block(\d{{1,4}})\.block(\d{{1,4}})-(\d{{1,6}})\.([a-z0-9.]+)\.{_LEAF}")
_STEM = re.compile(rf"(stem\.[a-z0-9]+)\.{_LEAF}")
_CLASSIFIER = ("fc.weight", "fc.bias")


def load_backbone(path_or_run: str | os.PathLike[str]) -> Backbone:
    """The backbone that a run, a bundle or a weights file holds: float32, on the CPU, in eval mode.

    Takes a run folder (with `bundle/`), a bundle folder, a `.safetensors` file, or a file that torch.save wrote
    (`.pth`, `.pt`) with a state dict in our names or those of torchvision's RegNetY (whose classifier `fc` is dropped).

    Raises FileNotFoundError when nothing is there; ValueError for what is no RegNetY of a known kind, and for missing,
    unexpected or wrong-shaped keys: the first five are named, as the file spells them, and nothing is loaded.
    """
    path = Path(path_or_run)
    if path.is_dir():
        for folder in (path, path / "bundle"):
            if (folder / WEIGHTS).is_file():
                return read_bundle(folder)[0]
        raise FileNotFoundError(
            f"{path} is neither a bundle ({WEIGHTS} with {DESCRIPTION}) nor a run that holds bundle/; a run writes its "
            "bundle when it saves, so give it a file of weights or let the run reach its first save"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a run folder, a bundle folder or a file of weights")
    state: Mapping[str, Any]
    described: Mapping[str, Any] | None = None
    if path.suffix == ".safetensors":
        state, described = read_safetensors(path)
    else:
        state = _read_pickle(path)
    return _from_state(state, stem_stride=stem_stride_of(described, what=str(path)), what=str(path))


def to_torchvision_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the names of `torchvision.models.regnet.RegNet`; the tensors are the same objects.

    Raises ValueError for keys that are no RegNet's of ours, the first five named.
    """
    return _renamed(state_dict, _their_name, what="ours")


def from_torchvision_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's RegNetY state dict under our names, without its classifier `fc`; the tensors are the same objects.

    Raises ValueError for keys that are no torchvision RegNetY's, the first five named.
    """
    trunk = {key: tensor for key, tensor in state_dict.items() if key not in _CLASSIFIER}
    return _renamed(trunk, _our_name, what="torchvision's")


def _renamed(state_dict: Mapping[str, Tensor], name: Callable[[str], str | None], *, what: str) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, tensor in state_dict.items():
        if new := name(key):
            renamed[new] = tensor
        else:
            unknown.append(key)
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ValueError(f"these keys are no RegNetY's in names of {what}: {', '.join(map(repr, unknown[:5]))}{more}")
    return renamed


def _their_name(key: str) -> str | None:
    """Our key -> torchvision's, or None when it is none of ours."""
    if found := _STEM.fullmatch(key):
        part = _STEM_PARTS.get(found[1])
        return part and f"{part}.{found[2]}"
    if found := _OURS.fullmatch(key):
        stage, block, part, leaf = found.groups()
        theirs = _BLOCK_PARTS.get(part)
        return theirs and f"trunk_output.block{stage}.block{stage}-{block}.{theirs}.{leaf}"
    return None


def _our_name(key: str) -> str | None:
    """torchvision's key -> ours, or None when it is none of theirs."""
    if found := _STEM.fullmatch(key):
        part = _OUR_STEM_PARTS.get(found[1])
        return part and f"{part}.{found[2]}"
    if found := _THEIRS.fullmatch(key):
        stage, again, block, part, leaf = found.groups()
        ours = _OUR_PARTS.get(part) if stage == again else None
        return ours and f"stage{stage}.block{block}.{ours}.{leaf}"
    return None


def _read_pickle(path: Path) -> Mapping[str, Any]:
    """What torch.save wrote, unpickled by torch's restricted reader: tensors, numbers, strings and containers only."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds Python objects beyond tensors, or is no file of torch.save; it was not opened further: "
            f"such a file can run code. Save the bare state dict, torch.save(model.state_dict(), …). ({error})"
        ) from error
    except OSError:
        raise
    except Exception as error:  # a cut or foreign file makes torch.load raise nearly anything
        raise ValueError(f"{path} cannot be read as a file of torch.save: {type(error).__name__}: {error}") from error
    if not isinstance(loaded, Mapping) or not all(isinstance(key, str) for key in loaded):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, wanted a state dict: names -> tensors")
    for key, value in loaded.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            continue
        stored = value.untyped_storage().nbytes()
        if value.numel() * value.itemsize > stored:
            raise ValueError(f"{path}: {key} claims {list(value.shape)} but stores {stored} bytes; save it contiguous")
    return loaded


def _from_state(state: Mapping[str, Any], *, stem_stride: int, what: str) -> Backbone:
    foreign = _foreign(state)
    if foreign:
        raise ValueError(f"{what} {foreign}")
    theirs = any(key.startswith("trunk_output.") for key in state)
    if theirs:
        state = {key: value for key, value in state.items() if key not in _CLASSIFIER}
        known = {ours: value for key, value in state.items() if (ours := _our_name(key))}
    else:
        known = dict(state)
    architecture = _infer(known, entries=len(state), what=what)
    with torch.device("meta"):
        backbone = RegNet(**architecture, stem_stride=stem_stride)
    if theirs:
        # Checked under the file's own names, so that the message speaks of keys its owner can find.
        check_weights(state, to_torchvision_names(backbone.state_dict()), what=f"the weights in {what}")
        state = from_torchvision_names(state)
    return fill(backbone, state, what=what)


def _foreign(state: Mapping[str, Any]) -> str | None:
    """Why this is no state dict of a known kind, as the end of a sentence; None when it may be one."""
    if "classy_state_dict" in state or any("_feature_blocks." in key for key in state):
        return "is a checkpoint of VISSL (SEER's training code), which this version does not read yet"
    if any(re.match(r"s\d+\.b\d+\.conv1\.", key) for key in state):
        return "is a RegNet of timm, which this version does not read yet: give torchvision's or ours"
    if any(key.startswith("module.") for key in state):
        return "has keys with the prefix 'module.' of a wrapped model: save model.module.state_dict() instead"
    nested = [key for key, value in state.items() if isinstance(value, Mapping)]
    if nested:
        return f"is a checkpoint of several parts, {', '.join(map(repr, nested[:5]))}: save the backbone's part alone"
    if not any(key.startswith(("trunk_output.block", "stage")) for key in state):
        return f"holds no RegNetY, ours or torchvision's; its first keys: {', '.join(map(repr, list(state)[:5]))}"
    if any(key.startswith("trunk_output.") for key in state) and not any(".f.se." in key for key in state):
        return "is a RegNet without squeeze-and-excitation (RegNetX); only RegNetY is supported"
    return None


def _infer(ours: Mapping[str, Any], *, entries: int, what: str) -> dict[str, Any]:
    """Constructor arguments from tensor shapes, by majority within a stage, so that a single bad tensor is named later.

    Raises ValueError when a stage lacks everything that would tell its shape.
    """
    depths: dict[int, int] = {}
    widths: dict[int, Counter[int]] = {}
    group_widths: dict[int, Counter[int]] = {}
    squeezed: dict[tuple[int, int], int] = {}
    for key, tensor in ours.items():
        found = _OURS.fullmatch(key)
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
    stem = [
        tensor.shape[0]
        for key, tensor in ours.items()
        if key.startswith("stem.") and isinstance(tensor, Tensor) and tensor.ndim
    ]
    if not stem or sorted(depths) != list(stages) or any(s not in widths or s not in group_widths for s in stages):
        raise ValueError(
            f"{what} does not tell its architecture: wanted the stem, and batch norms and grouped convolutions of each "
            f"stage from 1 on; it has stages {sorted(depths)} and {'a' if stem else 'no'} stem"
        )
    if sum(depths.values()) > entries:
        raise ValueError(f"{what} numbers {sum(depths.values())} blocks but has {entries} entries: it is not whole")
    stem_width = _most(Counter(stem))
    width = {stage: _most(widths[stage]) for stage in stages}
    entering = {
        (stage, block): max(1, width[stage] if block else width.get(stage - 1, stem_width)) for stage, block in squeezed
    }

    def explained(ratio: float) -> int:
        return sum(round(ratio * entering[place]) == count for place, count in squeezed.items())

    # Rounding hides the true ratio; of the candidates, the one that explains most blocks wins, on a tie the usual 0.25.
    se_ratio = max([0.25, *(count / entering[place] for place, count in squeezed.items())], key=explained)
    return {
        "widths": [width[stage] for stage in stages],
        "depths": [depths[stage] for stage in stages],
        "group_widths": [_most(group_widths[stage]) for stage in stages],
        "se_ratio": se_ratio,
        "stem_width": stem_width,
    }


def _most(counts: Counter[int]) -> int:
    return counts.most_common(1)[0][0]
