"""`seer shard`: pictures -> tar shards of equal count, an index beside each, one manifest."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from seer.cli import config
from seer.core import rng
from seer.core.errors import RequestError
from seer.core.log import log
from seer.data.order import permute
from seer.data.shards import MANIFEST, Shard, class_names, folder_of, open_shards, write_shards


def run(words: Sequence[str], output: list[Path]) -> dict[str, Any]:
    """Returns what was written, for the JSON line."""
    wanted = config.read("shard", words)
    if wanted["labels"] not in (None, "folder"):
        raise RequestError(f"labels={wanted['labels']}: folder, or null for none")
    if wanted["per_shard"] < 1 or wanted["holdout"] < 0:
        raise RequestError(f"per_shard={wanted['per_shard']}, holdout={wanted['holdout']}: at least 1, at least 0")
    target = Path(wanted["output"])
    if (target / MANIFEST).exists() or (target / "train" / MANIFEST).exists():
        raise RequestError(f"output={target} already holds shards; give another folder or delete it")
    start = time.monotonic()
    shards = open_shards(wanted["source"])
    total, holdout = sum(len(s) for s in shards), wanted["holdout"]
    if holdout >= total:
        raise RequestError(f"holdout={holdout} of {total} pictures leaves none; make it smaller")
    classes = class_names(shards) if wanted["labels"] == "folder" else None
    if classes is not None and len(classes) < 2:
        raise RequestError(
            f"labels=folder: the pictures lie in {len(classes)} folder, so every label would be the same"
        )
    places = _order(shards, wanted["shuffle"], wanted["seed"])
    target.mkdir(parents=True, exist_ok=True)
    output.append(target)
    parts = {"test": places[:holdout], "train": places[holdout:]} if holdout else {"": places}
    written = {}
    for name, part in parts.items():
        card = {"classes": classes} if classes is not None else {}
        with tqdm(total=len(part), unit="pictures", desc=f"shards {name}".strip(), disable=None) as bar:
            manifest = write_shards(
                _samples(shards, part, classes),
                target / name,
                total=len(part),
                per_shard=wanted["per_shard"],
                card=card,
                progress=lambda n, bar=bar: bar.update(n - bar.n),  # type: ignore[misc]
            )
        written[name or "all"] = {"shards": len(manifest["shards"]), "pictures": manifest["samples"]}
    seconds = time.monotonic() - start
    log.info(f"{total} pictures in {seconds:.1f} s -> {target}")
    return {
        "output": str(target),
        "pictures": total,
        "classes": classes,
        "parts": written,
        "seconds": round(seconds, 2),
    }


def _order(shards: Sequence[Shard], shuffle: bool, seed: int) -> np.ndarray:
    """int64 [pictures, 2]: shard and row of each picture, in the order they are written."""
    places = np.array([(s, r) for s, shard in enumerate(shards) for r in range(len(shard))], dtype=np.int64)
    if not shuffle:
        return places
    n = len(places)
    return places[permute(np.arange(n), np.full(n, n), np.full(n, rng.key(seed, "shard"), dtype=np.uint64))]


def _samples(
    shards: Sequence[Shard], places: np.ndarray, classes: list[str] | None
) -> Iterator[tuple[str, dict[str, bytes]]]:
    for shard, row in places.tolist():
        sample = shards[shard].read(shard, row)
        fields = dict(sample.fields)
        if classes is not None:
            fields["cls"] = str(classes.index(folder_of(sample.key))).encode()
        yield f"{shard:05d}-{row:09d}", fields
