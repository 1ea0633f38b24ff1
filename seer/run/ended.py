"""Tells people at the end what a run came to, in five lines on standard error. The JSON line is for programs."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from seer.core import readable
from seer.core.log import titled
from seer.run.config import RunConfig
from seer.run.result import OF_HEADS


def tell(
    result: Mapping[str, Any],
    config: RunConfig,
    images: int,
    spent: Mapping[str, float],
    probe: int,
    targets: Sequence[str],
) -> None:
    """Logs what was done, how long it took, how good it is, where it lies, and what comes next. images: in the data. probe:
    images that kNN was asked. targets: of `seer export` that can take the network."""
    for words in lines(result, config, images, spent, probe, targets):
        titled(words)


def lines(
    result: Mapping[str, Any],
    config: RunConfig,
    images: int,
    spent: Mapping[str, float],
    probe: int,
    targets: Sequence[str],
) -> list[str]:
    """Returns the five lines."""
    seen = result["images"]
    what = f"{result['steps']:,} steps, {seen:,} images ({seen / images:.1f} epochs of {images:,})"
    parts = sorted(((s, name) for name, s in spent.items() if s >= 0.5), reverse=True)
    split = ", ".join(f"{name} {readable.duration(s)}" for s, name in parts)
    probes = f"; probes took {result['probe_share']:.0%} of the run" if "probe_share" in result else ""
    best = result.get("best") or {}
    kept = f", {best['checkpoint']} (best {best['metric']} {best['value']:.3f})" if best.get("checkpoint") else ""
    where = result.get("bundle", result["checkpoint"])
    return [
        f"done:  {what}",
        f"time:  {readable.duration(sum(spent.values()))}{f' ({split})' if len(parts) > 1 else ''}{probes}",
        f"good:  {good(result, probe)}",
        f"where: {where} (backbone), {Path(result['output']) / 'train.log'}, metrics.jsonl, result.json beside it{kept}",
        f"next:  {following(result, config, targets)}",
    ]


def good(result: Mapping[str, Any], probe: int) -> str:
    """Returns how good it is: accuracies beside what they are to be held against, the loss, and what went wrong."""
    said = []
    if "knn_top1" in result:
        top1 = result["knn_top1"]
        error = f" ± {math.sqrt(top1 * (1 - top1) / probe):.3f}" if probe else ""
        beside = [("untrained", "knn_top1_untrained"), ("pixels", "knn_pixels"), ("colors", "knn_colours")]
        others = ", ".join(f"{name} {result[key]:.3f}" for name, key in beside if key in result)
        said.append(f"kNN top-1 {top1:.3f}{error}{f' ({others})' if others else ''}")
    said += [f"{key} {value:.3f}" for key, value in result.items() if key.endswith(OF_HEADS)]
    if "loss" in result:
        said.append(f"loss {result['loss']:.3f}")
    if not any("top" in one for one in said):
        said.append(
            "no labelled images were given (eval.train=, eval.test=), so nothing says what the features are worth"
        )
    if result.get("skipped"):
        said.append(f"{result['skipped']:,} images skipped")
    if result.get("alarms"):
        said.append(f"alarms: {', '.join(result['alarms'])}")
    return "; ".join(said)


def following(result: Mapping[str, Any], config: RunConfig, targets: Sequence[str]) -> str:
    """Returns the next command, and how Python loads the backbone. Without a target there is no command."""
    run = shlex.quote(result["output"])
    train, test = config.eval.train, config.eval.test
    if isinstance(train, str) and isinstance(test, str):
        command = (
            f"seer evaluate eval=linear weights={run} data.train={shlex.quote(train)} data.test={shlex.quote(test)}"
        )
    elif targets:
        command = f"seer export to={targets[0]} weights={run} output=backbone"
    else:
        command = ""
    load = f"import seer; backbone = seer.load({result['output']!r}); x = backbone.preprocess(IMAGE)"
    return "\n       ".join(filter(None, (command, f"Python: {load}")))
