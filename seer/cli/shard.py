"""Runs `seer shard`: images -> tar shards of equal count, an index beside each, one manifest; or indexes for
tars at hand."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seer.core.errors import RequestError
from seer.core.log import log
from seer.data import transparency
from seer.data.coco import Boxes, read_coco
from seer.data.holdout import count_or_share, held_out
from seer.data.label_words import check_word
from seer.data.ledger import parse_fraction, shown
from seer.data.pixels import pixels
from seer.data.shards.bad_archives import BadArchives
from seer.data.shards.index_tars import index_archives
from seer.data.shards.open import census_of, open_shards
from seer.data.shards.output_folder import keep_apart, make
from seer.data.shards.rewrite import Part, write_part
from seer.data.shards.shard import Shard
from seer.data.shards.source import expand, is_image, is_list
from seer.evals.labels import BROKEN, UNLABELLED, Labels, find
from seer.evals.used import sizes

EVERY_S = 30.0  # between lines of progress


def run(settings: dict[str, Any], output: list[Path]) -> dict[str, Any]:
    """Returns what was written, for the JSON line."""
    processes = _check(settings)
    target, start = Path(settings["output"]), time.monotonic()
    written = (_index if settings["index_only"] else _write)(settings, target, processes, output)
    seconds = time.monotonic() - start
    log.info(f"{written['pictures']} images in {seconds:.1f} s -> {target}")
    return {"output": str(target), **written, "seconds": round(seconds, 2)}


def _check(settings: Mapping[str, Any]) -> int:
    """Returns the number of processes. Raises RequestError for what can be told wrong before anything is opened."""
    if settings["labels"] is not None and not settings["labels"].lower().endswith(".json"):
        check_word(settings["labels"])
    if settings["labels"] in ("auto", "member"):
        raise RequestError(
            f"labels={settings['labels']}: `cls` members stay as they are without it; null, or another word"
        )
    if settings["per_shard"] < 1:
        raise RequestError(f"per_shard={settings['per_shard']}: at least 1")
    count_or_share(settings["holdout"])
    for name in ("max_side", "quality", "processes"):
        if settings[name] is not None and not isinstance(settings[name], int):
            raise RequestError(f"{name}={settings[name]!r}: a whole number, or null")
    parse_fraction(settings["max_bad"])
    pixels(settings["ground"], settings["max_pixels"])
    changes = [k for k in ("labels", "holdout", "max_side", "quality", "check", "image", "fields") if settings[k]]
    if settings["index_only"] and changes:
        raise RequestError(f"index_only=true copies nothing, so {', '.join(changes)} cannot be asked for with it")
    processes = len(os.sched_getaffinity(0)) if settings["processes"] is None else settings["processes"]
    if processes < 1:
        raise RequestError(f"processes={processes}: at least 1")
    return processes


def _index(settings: Mapping[str, Any], target: Path, processes: int, output: list[Path]) -> dict[str, Any]:
    source = settings["source"]
    paths = [path for one in ([source] if isinstance(source, str) else source) for path in expand(str(one)).paths]
    loose = [path for path in paths if not os.path.isfile(path) or is_list(path) or is_image(path)]
    if loose:
        raise RequestError(f"index_only=true is for tars; {loose[0]} is none")
    make(target)
    output.append(target)
    with _progress("indexing", len(paths), "tars") as progress:
        bad = BadArchives(settings["max_bad_archives"], "max_bad_archives")
        manifest = index_archives(paths, target, processes=processes, progress=progress, bad=bad)
    found = {"pictures": manifest["samples"], "parts": {"all": _counts_of(manifest)}, "data": manifest.get("data", {})}
    return found | ({"bad_archives": manifest["bad_archives"]} if "bad_archives" in manifest else {})


def _write(settings: Mapping[str, Any], target: Path, processes: int, output: list[Path]) -> dict[str, Any]:
    bad = BadArchives(settings["max_bad_archives"], "max_bad_archives")
    shards = open_shards(settings["source"], image=settings["image"], fields=settings["fields"], bad=bad)
    census = census_of(shards)
    log.info(f"data: {census.line()}")
    total = sum(len(s) for s in shards)
    holdout = held_out(settings["holdout"], total)
    boxes = _boxes(shards, settings["labels"])
    labels = None if boxes is not None else _labels(shards, settings["labels"])
    classes = None if labels is None else labels.names
    spans = {"test": (0, holdout), "train": (holdout, total - holdout)} if holdout else {"all": (0, total)}
    options = {name: settings[name] for name in ("per_shard", "shuffle", "seed", "max_side", "quality", "check")}
    options["labels"] = None if labels is None or _as_ever(labels) else labels.of
    options["boxes"] = boxes
    options["pixels"] = pixels(settings["ground"], settings["max_pixels"])
    if settings["quality"] is not None or settings["max_side"] is not None:
        transparency.tell(shards, options["pixels"], "ground")
    parts = {name: Part(shards, first, rows, classes=classes, **options) for name, (first, rows) in spans.items()}
    words = [settings["source"]] if isinstance(settings["source"], str) else settings["source"]
    keep_apart([word for word in map(str, words) if os.path.isdir(word)], shards, target)
    make(target)
    output.append(target)
    written = {}
    for name, part in parts.items():
        folder = target if name == "all" else target / name
        with _progress(f"shards {name}", part.total, "images") as progress:
            manifest = write_part(part, folder, processes=processes, max_bad=settings["max_bad"], progress=progress)
        written[name] = _counts_of(manifest)
    skipped = sum(one["skipped"] for one in written.values())
    if skipped:
        log.warning(f"{skipped} images cannot be used and were left out; skipped.jsonl beside the shards names them")
    images = sum(one["pictures"] for one in written.values())
    decoded = any(part.decodes for part in parts.values())
    if not decoded:
        log.info(
            "images were copied byte for byte, and not decoded: one that is damaged is met when it is read; check=true decodes "
            "each, and leaves out what cannot be"
        )
    found: dict[str, Any] = {"pictures": images, "skipped": skipped, "decoded": decoded, "classes": classes}
    found |= {"parts": written, "data": census.plain()} | ({"bad_archives": bad.found} if bad.found else {})
    if boxes is not None:
        found |= {"box_classes": list(boxes.names), "boxes_left_out": dict(boxes.left_out)}
    return found if labels is None else {**found, "unlabelled": labels.count(UNLABELLED)}


def _labels(shards: Sequence[Shard], word: str | None) -> Labels | None:
    """Returns the labels that images are to get. Raises RequestError where there are none, or all would be the same."""
    if word is None:
        return None
    found = find(shards, [(s, row) for s, shard in enumerate(shards) for row in range(len(shard))], word)
    if len(found.names) < 2:
        raise RequestError(
            f"labels={word}: all labels would be the same, {shown(found.names[0])}; labels=folder:1, folder:2 … folder:-1 say "
            "which folders name the classes"
        )
    return found


def _boxes(shards: Sequence[Shard], word: str | None) -> Boxes | None:
    """Returns the boxes of a file of COCO's form; None for another word. Raises RequestError where it lists none of the images."""
    if word is None or not word.lower().endswith(".json"):
        return None
    found = read_coco(word)
    log.info(f"labels={word}: {found.line()}")
    rows, listed = 0, 0
    for shard in shards:
        for key in shard.iter_keys():
            rows += 1
            listed += found.at(key if key.startswith("/") else f"{os.path.abspath(shard.path)}/{key}") is not None
    if not listed:
        raise RequestError(f"labels={word}: none of the {rows} images is listed in it, like {next(iter(found.of))!r}")
    if listed < rows:
        log.warning(f"{rows - listed} of the {rows} images are not listed in {word}: they get no boxes")
    return found


