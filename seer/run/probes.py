"""Makes the probes of a run: which images they need, what measures them, and what its result says of them.

Without `probe=` they are what the images of `eval.*` allow: kNN, RankMe where there are many images, and the heads of the task.
With it they are those, each with its own settings. kNN is asked at the start what pixels come to without a network.
"""

from dataclasses import dataclass
from typing import Any

from seer.core.build import build
from seer.core.errors import RequestError
from seer.core.evaluations import images_of
from seer.core.log import log
from seer.core.protocols import Evaluator
from seer.data.shards.bad_archives import BadArchives
from seer.engine.best import Best
from seer.engine.checkpoint_policy import Checkpoints
from seer.engine.probes import Probes
from seer.evals.features import LabelledImages, PlainImages
from seer.evals.heads import Heads
from seer.evals.knn import KNN
from seer.evals.probe import held_out, labelled, unlabelled
from seer.evals.rankme import RankMe
from seer.evals.target_images import TargetImages
from seer.parallel.collectives import Group, any_rank
from seer.parallel.world import World
from seer.run import validate
from seer.run.config import RunConfig

LEAST_RANKME = 256  # images below which RankMe, on a tenth of those of kNN, is not worth a figure


@dataclass(frozen=True)
class Images:
    """Holds the images of probes. known, asked: labelled ones. plain: those of train, labels not looked at. held_out: with what
    heads are to find. kept_out: of the images to train on, on which thresholds are chosen."""

    known: LabelledImages | None = None
    asked: LabelledImages | None = None
    plain: PlainImages | None = None
    held_out: TargetImages | None = None
    kept_out: TargetImages | None = None


def opened(config: RunConfig, task: Any, transform: Any, group: Group | None, bad: BadArchives) -> Images:
    """Opens what the probes of a config need. group: of the ranks that share the images out. bad: receives the archives that are
    passed over. Raises RequestError."""
    probe, known, asked, plain = config.probe, None, None, None
    if config.eval.train and (probe.run is None or probe.needs("train", "test")):
        known, asked = labelled(config.eval, transform.input_size, config.data.pixels, bad)
    elif config.eval.train and probe.needs("train"):
        plain = unlabelled(config.eval, transform.input_size, config.data.pixels, bad)
    asked_heads = _held_out(config, task, bad)
    for one in (known, asked, plain, asked_heads):
        if one is not None:
            one.group = group
    return Images(known, asked, plain, asked_heads)


def _held_out(config: RunConfig, task: Any, bad: BadArchives) -> TargetImages | None:
    """Opens the images on which the heads of a task are judged, where there are any. Raises RequestError.

    Where the images of the kNN probe lack what a head is to find, as folders of classes lack tags, kNN alone is measured.
    """
    wanted = config.probe.run is None or "head" in config.probe.run
    if not wanted or not config.eval.test or not validate.has_heads(config):
        return None
    try:
        return held_out(config.eval, task, config.data.pixels, bad=bad)
    except RequestError as error:
        if not config.eval.train or config.probe.run is not None:
            raise
        log.warning(f"the heads are not judged: {error}")
        return None


def evaluators(config: RunConfig, images: Images, options: dict[str, Any]) -> dict[str, Evaluator]:
    """Returns the probes by name. options: mean, std, threads and dtype, as evaluators take them. Raises RequestError."""
    if config.probe.run is None:
        return _usual(config, images, options)
    found: dict[str, Evaluator] = {}
    for name in config.probe.run:
        node = config.probe.node(name)
        of: dict[tuple[str, ...], tuple[Any, Any]] = {
            ("train", "test"): (images.known, images.asked),
            ("train",): (images.known or images.plain, None),
            ("test",): (images.held_out or images.kept_out, images.kept_out),
        }
        found[name] = build("eval", node, *of[images_of(node)], **options)
    return found


def _usual(config: RunConfig, images: Images, options: dict[str, Any]) -> dict[str, Evaluator]:
    found: dict[str, Evaluator] = {}
    known, asked = images.known, images.asked
    if known is not None and asked is not None:
        found["knn"] = KNN(known, asked, k=config.eval.k, temperature=config.eval.temperature, **options)
    if (judged := images.held_out or images.kept_out) is not None:
        found["head"] = Heads(judged, images.kept_out, **options)
    if known is not None and asked is not None:
        most = min(1024, (len(known) + len(asked)) // 10)
        if most >= LEAST_RANKME:
            found["rankme"] = RankMe(known, asked, most=most, **options)
    return found


def told(judges: Probes, best: Best | None, checkpoints: Checkpoints) -> dict[str, Any]:
    """Returns what a result says of the probes: the share of the time that they took, and where a figure was best."""
    found: dict[str, Any] = {"probe_share": round(judges.taken, 4)} if judges else {}
    if best is not None and (kept := best.plain()):
        place = checkpoints.files.path(kept["step"])
        found["best"] = {**kept, "checkpoint": str(place.resolve()) if place.is_dir() else None}
    return found


def check_best(best: Best | None, checkpoints: Checkpoints, world: World) -> None:
    """Forgets a best step whose checkpoint is gone, as where the run goes on from an older checkpoint than its newest."""
    if best is None or best.step is None:
        return
    place = checkpoints.files.path(best.step)
    if any_rank(world.rank == 0 and not place.is_dir(), world.group):
        log.warning(f"{place.name}, at which {best.metric} was best, is gone: the best from here on is kept")
        best.forget()
