"""Reads the state dict of a backbone from files that torch.save wrote, also those of VISSL in all their containers.

VISSL's files (`.torch`), told apart by their entry `type` and by what they hold:

    consolidated  classy_state_dict > base_model > model > trunk {name: tensor}, heads; beside it optimizer, meters, …
    shard_list    `shards`: the files of the ranks, one each; a rank's file has base_model > model > trunk with its piece of
                  every flattened parameter, and base_model > meta > trunk, which says how to cut and shape the whole
    slice_list    as consolidated, but {name: path}; each file holds one tensor as `weight`. Older ones keep it in `layers`

Surprising:
- No file runs code: torch's restricted unpickler reads them, and knows one foreign name more, VISSL's `AttrDict`, which it
  makes a plain dict. Everything else is refused by name.
- The lists record paths of the machine that wrote them, perhaps absolute ones. Only their last name counts, beside the list
  (slices: in the folder of that name beside it), so a list can be moved and cannot point anywhere else.
- Buffers are whole in every shard; the first one's are taken. Padding at the end of a shard is cut off.
- Zip files are mapped, not read: the optimizer's half of a checkpoint never enters memory.

Sources: facebookresearch/vissl, vissl/utils/checkpoint.py; fairscale's fully_sharded_data_parallel.py (both shapes of its
metadata: one before and one since version 0.4.2).
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seer.core.errors import RequestError

# Where VISSL's attribute dict lived; it has no behaviour that weights need.
_ALLOWED: list[Any] = [(dict, "vissl.config.attr_dict.AttrDict"), (dict, "vissl.utils.hydra_config.AttrDict")]
_CHAIN = ("classy_state_dict", "base_model", "model")
_TRUNKS = ("trunk", "model_state_dict", "state_dict")


def read_checkpoint(path: Path) -> tuple[dict[str, Any], str]:
    """Returns (names as in the file -> tensors of the backbone, and of heads where the file mixes them; which
    container it was).

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
        if kind == "slice_list" or (state and all(isinstance(value, str) for value in state.values())):
            state, kind = _from_slices(path, state), "slice_list"
    _check(path, state)
    return state, kind or ("consolidated" if "classy_state_dict" in top else "state dict")


def _load(path: Path) -> Any:
    """Returns what torch.save wrote, read by torch's restricted unpickler: tensors, numbers, strings and
    containers only."""
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        which = f" ({found[1]})" if found else ""
        raise RequestError(
            f"{path} holds Python objects beyond tensors{which}, or is no file of torch.save; it was not opened further: "
            "such a file can run code. Where you trust it, save its state dict alone, torch.save(model.state_dict(), …), "
            f"and give that. ({str(error).splitlines()[0]})"
        ) from error
    except OSError:
        raise
    except Exception as error:  # a cut or foreign file makes torch.load raise nearly anything
        raise RequestError(
            f"{path} cannot be read as a file of torch.save: {type(error).__name__}: {error}. Fetch or save it again"
        ) from error


def _trunk(path: Path, top: Mapping[str, Any]) -> dict[str, Any]:
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


def _check(path: Path, state: Mapping[Any, Any]) -> None:
    nested = [key for key, value in state.items() if isinstance(value, Mapping)]
    if nested:
        raise RequestError(
            f"{path} is a checkpoint of several parts, {', '.join(map(repr, nested[:5]))}: save the backbone's part alone"
        )
    odd = [key for key in state if not isinstance(key, str)]
    if odd:
        raise RequestError(f"{path} has the key {odd[0]!r}, wanted a state dict: names -> tensors. Save that alone")
    for key, value in state.items():
        if isinstance(value, Tensor) and value.layout == torch.strided:
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
