"""Finds what a run that trains heads carries on: the hash of the weights it began with, and the heads that they had.

Surprising: heads are kept as long as the backbone they stand on is the one of the bundle, to the last bit, and so their
outputs are. A run that trains its backbone, too, leaves them behind, and says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from seer.core.errors import RequestError
from seer.core.log import log
from seer.core.protocols import Task
from seer.models.bundle import BUNDLE_WEIGHTS, plain, read_heads
from seer.models.head_files import HeadCard, StoredHead, hash_of_tensors, stored
from seer.run.config import RunConfig
from seer.run.newest import BUNDLE


@dataclass(frozen=True)
class Lineage:
    """Holds where a backbone comes from. parent: hash of the tensors that training began with; None from scratch. earlier: the
    heads that came with them and are not trained now."""

    parent: str | None = None
    earlier: Mapping[str, StoredHead] = field(default_factory=dict)

    def heads(
        self, backbone: Mapping[str, Tensor], own: Mapping[str, tuple[HeadCard, Mapping[str, Tensor]]], step: int
    ) -> dict[str, StoredHead]:
        """Returns the heads of a bundle of these tensors: earlier ones that stand on them, then those that are trained."""
        now = hash_of_tensors({name: plain(tensor) for name, tensor in backbone.items()})
        made = {
            name: stored(card, {k: plain(v) for k, v in tensors.items()}, backbone=now, step=step)
            for name, (card, tensors) in own.items()
        }
        return {**{name: head for name, head in self.earlier.items() if head.backbone == now}, **made}


def lineage(config: RunConfig, task: Task) -> Lineage:
    """Returns the lineage of a run whose task is made and has not trained yet. Raises RequestError for heads that are damaged."""
    cards = task.head_cards()
    if not cards or not config.weights:
        return Lineage()
    backbone = task.modules()["backbone"]
    parent = hash_of_tensors({name: plain(tensor) for name, tensor in backbone.state_dict().items()})
    earlier = heads_of(config.weights)
    if again := [name for name in earlier if name in cards]:
        log.warning(f"{config.weights} has heads of the same name, which are made anew: {', '.join(again)}")
    kept = {name: head for name, head in earlier.items() if name not in cards and head.backbone == parent}
    trained = any(parameter.requires_grad for parameter in backbone.parameters())
    if left := [name for name in earlier if name not in cards and (trained or name not in kept)]:
        why = (
            "the backbone is trained, too (surgery=freeze leaves it as it is)" if trained else "its backbone is another"
        )
        log.warning(f"heads of {config.weights} are left out of this run's bundle, since {why}: {', '.join(left)}")
    return Lineage(parent, {} if trained else kept)


def heads_of(weights: str) -> dict[str, StoredHead]:
    """Returns the heads that a run or a bundle holds; {} where there are none. Raises RequestError for damaged ones."""
    for folder in (Path(weights), Path(weights) / BUNDLE):
        if (folder / BUNDLE_WEIGHTS).is_file():
            try:
                return read_heads(folder)
            except (ValueError, OSError) as error:
                raise RequestError(f"weights={weights}: {error}") from error
    return {}
