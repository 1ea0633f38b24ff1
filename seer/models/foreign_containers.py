"""Reads files that torch.save wrote: other trainers' as they are, those of VISSL out of all their containers.

VISSL's files (`.torch`), told apart by their entry `type` and by what they hold:

    consolidated  classy_state_dict > base_model > model > trunk {name: tensor}, heads; beside it optimizer, meters, …
    shard_list    `shards`: the files of the ranks, one each; a rank's file has base_model > model > trunk with its piece of
                  every flattened parameter, and base_model > meta > trunk, which says how to cut and shape the whole
    slice_list    as consolidated, but {name: path}; each file holds one tensor as `weight`. Older ones keep it in `layers`

Surprising:
- No file runs code: torch's restricted unpickler reads them. Of foreign names it knows those of `models/inert_types.py`, none of
  which has anything behind it; everything else is refused by name.
- The lists record paths of the machine that wrote them, perhaps absolute ones. Only their last name counts, beside the list
  (slices: in the folder of that name beside it), so a list can be moved and cannot point anywhere else.
- Buffers are whole in every shard; the first one's are taken. Padding at the end of a shard is cut off.
- Zip files are mapped, not read: the optimizer's half of a checkpoint never enters memory.

Sources: facebookresearch/vissl, vissl/utils/checkpoint.py; fairscale's fully_sharded_data_parallel.py (both shapes of its
metadata: one before and one since version 0.4.2).
"""

from __future__ import annotations

import errno
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seer.core.errors import RequestError
from seer.models.file_kinds import kind_of
from seer.models.inert_types import ALLOWED

_CHAIN = ("classy_state_dict", "base_model", "model")
_TRUNKS = ("trunk", "model_state_dict", "state_dict")
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")  # torch's messages have colors
_FOREIGN = re.compile(
    r"GLOBAL ([A-Za-z_][\w.]*) (?:was not|whose)"
)  # a name that torch knows and this program does not


def read_checkpoint(path: Path) -> tuple[dict[str, Any], str]:
    """Returns (what VISSL's container holds of the backbone, and of heads where it mixes them, under the file's names; of
    another trainer's file all of it; which container it was).

    Tensors may be windows onto the file. Raises RequestError for Python objects beyond tensors, cut files, parts without
    their whole, and containers of another make.
    """
    top = _load(path)
    if not isinstance(top, Mapping):
        raise RequestError(
            f"{path} holds a {type(top).__name__}, wanted a state dict: names -> tensors. Save that alone"
        )
    kind = top.get("type") if isinstance(top.get("type"), str) else None
    if kind in ("shard", "slice"):
        whole = "the file without _shardN in its name" if kind == "shard" else "the .torch beside its _layers folder"
        raise RequestError(
            f"{path} is one {kind} of a checkpoint of VISSL: give the list that names all of them, {whole}"
        )
    if kind == "shard_list":
        state = _from_shards(path, top.get("shards"))
    else:
        state = _trunk(path, top)
        theirs = state is not top and bool(state) and all(isinstance(value, str) for value in state.values())
        if kind == "slice_list" or theirs:
            state, kind = _from_slices(path, state), "slice_list"
    return state, kind or ("consolidated" if "classy_state_dict" in top else "state dict")


def _load(path: Path) -> Any:
    """Returns what torch.save wrote, read by torch's restricted unpickler: tensors, numbers, strings and
    containers only, and nothing for the types that are inert."""
    try:
        with torch.serialization.safe_globals(ALLOWED), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*TorchScript archive")  # refused in our own words
            if path.suffix == ".safetensors":  # torch goes by that name; the bytes say otherwise
                with open(path, "rb") as file:
                    return torch.load(file, map_location="cpu", weights_only=True)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a cut or foreign file makes torch.load raise nearly anything
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that is how torch says that a zip is cut
            raise
        raise _refused(path, error) from error


def _refused(path: Path, error: Exception) -> RequestError:
    """Returns the error that says what is wrong with a file that torch did not load, as far as that is known."""
    said = _said(error)
    foreign = _FOREIGN.search(said) if isinstance(error, pickle.UnpicklingError) else None
    kind = kind_of(path)
    if kind and not (foreign and kind.startswith("a text")):  # a pickle of the first protocol is a text, too
        return RequestError(f"{path} is no file of torch.save but {kind}")
    if foreign:
        return RequestError(
            f"{path} holds Python objects beyond tensors ({foreign[1]}), which could run code; it was not opened further. "
            "Where you trust it, save its state dict alone, torch.save(model.state_dict(), …), and give that"
        )
    return RequestError(
        f"{path} cannot be read as a file of torch.save: {type(error).__name__}: {said}. Fetch or save it again"
    )


def _said(error: Exception) -> str:
    """Returns the line of torch's message that names the fault, without its colors and its advice to trust the file."""
    lines = [line.strip() for line in _ESCAPES.sub("", str(error)).split("Check the documentation")[0].splitlines()]
    last = next((line for line in reversed(lines) if line), type(error).__name__)
    return last.removeprefix("WeightsUnpickler error:").split(". Please use", 1)[0].strip()


