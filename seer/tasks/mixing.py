"""Blends the images of a batch two and two, with their targets: mixup and cutmix, by torchvision's own `transforms.v2`.

Surprising:
- Torchvision draws from torch's global generator. Here that is seeded for the call, by a key of the run's seed and the step,
  and put back afterwards: a step that is repeated, on any rank or after a restart, draws the same share and the same box.
- Torchvision mixes each image with the one before it, and the first with the last, so the partner would depend on how many
  images a rank has. Here images 2i and 2i + 1 are partners, and those are neighbours on every rank and in every part of a step
  (`data/order`): it gets the batch as two images of B / 2 * 3 channels, which it swaps. One share serves the whole step, as there.

Sources: mixup arXiv 1710.09412, cutmix arXiv 1905.04899.

Legend: B images, S side, Y classes or numbers, W of all targets side by side.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from seer.core.errors import RequestError

LINEAR = {"classify": "label", "tags": "labels", "regress": "values"}  # kinds whose target can be blended: its field
Mixing = Callable[[Tensor, Mapping[str, Tensor], int, int], tuple[Tensor, dict[str, Tensor]]]


def mixing(mixup: float, cutmix: float, kinds: Mapping[str, str]) -> Mixing | None:
    """Returns what mixes a batch: (images [B, 3, S, S], fields, Y, key) -> both mixed; None where nothing is. kinds: of each head.

    Raises RequestError for numbers that are none of the distribution, and for heads whose targets cannot be blended.
    """
    for name, alpha in (("mixup", mixup), ("cutmix", cutmix)):
        if not 0 <= alpha < math.inf:
            raise RequestError(f"task.{name}={alpha}: the number of a beta distribution, like 0.2 or 1, or 0 for none")
    if not mixup and not cutmix:
        return None
    if other := [name for name, kind in kinds.items() if kind not in LINEAR]:
        raise RequestError(
            f"task.mixup={mixup} task.cutmix={cutmix}: heads.{other[0]} is of kind {kinds[other[0]]}, and only targets of "
            f"{', '.join(LINEAR)} can be blended; leave them 0"
        )
    from torchvision.transforms import v2

    each = [kind(alpha=alpha) for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix)) if alpha]
    theirs = each[0] if len(each) == 1 else v2.RandomChoice(each)
    return lambda x, fields, classes, key: mixed(theirs, x, fields, classes, key)


def mixed(
    theirs: Callable[..., tuple[Tensor, Tensor]], x: Tensor, fields: Mapping[str, Tensor], classes: int, key: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns images and fields of a batch, neighbours blended by a transform of torchvision's. classes: Y of `label`, which
    becomes shares, float32 [B, Y]. key: from which is drawn."""
    own = {name: fields[name] for name in LINEAR.values() if name in fields}
    if "label" in own:
        own["label"] = F.one_hot(own["label"], classes)
    target = torch.cat([one.float() for one in own.values()], dim=1)  # [B, W]
    generator, before = torch.default_generator, torch.get_rng_state()
    generator.manual_seed(key & 0x7FFFFFFFFFFFFFFF)
    try:
        images, targets = theirs(_two(x), _two(target))
    finally:
        torch.set_rng_state(before)
    widths = [one.shape[1] for one in own.values()]
    parts = _whole(targets, target.shape).split(widths, dim=1)
    blended = _whole(images, x.shape).contiguous(memory_format=torch.channels_last)
    return blended, {**fields, **dict(zip(own, parts, strict=True))}


def _two(rows: Tensor) -> Tensor:
    """Returns the even rows as one, the odd ones as another: [B, n, ...] -> [2, B / 2 * n, ...]."""
    return rows.unflatten(0, (-1, 2)).transpose(0, 1).flatten(1, 2)


def _whole(two: Tensor, shape: torch.Size) -> Tensor:
    """Returns what `_two` was made of: [2, B / 2 * n, ...] -> [B, n, ...]."""
    return two.unflatten(1, (shape[0] // 2, shape[1])).transpose(0, 1).flatten(0, 1)