def _as_ever(labels: Labels) -> bool:
    """Returns whether each image has the name of the folder that directly holds it, as it was always written; what an earlier
    version has begun then goes on."""
    return labels.direct and not labels.count(UNLABELLED) and not labels.count(BROKEN)


@contextmanager
def _progress(what: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
    """Yields what is to be called with what has been done since; at first with what an earlier run did. A bar
    on a terminal, and a line now and then where nobody would see one move, as in the log of a batch job."""
    if sys.stderr.isatty():
        with tqdm(total=total, unit=unit, desc=what) as bar:
            yield bar.update
        return
    start = written = time.monotonic()
    done, before = 0, -1

    def update(n: int) -> None:
        nonlocal done, before, written
        done += n
        before = done if before < 0 else before
        now = time.monotonic()
        if now - written >= EVERY_S:
            written, rate = now, (done - before) / (now - start)
            left = f"{(total - done) / rate / 60:.0f} min left" if rate else "none yet"
            log.info(f"{what}: {done} of {total} {unit}, {rate:.1f}/s, {left}")

    yield update


def _counts_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    written = {"shards": len(manifest["shards"]), "pictures": manifest["samples"], "skipped": manifest["skipped"]}
    return {**written, **sizes(manifest["class_counts"])} if "class_counts" in manifest else written
