"""Says which targets of `seer export` a network cannot go to, and why: one rule, for exports and for the start of a run.

Surprising: that a library is not installed is no reason here. It can be installed when the training is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from seer.core.errors import RequestError
from seer.models import families
from seer.models.families.family import HuggingFace, Network, Timm, Torchvision
from seer.models.zoo import name_of

Target = Literal["torchvision", "timm", "huggingface"]
# safetensors, our own format, and programs take every network
LIBRARIES: tuple[Target, ...] = ("torchvision", "timm", "huggingface")


def refusal(target: Target, backbone: Network) -> str | None:
    """Returns why a library cannot hold this network, with what can; None where it can."""
    family = families.of_model(backbone)
    theirs: Torchvision | Timm | HuggingFace | None = getattr(family, target)
    if theirs is None:
        return str(family.refuse(target))
    if why := theirs.refusal(backbone):
        return why
    if isinstance(theirs, Timm):
        name = name_of(backbone.architecture)
        if name not in theirs.names:
            others = [f"to={other}" for other in family.exports if other != target and _takes(other, backbone)]
            return (
                f"no network of timm's has the shape {name or family.describe(backbone.architecture)}. It has those of "
                f"{', '.join(theirs.names)}. {' and '.join(others)} take this one"
            )
    return None


def _takes(target: str, backbone: Network) -> bool:
    return not any(target == library and refusal(library, backbone) for library in LIBRARIES)


def of_library(target: Target, backbone: Network) -> Any:
    """Returns what a library has of the network's family. Raises RequestError where it cannot hold this network."""
    if why := refusal(target, backbone):
        raise RequestError(why)
    return getattr(families.of_model(backbone), target)


def possible(backbone: Network) -> list[str]:
    """Returns the targets that can take this network, in the order in which they are named; none of a stranger's task."""
    if not isinstance(getattr(backbone, "architecture", None), Mapping):
        return []
    return [target for target in families.of_model(backbone).exports if _takes(target, backbone)]


def limits(backbone: Network) -> str | None:
    """Returns a line for the start of a run that says where its network cannot go; None where it can go everywhere."""
    if not isinstance(getattr(backbone, "architecture", None), Mapping):
        return None  # of a stranger's task: no rule of ours speaks of it
    refused = {target: why for target in LIBRARIES if (why := refusal(target, backbone))}
    if not refused:
        return None
    reasons = "; ".join(f"not to {target}: {why.split('. ', 1)[0]}" for target, why in refused.items())
    return f"this network can be exported to {' and '.join(possible(backbone))}, {reasons}"
