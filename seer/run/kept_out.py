"""Opens the images that a run keeps out of training (`holdout`), and says in its result what was chosen on them."""

from collections.abc import Sequence
from typing import Any

from seer.core.log import log
from seer.core.protocols import Task
from seer.data.holdout import chosen
from seer.data.shards.shard import Shard
from seer.data.transforms.whole_image import WholeImage
from seer.evals.target_images import TargetImages
from seer.parallel.collectives import Group
from seer.run.config import RunConfig


def kept_out(config: RunConfig, task: Task, shards: Sequence[Shard], group: Group | None = None) -> TargetImages | None:
    """Returns the images that are kept out, with what the heads of a task are to find in them; None where there are none. group: of
    the ranks that share them.

    Raises RequestError where the first of them all lack it.
    """
    rows = chosen(list(map(len, shards)), config.holdout, config.seed)
    if not rows:
        return None
    log.info(f"holdout={config.holdout}: {len(rows):,} of {sum(map(len, shards)):,} images are not trained on")
    made: Any = task
    found = TargetImages(
        shards,
        made.targets,
        size=config.eval.size or made.transform.input_size,
        resize=config.eval.resize,
        word=config.data.labels,
        classes=made.classes,
        values=made.transform.values,
        box_classes=made.box_classes,
        mask_classes=made.mask_classes,
        whole=isinstance(made.transform, WholeImage),
        pixels=config.data.pixels,
        rows=rows,
        called="holdout",
    )
    found.group = group
    found.check("holdout")
    return found


def told(config: RunConfig, task: Task, images: TargetImages | None) -> dict[str, Any]:
    """Returns what the result says: how many images were kept out, and what was chosen on them. judged_on: `holdout` where the
    figures are of the same images, so that F1 at chosen thresholds is better than on others."""
    if images is None:
        return {}
    thresholds = {name: list(values) for name, values in getattr(task, "thresholds", {}).items()}
    judged = "eval.test" if config.eval.test else "holdout"
    return {
        "holdout": {
            "images": len(images),
            "judged_on": judged,
            "chosen": {"thresholds": thresholds} if thresholds else {},
        }
    }