def _trunk(path: Path, top: Mapping[str, Any]) -> dict[str, Any]:
    if "classy_state_dict" not in top and not isinstance(top.get("layers"), Mapping):
        return top  # type: ignore[return-value]  # not VISSL's: `models/candidates.py` looks for the backbone in it
    node = top
    for step in _CHAIN:
        if isinstance(node.get(step), Mapping):
            node = node[step]
    if node is top and isinstance(top.get("layers"), Mapping):
        return dict(top["layers"])
    for name in _TRUNKS:
        if isinstance(node.get(name), Mapping):
            return dict(node[name])
    if "classy_state_dict" in top and not any(isinstance(value, Tensor) for value in node.values()):
        raise RequestError(
            f"{path} has a classy_state_dict without base_model > model > trunk; there it holds "
            f"{', '.join(map(repr, list(node)[:5])) or 'nothing'}. Give a checkpoint that VISSL wrote with its model"
        )
    return dict(node)


def check_stored(path: Path, state: Mapping[str, Any]) -> None:
    """Raises RequestError for a tensor whose shape its numbers do not fill: copying it could fill the memory."""
    for key, value in state.items():
        if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta:
            stored = value.untyped_storage().nbytes()
            if value.numel() * value.itemsize > stored:
                raise RequestError(
                    f"{path}: {key} claims {list(value.shape)} but stores {stored} bytes; save it contiguous"
                )


def _part_of(path: Path, recorded: Any, folder: Path, what: str) -> Any:
    """Returns the content of a file that a list names, looked for in `folder` whatever path was recorded."""
    name = Path(recorded).name if isinstance(recorded, str) else ""
    part = folder / name
    if not part.is_file():
        raise RequestError(
            f"{path} is a list of files, and {what} {recorded!r} is not in {folder}: put all of them there"
        )
    return _load(part)


def _from_slices(path: Path, files: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for key, recorded in files.items():
        beside = Path(recorded).parent.name if isinstance(recorded, str) else ""
        folder = path.parent / beside if beside != ".." else path.parent
        part = _part_of(path, recorded, folder, "the slice")
        if not isinstance(part, Mapping) or not isinstance(part.get("weight"), Tensor):
            raise RequestError(
                f"{folder / Path(recorded).name} holds no tensor under 'weight' for {key}: slice it again"
            )
        state[key] = part["weight"]
    return state


def _from_shards(path: Path, shards: Any) -> dict[str, Any]:
    if not isinstance(shards, list) or not shards:
        raise RequestError(f"{path} is a list of shards but names none under 'shards': give the one that VISSL wrote")
    weights: list[Mapping[str, Any]] = []
    metadata: list[Mapping[str, Any]] = []
    for recorded in shards:
        part = _part_of(path, recorded, path.parent, "the shard")
        try:
            model = part["classy_state_dict"]["base_model"]
            weights.append({_joined(key): value for key, value in model["model"]["trunk"].items()})
            metadata.append(model["meta"]["trunk"])
        except (KeyError, TypeError, AttributeError) as error:
            raise RequestError(
                f"the shard {recorded} lacks base_model > model > trunk or base_model > meta > trunk ({error}): without "
                "them its pieces cannot be joined. Give the files as VISSL wrote them"
            ) from error
    try:
        state = dict(_joined_parameters(weights, metadata))
        state |= {_joined(name): weights[0][_joined(name)] for name in metadata[0]["buffer_names"]}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise RequestError(
            f"the {len(shards)} shards of {path} do not fit their own metadata: {type(error).__name__}: {error}. Take all "
            "shards from one moment of one run"
        ) from error
    return state


def _joined_parameters(
    weights: list[Mapping[str, Any]], metadata: list[Mapping[str, Any]]
) -> Iterator[tuple[str, Tensor]]:
    """Yields each parameter whole, [shape], from the ranks' pieces of the flat ones, [length / ranks, padded]."""
    for number, wrapper in enumerate(metadata[0]["param_metadata"]):
        front = wrapper["fsdp_path"]
        cuts = [list(_cuts(rank["param_metadata"][number])) for rank in metadata]
        for which, (stored, names, shapes, lengths, _) in enumerate(cuts[0]):
            key = _joined(front, stored)
            pieces = []
            for rank, held in enumerate(weights):
                pieces.append(held[key][: len(held[key]) - cuts[rank][which][4]])
                if wrapper["no_broadcast_optim_state"]:  # this rank alone held the wrapper, whole
                    break
            flat = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
            if len(flat) != sum(lengths):
                raise ValueError(f"{key} has {len(flat)} numbers over all shards, its metadata says {sum(lengths)}")
            for name, shape, values in zip(names, shapes, flat.split(list(lengths)), strict=True):
                yield _joined(front, name), values.view(tuple(shape))


def _cuts(wrapper: Mapping[str, Any]) -> Iterator[tuple[str, list[str], list[Any], list[int], int]]:
    """Yields (stored name, names, shapes, lengths, padding) of each stored parameter, from either shape of the
    metadata."""
    if "params" in wrapper:
        for stored, cut in wrapper["params"].items():
            yield stored, cut["names"], cut["shapes"], cut["numels"], cut["padding"]
        return
    names, shapes, lengths = wrapper["param_names"], wrapper["param_shapes"], wrapper["param_numels"]
    if wrapper["is_flat"]:
        yield "flat_param_0", names, shapes, lengths, wrapper["num_padded"][0]
    else:
        for name, shape, length, padding in zip(names, shapes, lengths, wrapper["num_padded"], strict=True):
            yield name, [name], [shape], [length], padding


def _joined(*parts: str) -> str:
    """Returns path elements with dots between, without those of the wrapper itself."""
    elements = (element for part in parts if part for element in part.split("."))
    return ".".join(e for e in elements if e not in ("_fsdp_wrapped_module", "_fpw_module"))
