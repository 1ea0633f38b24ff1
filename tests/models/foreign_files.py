"""Writes a small RegNetY as others would: keys from a literal table, containers as VISSL lays them out. Knows nothing of SEER.

`regnet_keys.tsv` holds one tensor a row: its shape and its name in five libraries. The model: stem 32, stages 16, 24, 40 of
1, 2 and 1 blocks, group width 8, squeeze ratio 0.25.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

TABLE = [line.split("\t") for line in (Path(__file__).parent / "regnet_keys.tsv").read_text().splitlines()]
LIBRARIES = TABLE[0][2:]

# The 10B model's trunk is cut for checkpointing: block 2-1 lies in a second part of its stage.
PARTS = {
    "_feature_blocks.res2.block1-0.": "_feature_blocks.res2.block1-part0.block1-0.",
    "_feature_blocks.res3.block2-0.": "_feature_blocks.res3.block2-part0.block2-0.",
    "_feature_blocks.res3.block2-1.": "_feature_blocks.res3.block2-part1.block2-1.",
    "_feature_blocks.res4.block3-0.": "_feature_blocks.res4.block3-part0.block3-0.",
}
HEADS = {
    "0.projection_head.0.weight": (64, 40),
    "0.projection_head.0.bias": (64,),
    "0.projection_head.1.running_mean": (64,),
    "0.projection_head.3.weight": (16, 64),
    "0.prototypes0.weight": (30, 16),
}


def weights() -> dict[str, Tensor]:
    """Our names -> random tensors, batch-norm counters included."""
    generator = torch.Generator().manual_seed(5)
    state = {}
    for row in TABLE[1:]:
        if row[1].endswith("num_batches_tracked"):
            state[row[1]] = torch.tensor(123)
        else:
            state[row[1]] = torch.rand([int(size) for size in row[0].split("x")], generator=generator) + 0.5
    return state


def named(library: str) -> dict[str, Tensor]:
    """The same tensors under a library's names."""
    column, ours = TABLE[0].index(library), weights()
    return {row[column]: ours[row[1]] for row in TABLE[1:]}


def heads() -> dict[str, Tensor]:
    return {name: torch.rand(shape) for name, shape in HEADS.items()}


