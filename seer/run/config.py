"""Holds what a training run is asked for, as typed values: read once, checked, resolved into a new object,
never written to.

Nodes with a `_target_` stay plain: the signature of what they name is their schema (`core.build`). Durations and rates stay
as people write them; `run.schedule` turns them into steps and numbers once the size of the data is known.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Annotated, Any

from seer.core import schema
from seer.core.errors import RequestError
from seer.core.evaluations import PROBES, images_of
from seer.core.schema import (
    Duration,
    Level,
    Node,
    Nodes,
    Number,
    Part,
    Path,
    Paths,
    Share,
    Steps,
    Switch,
    Whole,
    Word,
    setting,
)
from seer.core.secrets import cleaned
from seer.data.pixels import MOST_PIXELS, Pixels, pixels


@dataclass(frozen=True)
class DataConfig:
    """Says what is trained on, and how it is read."""

    source: Paths | None = setting(
        None, "a folder of images or of tars, a tar, a glob, {000..009}, a .txt with a path a line"
    )
    lanes: Whole | None = setting(None, "ranks must divide it and it the batch; null = chosen by the batch", least=1)
    block: Whole = setting(8192, "rows shuffled together inside a lane", least=1)
    threads: Whole | None = setting(
        None, "that prepare images, in a process beside each rank; null = the cores of this rank; 0 = none", least=0
    )
    prefetch: Whole = setting(4, "batches made ahead", least=1)
    prefetch_gb: Number = setting(4.0, "fewer where the memory for them would be more, per rank", above=0)
    max_bad: Share = setting("1%", "stop (exit 65) when more of the last 100,000 images are bad, or half of one shard")
    max_bad_archives: Whole = setting(0, "so many archives that cannot be read are passed over, and named", least=0)
    check_crc: Switch = setting(True, "compare every row with its index; without it a flipped byte passes")
    image: Word | None = setting(None, "the ending of the image, where samples have several: input.jpg")
    fields: dict[str, Word] | None = setting(
        None, "what else belongs to an image: {mask: png} makes a.png the mask of a.jpg, {mask: masks/} masks/a.png"
    )
    labels: Path = setting(
        "auto",
        "of a task that learns classes: member (`cls`), folder, folder:N, FILE.csv, json:KEY, text:ENDING, or auto; of heads for "
        "boxes and masks COCO's FILE.json",
    )
    channels: Whole = setting(
        3,
        "of an image: 3 = RGB, 1 = gray; any other number is that of its own bands (TIFF of 8 or 16 bits, RGBA)",
        least=1,
    )
    ground: Level = setting("black", "what lies under transparent images: black, white, gray, or a level from 0 to 255")
    max_pixels: Whole = setting(
        MOST_PIXELS,
        "of an image; a larger JPEG is decoded at 1/2 to 1/8 of its size, other images are skipped",
        least=64,
    )
    exclude: Paths | None = setting(None, "images never to read: a run's skipped.jsonl, or lines of shard<TAB>member")
    drawn: Whole = setting(0, "without a source: how many built-in images to draw for training", least=0)
    drawn_test: Whole = setting(0, "and for the probe", least=0)

    @property
    def pixels(self) -> Pixels:
        """Returns what images are decoded to. Raises RequestError."""
        return pixels(self.ground, self.max_pixels, self.channels, prefix="data.")


@dataclass(frozen=True)
class IntervalsConfig:
    """Says how often things are done; durations, 0 = only at the end (log: at least 1)."""

    log: Steps = setting(10, "a row of numbers")
    evaluate: Steps = setting("10%", "the probe")
    checkpoint: Steps = setting("5%", "a checkpoint")
    compare: Steps = setting("1%", "whether weights are the same on all ranks; 0 = only before a checkpoint")
    minutes: Number = setting(0, "a checkpoint also so many minutes after the last one; 0 = not", least=0)
    keep: Whole = setting(2, "how many of the newest checkpoints stay")
    keep_steps: Steps = setting(0, "those at its multiples stay for ever; 0 = none")
    keep_hours: Number = setting(
        0, "the first after so many hours since the last that stayed for ever stays, too; 0 = none"
    )
    keep_best: Word | None = setting(
        None,
        "a figure of the probes, like knn or linear_top1: the checkpoint at which it was best stays, as checkpoints/best",
    )
    background: Switch = setting(True, "checkpoints are written while training goes on; costs a copy of the state")


@dataclass(frozen=True)
class PlateauConfig:
    """Says when the loss has stopped falling, for schedule=constant_halving."""

    patience: Duration = setting("2%", "windows of logged losses")
    threshold: Number = setting(0.001, "halve when a window's mean is less than this share below the lowest so far")


@dataclass(frozen=True)
class ParallelConfig:
    """Says where a step runs, and how it is spread over ranks."""

    device: Word = setting("auto", "cuda where there is one", one_of=("auto", "cpu", "cuda"))
    mode: Word = setting("auto", "of several ranks; auto = ddp", one_of=("auto", "ddp", "fsdp", "fairscale"))
    batch_norm_group: Whole = setting(0, "ranks that share batch statistics: 0 = all, 1 = none")
    channels_last: Switch = setting(True, "the layout of activations")
    remat: str | list[str] = setting(
        "none", "what is made again in the backward pass: block, stage, selective, budget=GB, names"
    )
    compile: Switch = setting(False, "the backbone by torch.compile")
    deterministic: Switch = setting(False, "the same bits every time, on a GPU too")
    timeout_s: Number = setting(600.0, "how long a rank waits for another", above=0)


@dataclass(frozen=True)
class ProbeConfig:
    """Says how kNN is measured while training, when labelled images are given."""

    train: Paths | None = setting(None, "labelled images that are known")
    test: Paths | None = setting(None, "labelled images that are asked for; of task=heads also without eval.train")
    labels: Paths = setting(
        "auto",
        "member (`cls`), folder, folder:N, FILE.csv, json:KEY, text:ENDING, or auto: member where any sample has one, else "
        "folder; COCO's FILE.json for boxes and masks; A,B = of train and of test",
    )
    size: Whole | None = setting(None, "side of the center crop; null = that of the large views", least=1)
    resize: Whole | None = setting(
        None, "shorter side before the crop; null = size * 256 / 224, or size below 64", least=1
    )
    most: Whole = setting(0, "use so many images of each at the most; 0 = all", least=0)
    max_pixels: Whole | None = setting(
        None,
        "of an image; a larger JPEG is decoded at 1/2 to 1/8 of its size, other images are skipped; null = data.max_pixels",
        least=64,
    )
    max_bad_archives: Whole = setting(0, "so many archives that cannot be read are passed over, and named", least=0)
    k: Whole = setting(20, "neighbours", least=1)
    temperature: Number = setting(0.07, "of their votes", above=0)


@dataclass(frozen=True)
class ProbesConfig:
    """Says what is measured while training, each with the settings that it has in `seer evaluate`."""

    run: Annotated[list[str], "a list of names"] | None = setting(
        None,
        f"any of {', '.join(PROBES)}, also as probe=[knn,linear]; null = what the images of eval.* allow: knn, rankme and heads",
    )
    share: Share | None = setting(
        None,
        "of the run's time, like 10%: a probe that would take more waits, but before training and at the end; null = any",
    )
    knn: Node = setting({}, "settings of probe=knn")
    linear: Node = setting({}, "settings of probe=linear")
    lowshot: Node = setting({}, "settings of probe=lowshot")
    rankme: Node = setting({}, "settings of probe=rankme")
    uniformity: Node = setting({}, "settings of probe=uniformity")
    alignment: Node = setting({}, "settings of probe=alignment")
    head: Node = setting({}, "settings of probe=head")

    def node(self, name: str) -> dict[str, Any]:
        """Returns what builds a probe: its settings, with its `_target_`."""
        return {**getattr(self, name), "_target_": PROBES[name]}

    def needs(self, *sides: str) -> list[str]:
        """Returns the probes that were asked for and need exactly these images, of train and test."""
        return [name for name in self.run or () if images_of({"_target_": PROBES[name]}) == sides]


@dataclass(frozen=True)
class LogConfig:
    """Says where numbers go besides metrics.jsonl."""

    tensorboard: Switch = setting(True, "event files in RUN/tensorboard")


@dataclass(frozen=True)
class RunConfig:
    """Holds one training run. model, task, augment, optim, schedule, precision: nodes with a `_target_`."""

    model: Node = setting(MISSING, "the backbone")
    task: Node = setting(MISSING, "the way of learning")
    augment: Node = setting(MISSING, "what makes a batch of images")
    optim: Node = setting(MISSING, "the optimizer")
    schedule: Node = setting(MISSING, "of the learning rate")
    precision: Node = setting(MISSING, "of the arithmetic")
    output: Path = setting("runs/pretrain", "the run folder; the same request again goes on from its last checkpoint")
    seed: Whole = setting(0, "from which every random number of the run comes")
    weights: Path | None = setting(None, "start from a run, a bundle or foreign weights: the backbone is loaded")
    steps: Duration = setting(
        "100ep", "length of the run; a time, like 8h or 30min, is that of training, and the schedule follows it"
    )
    batch: Whole = setting(256, "images of one step over all ranks")
    accumulate: Whole = setting(1, "parts in which each rank runs its share of the batch, for less memory", least=1)
    surgery: Node = setting({"steps": []}, "what is done to the backbone before it trains")
    data: DataConfig = setting(DataConfig(), "what is trained on")
    every: IntervalsConfig = setting(IntervalsConfig(), "how often")
    plateau: PlateauConfig = setting(PlateauConfig(), "when the loss has stopped falling")
    parallel: ParallelConfig = setting(ParallelConfig(), "where it runs")
    eval: ProbeConfig = setting(ProbeConfig(), "the images of the probes, and of the kNN that comes without probe=")
    probe: ProbesConfig = setting(ProbesConfig(), "what is measured while training")
    log: LogConfig = setting(LogConfig(), "where numbers go")
    groups: Nodes | None = setting(
        None,
        "rules for parameters, the first that matches a name wins; keys: seer.optim.groups.Rule; null = the task's own",
    )
    holdout: Part = setting(
        0,
        "so many of the labelled images, or such a share of them, are chosen by the seed and not trained on: heads are judged on "
        "them, and thresholds of tags chosen",
    )
    layer_decay: Number = setting(
        1.0,
        "the rate of each stage of the backbone, down to the stem, is so much of that of what stands on it",
        above=0,
    )
    ema: Number = setting(
        0.0,
        "weights averaged over steps are judged and written into the bundle; so much of the average stays at each step, "
        "like 0.999; 0 = none",
        least=0,
    )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "RunConfig":
        """Makes one of plain values, like a run's config.yaml; keys of a verb that are none of a run's must be gone.

        Raises RequestError.
        """
        config = schema.read(cls, values)
        if config.batch < 1:
            raise RequestError(f"batch={config.batch}: at least 1 image")
        if config.layer_decay > 1:
            raise RequestError(f"layer_decay={config.layer_decay}: above 0 and up to 1, where all stages learn alike")
        if config.ema >= 1:
            raise RequestError(f"ema={config.ema}: from 0 (no average) up to, but below 1, like 0.999")
        _ = config.data.pixels
        _check_probes(config)
        return config

    def plain(self) -> dict[str, Any]:
        """Returns what a run's config.yaml holds, without passwords and query strings of URLs."""
        plain: dict[str, Any] = cleaned(schema.plain(self))
        return plain

    def replace(self, **changes: Any) -> "RunConfig":
        """Returns a new config; a mapping changes keys of a node and leaves the others."""
        new: dict[str, Any] = {}
        for name, value in changes.items():
            node = getattr(self, name)
            if isinstance(value, Mapping) and dataclasses.is_dataclass(node) and not isinstance(node, type):
                new[name] = dataclasses.replace(node, **value)
            else:
                new[name] = {**node, **value} if isinstance(value, Mapping) else value
        return dataclasses.replace(self, **new)


def _check_probes(config: RunConfig) -> None:
    """Raises RequestError for a probe that there is not, and for one without its images."""
    probe, images = config.probe, config.eval
    for name in probe.run or ():
        if name not in PROBES:
            near = difflib.get_close_matches(name, PROBES, n=1)
            asked = f"; did you mean {near[0]!r}?" if near else ""
            raise RequestError(f"probe=[{name}]: no such probe{asked}; there are {', '.join(PROBES)}")
    if probe.run is not None and len(set(probe.run)) < len(probe.run):
        raise RequestError(f"probe=[{','.join(probe.run)}]: each once")
    drawn = bool(not config.data.source and config.data.drawn_test)
    train, test = bool(images.train) or drawn, bool(images.test) or drawn
    both, plain = probe.needs("train", "test"), probe.needs("train")
    if (both or (probe.run is None and train)) and not (train and test):
        name = both[0] if both else "kNN"
        raise RequestError(f"the {name} probe needs both eval.train=… and eval.test=…")
    if plain and not train:
        raise RequestError(f"probe={plain[0]} needs eval.train=…, images whose labels are not looked at")
    if probe.needs("test") and not (test or config.holdout):
        raise RequestError("probe=head needs eval.test=… or holdout=…, images with what the heads are to find")
