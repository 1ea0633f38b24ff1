"""Applies color, blur and normalization to a whole batch in one pass, on whatever device the batch lies.

Each view has its own factors, its own order of the four color operations and its own blur. Views are regrouped by what
comes next for them, with index lists made on the host from the drawn numbers, so nothing waits for the device.
The operations are those of torchvision's float kernels: brightness multiplies, contrast blends with the view's mean
gray, saturation with its own gray, hue turns in HSV; each result is clamped to [0, 1]. The blur is a true Gaussian with
edges repeated (Pillow's, which SwAV used, approximates one by box filters).

Legend: N views of one size, S side.
"""

import math
from collections.abc import Mapping, Sequence

import torch

from seer.core.records import Color

_GRAY = (0.299, 0.587, 0.114)


def augment_batch(
    fields: Mapping[str, torch.Tensor], size: int, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """Returns a batch's views of one size as the network meets them: float32 [N, C, S, S], channels_last.

    fields: of the batch, `views/S` uint8 [N, C, S, S], channels_last, and `color/S/…` on the host, where color was drawn
    and not applied yet.
    """
    views, color = fields[f"views/{size}"], Color.of(fields, size)
    if color is None:
        return to_normalized_float(views, mean, std)
    x = views.to(torch.float32, memory_format=torch.channels_last).div_(255)
    for turn in range(4):
        for operation, apply in enumerate((brightness, contrast, saturation, hue)):
            if operation > 1 and x.shape[1] != 3:
                continue
            chosen = torch.nonzero(color.jitter & (color.order[:, turn] == operation))[:, 0]
            if len(chosen):
                index = chosen.to(x.device, non_blocking=True)
                factor = color.factors[chosen, operation].to(x.device, non_blocking=True)[:, None, None, None]
                x.index_copy_(0, index, apply(x[index], factor))
    chosen = torch.nonzero(color.gray)[:, 0]
    if len(chosen):
        index = chosen.to(x.device, non_blocking=True)
        x.index_copy_(0, index, gray(x[index]).expand(-1, x.shape[1], -1, -1))
    chosen = torch.nonzero(color.sigma > 0)[:, 0]
    if len(chosen):
        index = chosen.to(x.device, non_blocking=True)
        sigma = color.sigma[chosen]
        reach = math.ceil(3 * float(sigma.max()))
        x.index_copy_(0, index, blur(x[index], sigma.to(x.device, non_blocking=True), reach))
    return normalize(x, mean, std)


def normalize(x: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Normalizes pixels in [0, 1], float32 [N, C, S, S], in place."""
    shift = _sent(torch.tensor(mean), x.device)[:, None, None]
    scale = _sent(torch.tensor(std), x.device)[:, None, None]
    return x.sub_(shift).div_(scale)


def _sent(numbers: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Sends some numbers of the host to a device. `torch.tensor(…, device=…)` waits until the GPU has done all it was given."""
    return numbers.to(device, non_blocking=True)


def to_normalized_float(crops: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Turns uint8 [N, C, S, S], channels_last, into normalized float32, channels_last.

    The channels' numbers are repeated along a row of pixels: broadcasting them over innermost axes of three costs eight
    times as much on a CPU.
    """
    n, channels, height, width = crops.shape
    spread, center = _sent(torch.tensor(std), crops.device), _sent(torch.tensor(mean), crops.device)  # [C]
    scale, shift = (1 / (255 * spread)).repeat(width), (-center / spread).repeat(width)  # [S * C]
    rows = crops.permute(0, 2, 3, 1).reshape(n, height, width * channels).to(torch.float32)
    return torch.addcmul(shift, rows, scale, out=rows).view(n, height, width, channels).permute(0, 3, 1, 2)


def gray(x: torch.Tensor) -> torch.Tensor:
    """Returns the brightness: [N, C, S, S] -> [N, 1, S, S]; the mean of channels that are no colors."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    r, g, b = x.unbind(1)
    return (_GRAY[0] * r + _GRAY[1] * g + _GRAY[2] * b)[:, None]


def brightness(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return x.mul_(factor).clamp_(0, 1)


def contrast(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return _blend(x, gray(x).mean((1, 2, 3), keepdim=True), factor)


def saturation(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return _blend(x, gray(x), factor)


def _blend(x: torch.Tensor, other: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return x.mul_(factor).add_(other * (1 - factor)).clamp_(0, 1)


def hue(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turns the hue of HSV by a share of the circle. Each channel of the result is value - chroma * a hat over
    the hue."""
    r, g, b = x.unbind(1)
    value, low = x.amax(1), x.amin(1)
    chroma = value - low
    safe = torch.where(chroma > 0, chroma, 1.0)
    sixth = torch.where(
        value == r, (g - b) / safe, torch.where(value == g, 2 + (b - r) / safe, 4 + (r - g) / safe)
    )  # hue in sixths of a turn
    sixth = sixth[:, None] + 6 * turns
    offsets = _sent(torch.tensor([5.0, 3.0, 1.0]), x.device)[:, None, None]
    k = torch.remainder(sixth + offsets, 6)  # [N, 3, S, S]
    hat = torch.minimum(k, 4 - k).clamp_(0, 1)
    return value[:, None] - chroma[:, None] * hat


def blur(x: torch.Tensor, sigma: torch.Tensor, reach: int) -> torch.Tensor:
    """Blurs by a Gaussian of each view's own sigma (pixels), edges repeated: two batched products with S x S
    band matrices.

    reach: pixels to each side that are looked at, three times the largest sigma or more; each view ends at its own.
    """
    n, _, side, width = x.shape
    assert side == width, "views are square"
    offset = torch.arange(-reach, reach + 1, device=x.device)
    weight = torch.exp(-0.5 * (offset / sigma[:, None].clamp(min=1e-3)) ** 2)
    weight = weight * (offset.abs() <= (3 * sigma[:, None]).ceil())  # else a view would depend on its neighbours' sigma
    weight = weight / weight.sum(1, keepdim=True)  # [N, 2 * reach + 1]
    place = torch.arange(side, device=x.device)
    band = torch.zeros(n, side, side, device=x.device)
    for j, shift in enumerate(range(-reach, reach + 1)):
        column = (place + shift).clamp(0, side - 1)
        band[:, place, column] += weight[:, j, None]
    band = band[:, None]
    return band @ x @ band.transpose(-1, -2)