def in_parts(trunk: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for key, value in trunk.items():
        front = next((front for front in PARTS if key.startswith(front)), None)
        renamed[PARTS[front] + key.removeprefix(front) if front else key] = value
    return renamed


def checkpoint(trunk: dict, heads: dict | list, **more: object) -> dict:
    """What VISSL saves: the model deep inside, the optimizer and the meters beside it."""
    return {
        "phase_idx": 0,
        "iteration": 100,
        "loss": 5.5,
        "iteration_num": 100,
        "train_phase_idx": 0,
        "type": "consolidated",
        "classy_state_dict": {
            "train": True,
            "num_updates": 6400,
            "losses": [9.6, 5.5],
            "optimizer": {"optim": {"state": {0: {"momentum_buffer": torch.rand(7)}}, "param_groups": [{"lr": 0.1}]}},
            "meters": [],
            "base_model": {"model": {"trunk": trunk, "heads": heads}, "meta": {}},
        },
        **more,
    }


def write_consolidated(path: Path, trunk: dict) -> Path:
    torch.save(checkpoint(trunk, heads()), path)
    return path


def write_sliced(path: Path, trunk: dict, *, layers: bool = False) -> Path:
    """A file a tensor, named by the SHA-1 of its key, and a list with paths of the machine that it was made on."""
    folder = path.with_suffix("").name + "_layers"
    (path.parent / folder).mkdir()
    listed = {}
    for key, value in trunk.items():
        name = hashlib.sha1(key.encode()).hexdigest() + ".torch"
        torch.save({"type": "slice", "weight": value}, path.parent / folder / name)
        listed[key] = f"/checkpoint/someone/{folder}/{name}"
    inside = {"classy_state_dict": {"base_model": {"model": {"trunk": listed, "heads": {}}}}}
    torch.save({"type": "slice_list", **({"layers": listed} if layers else inside)}, path)
    return path


def write_shards(path: Path, trunk: dict, *, ranks: int, older: bool, flat: bool = True) -> Path:
    """Each block and the rest are wrapped by FSDP; rank r holds the r-th piece of what a wrapper flattened.

    older: the metadata of fairscale before 0.4.2. flat=False: each parameter cut on its own. A name inside a wrapper is
    relative to it; `_fpw_module` appears in the keys of the pieces and not in the metadata, as fairscale has it.
    """
    fronts = [front.rstrip(".") for front in [*PARTS, *PARTS.values()]]
    wrappers = [*(front for front in fronts if any(key.startswith(front) for key in trunk)), ""]
    buffers = {key: value for key, value in trunk.items() if "running" in key or "tracked" in key}
    held = [dict(buffers) for _ in range(ranks)]
    described: list[list[dict]] = [[] for _ in range(ranks)]
    left = [key for key in trunk if key not in buffers]
    for wrapper in wrappers:
        mine = [key for key in left if key.startswith(wrapper)]
        left = [key for key in left if key not in mine]
        names = [key[len(wrapper) + 1 :] if wrapper else key for key in mine]
        groups = [list(zip(mine, names, strict=True))]
        if not flat:
            groups = [[pair] for pair in groups[0]]
        entries: list[list[dict]] = [[] for _ in range(ranks)]
        for group in groups:
            stored = "flat_param_0" if flat else group[0][1]
            whole = torch.cat([trunk[key].flatten() for key, _ in group])
            size = -(-len(whole) // ranks)
            for rank in range(ranks):
                piece = whole[rank * size : (rank + 1) * size]
                padding = size - len(piece)
                inner = "_fpw_module." if flat else ""
                held[rank][f"{wrapper}.{inner}{stored}" if wrapper else stored] = torch.nn.functional.pad(
                    piece, (0, padding)
                )
                entries[rank].append(
                    {
                        "names": [name for _, name in group],
                        "shapes": [trunk[key].shape for key, _ in group],
                        "numels": [trunk[key].numel() for key, _ in group],
                        "padding": padding,
                        "stored": stored,
                    }
                )
        for rank in range(ranks):
            described[rank].append(_described(wrapper, entries[rank], older=older, flat=flat))
    names_of_shards = [f"{path.stem}_shard{rank}.torch" for rank in range(ranks)]
    for rank, name in enumerate(names_of_shards):
        content = checkpoint(held[rank], [heads()], type="shard")
        content["classy_state_dict"]["base_model"]["meta"] = {
            "trunk": {"param_metadata": described[rank], "buffer_names": list(buffers)}
        }
        torch.save(content, path.parent / name)
    torch.save({"type": "shard_list", "shards": names_of_shards}, path)
    return path


def _described(wrapper: str, entries: list[dict], *, older: bool, flat: bool) -> dict:
    entry: dict = {"fsdp_path": wrapper, "no_broadcast_optim_state": False}
    if older:
        return entry | {
            "is_flat": flat,
            "num_padded": [e["padding"] for e in entries],
            "param_names": [name for e in entries for name in e["names"]],
            "param_shapes": [shape for e in entries for shape in e["shapes"]],
            "param_numels": [number for e in entries for number in e["numels"]],
        }
    cuts = {e["stored"]: {k: e[k] for k in ("names", "shapes", "numels", "padding")} for e in entries}
    return entry | {"params": cuts, "shared_param_info": []}


CONTAINERS: dict[str, Callable[[Path, dict], Path]] = {
    "consolidated": write_consolidated,
    "sliced": write_sliced,
    "sliced under layers": lambda path, trunk: write_sliced(path, trunk, layers=True),
    "one shard": lambda path, trunk: write_shards(path, trunk, ranks=1, older=False),
    "three shards": lambda path, trunk: write_shards(path, trunk, ranks=3, older=False),
    "three older shards": lambda path, trunk: write_shards(path, trunk, ranks=3, older=True),
    "three shards, not flattened": lambda path, trunk: write_shards(path, trunk, ranks=3, older=False, flat=False),
    "three older shards, not flattened": lambda path, trunk: write_shards(path, trunk, ranks=3, older=True, flat=False),
}
