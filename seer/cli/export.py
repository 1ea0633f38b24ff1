"""`seer export`: a backbone that loads elsewhere. Every target reads back what it wrote and compares features."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from seer.cli import config
from seer.cli.weights import load
from seer.core.errors import RequestError
from seer.core.log import log
from seer.data import sample
from seer.data.augment import normalise
from seer.data.decode import decode
from seer.data.shards import open_shards, picture_of
from seer.evals.features import centre
from seer.export import to_safetensors, to_torchvision

TARGETS: dict[str, Callable[..., dict[str, Any]]] = {
    "torchvision": to_torchvision.export,
    "safetensors": to_safetensors.export,
}


def run(words: Sequence[str], output: list[Path]) -> dict[str, Any]:
    """Returns the file and its parity for the JSON line. Raises RequestError for a target that cannot hold the backbone."""
    wanted = config.read("export", words)
    if wanted["to"] not in TARGETS:
        raise RequestError(f"to={wanted['to']}: one of {', '.join(TARGETS)}")
    if wanted["pictures"] < 1:
        raise RequestError(f"pictures={wanted['pictures']}: at least one for the parity check")
    backbone, card = load(wanted["weights"])
    pictures = _pictures(wanted["source"], wanted["pictures"], card)
    written = TARGETS[wanted["to"]](backbone, card, Path(wanted["output"]), pictures)
    log.info(
        f"{written['file']}: features differ by {written['parity']:.1e} at most (allowed {written['tolerance']:.0e})"
    )
    shown = ("file", "bundle", "parity", "tolerance", "block_params")
    return {"to": wanted["to"], **{k: written[k] for k in shown if k in written}, "pictures": len(pictures)}


def _pictures(source: str | None, count: int, card: dict[str, Any]) -> torch.Tensor:
    """float32 [count, 3, S, S], normalised: from a source, or the built-in ones."""
    size = card["input_size"]
    if source:
        shards = open_shards(source)
        rows = [(s, r) for s, shard in enumerate(shards) for r in range(min(len(shard), count))][:count]
        pictures = [decode(picture_of(shards[s].read(s, r))) for s, r in rows]
    else:
        pictures = [sample.draw(i % len(sample.KINDS), i) for i in range(count)]
    pixels = torch.stack([centre(p, size, size) for p in pictures]).float().div_(255)
    return normalise(pixels, card["mean"], card["std"])
