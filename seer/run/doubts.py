"""Finds what a run may well do, and nobody is likely to have meant: told before it trains, and not refused."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from seer.models.surgery import Frozen
from seer.optim.schedules import scaled_peak
from seer.run.config import RunConfig
from seer.run.schedule import rate

# Peaks beyond which nobody is known to train: ten times SwAV's and SEER's 0.3 at a batch of 256, and above SEER's 9.6 at 8192;
# for optimizers that divide by the gradients' size, whose steps are as large as the rate, a hundred times their usual 0.001
PLAIN_PEAK, PLAIN_LARGEST, ADAPTIVE_PEAK = 3.0, 10.0, 0.1


def doubts(config: RunConfig, images: int, optimizer: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each doubt. images: in the data; optimizer: its defaults."""
    batch, found = config.batch, []
    if images == 1:
        found.append("1 image is all there is to learn from: every view of every step is one of it; see data.source")
    elif images < batch:
        found.append(
            f"{images} images are fewer than batch={batch}, so a step has each {batch / images:.1f} times on average, with other "
            "views: lower batch, or see data.source"
        )
    peak = rate(config.schedule["peak"], batch, None)
    adaptive = "betas" in optimizer
    most = ADAPTIVE_PEAK if adaptive else max(PLAIN_LARGEST, scaled_peak(PLAIN_PEAK, batch))
    if peak > most:
        usual = "0.0005 to 0.005 are usual" if adaptive else "0.3@256 is SwAV's and SEER's, which is "
        usual += "" if adaptive else f"{scaled_peak(0.3, batch):.3g} here"
        found.append(f"schedule.peak={config.schedule['peak']} is a learning rate of {peak:g}, above {most:g}: {usual}")
    return found


def accumulates(parts: int, images: int, model: nn.Module) -> str:
    """Returns how running a batch in parts differs from running it at once. images: of a rank's batch."""
    live = any(isinstance(m, _BatchNorm) and not isinstance(m, Frozen) for m in model.modules())
    words = f"accumulate={parts}: a rank runs its {images} images of a step in parts of {images // parts}; "
    if not live:
        return f"{words}no batch norm looks at the batch, so losses are those of the whole up to rounding"
    return (
        f"{words}batch norms take the statistics of a part, so losses are not those of the whole batch (they would be with "
        "frozen batch norms or none)"
    )
