"""Checks that all ranks hold the same: what they were asked, at the start; their weights, while they train.

Data-parallel ranks apply the same update to the same weights, so the weights agree to the last bit. Where they do not, a
device, a memory or a program is at fault, and every step mixes the fault into all of them.
"""

import json
from collections.abc import Mapping

import torch

from seer.core.errors import NumericsError, RequestError
from seer.parallel.collectives import Group, all_gather_stack, gather_text


def same_request(facts: Mapping[str, str], group: Group | None) -> None:
    """Raises RequestError on all ranks, naming the first fact that differs from the first rank's. facts: what
    must not differ, by names that people know."""
    every = [json.loads(text) for text in gather_text(json.dumps(facts), group)]
    for rank, theirs in enumerate(every):
        for name in {**every[0], **theirs}:
            if theirs.get(name) != every[0].get(name):
                raise RequestError(
                    f"rank {rank} was started with {name} {theirs.get(name)}, rank 0 with {every[0].get(name)}; start all ranks "
                    "with the same command, code and libraries"
                )


def same_weights(step: int, tensors: Mapping[str, torch.Tensor], group: Group | None) -> None:
    """Raises NumericsError on all ranks when a tensor differs in one bit. tensors: those that every rank holds whole.

    One gather of a number for each tensor; the host waits for it.
    """
    if group is None or not tensors:
        return
    sums = torch.stack([_sum_of_bits(tensor) for tensor in tensors.values()])  # [T] int64
    every = all_gather_stack(sums, group)  # [R, T]
    common = every.mode(dim=0).values
    differs = every != common  # [R, T]
    if not differs.any():
        return
    names = [name for name, any_rank in zip(tensors, differs.any(0).tolist(), strict=True) if any_rank]
    ranks = differs.any(1).nonzero().flatten().tolist()
    # of two ranks that differ nobody can say which is right
    who = (
        f"rank {', '.join(map(str, ranks))}"
        if len(ranks) * 2 < len(every)
        else f"ranks {', '.join(map(str, range(len(every))))}"
    )
    raise NumericsError(
        f"weights are not the same on all ranks after step {step}: {who} differ in {len(names)} of {len(tensors)} tensors, the "
        f"first of them {names[0]}; a device or its memory is faulty, or the code is. Leave that machine out and run again: "
        "it goes on from the last checkpoint, which agreed"
    )


def replicated(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns what every rank holds whole and alike: not what is sharded, nor batch norm's statistics, which
    groups differ in."""
    own = ("running_mean", "running_var", "num_batches_tracked")
    return {name: t for name, t in state.items() if not hasattr(t, "full_tensor") and not name.endswith(own)}


def _sum_of_bits(tensor: torch.Tensor) -> torch.Tensor:
    """Returns [] int64 that changes with any one bit of a tensor of any dtype."""
    whole = tensor.detach().contiguous()
    size = whole.element_size()
    words = whole.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size])
    return words.sum(dtype=torch.int64)
