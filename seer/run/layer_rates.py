"""Says where in the network each parameter lies, for rates that fall from what is new down to the stem (`layer_decay`), and for
modules that rest at first (`Task.resting`).

A backbone of n stages has n + 1 depths: the stem is 0, stage k is k. With decay d the rate of depth k is d ** (n + 1 - k) of
that of the heads, which learn at the scheduled rate; what lies behind the last stage has the last stage's. Sources: ULMFiT arXiv
1801.06146, per layer; BEiT arXiv 2106.08254, for vision.
"""

from torch import nn

from seer.core.errors import RequestError
from seer.core.protocols import Task
from seer.optim.groups import Place
from seer.parallel.blocks import stages_of

BACKBONE = "backbone"


def places_of(task: Task, decay: float) -> dict[nn.Parameter, Place]:
    """Returns the place of each parameter that has one; {} where all learn alike from the first step on. Raises RequestError."""
    modules, resting = task.modules(), task.resting
    found: dict[nn.Parameter, Place] = {}
    for part, steps in resting.items():
        found |= {parameter: Place(part, 1.0, steps) for parameter in modules[part].parameters() if steps}
    if decay == 1:
        return found
    rest = resting.get(BACKBONE, 0)
    for parameter, (stage, under) in depths(modules[BACKBONE]).items():
        found[parameter] = Place(f"{BACKBONE}.{stage}", decay**under, rest)
    return found


def depths(backbone: nn.Module) -> dict[nn.Parameter, tuple[str, int]]:
    """Returns of each parameter its stage, and how many stages down from the heads that is: 1 of the last. Raises RequestError."""
    stages = stages_of(backbone)
    if not stages:
        raise RequestError(
            f"layer_decay: {type(backbone).__name__} does not tell its stages; leave layer_decay=1, or give groups= with lr_scale"
        )
    inside = {
        parameter: name for name, blocks in stages.items() for block in blocks for parameter in block.parameters()
    }
    names = list(stages)
    found: dict[nn.Parameter, tuple[str, int]] = {}
    begun = False
    for parameter in backbone.parameters():
        begun = begun or parameter in inside
        name = inside.get(parameter, names[-1] if begun else "stem")
        found[parameter] = name, len(names) - names.index(name) if name in names else len(names) + 1
    return found
