"""Says what each verb is asked for: every key with its default, type, limits and sentence. Imports nothing heavy."""

from dataclasses import MISSING, dataclass

from seer.core.budget import Budget
from seer.core.schema import Duration, Level, Node, Number, Part, Path, Paths, Share, Switch, Whole, Word, setting
from seer.data.pixels import MOST_PIXELS
from seer.run.config import RunConfig


@dataclass(frozen=True)
class Pretrain(RunConfig):
    """Holds what `seer pretrain` is asked for."""

    replay: Path | None = setting(None, "RUN/capture-…: repeat the step that broke a run; nothing is written")


@dataclass(frozen=True)
class Plan(Pretrain):
    """Holds what `seer plan` is asked for."""

    gpus: Whole = setting(8, "how many share the batch")
    gpu_memory: Number = setting(80.0, "GB of each")
    budget: Budget = setting(Budget(), "what a program of the backbone may cost; compared with what is predicted")


@dataclass(frozen=True)
class Adapt(RunConfig):
    """Holds what `seer adapt` is asked for: a run whose task is heads."""

    output: Path = setting("runs/adapt", "the run folder; the same request again goes on from its last checkpoint")
    weights: Path | None = setting(
        None,
        "the backbone, and heads that stay: a run, a bundle or foreign weights; null = from scratch, with surgery=none",
    )
    steps: Duration = setting("35ep", "length of the run; a time, like 8h or 30min, is that of training")


@dataclass(frozen=True)
class Labelled:
    """Names the labelled images of an evaluation."""

    train: Paths | None = setting(
        MISSING,
        "images that are known, labelled; eval=rankme|uniformity|alignment: any images, whose labels are not looked at",
    )
    test: Paths | None = setting(MISSING, "labelled images that are asked for; not for evaluations that need none")
    labels: Paths = setting(
        "auto",
        "member (`cls`), folder, folder:N, FILE.csv, json:KEY, text:ENDING, or auto: member where any sample has one, else "
        "folder; COCO's FILE.json for boxes and masks; A,B = of train and of test; classes match by name",
    )
    size: Whole | None = setting(None, "side of the center crop; null = what the weights were trained for", least=1)
    resize: Whole | None = setting(
        None, "shorter side before the crop; null = size * 256 / 224, or size below 64", least=1
    )
    most: Whole = setting(0, "use so many of each at the most; 0 = all", least=0)
    max_pixels: Whole | None = setting(
        None,
        "of an image; a larger JPEG is decoded at 1/2 to 1/8 of its size, other images are skipped; null = what the run of the "
        "heads had, or 50000000",
        least=64,
    )
    max_bad_archives: Whole = setting(0, "so many archives that cannot be read are passed over, and named", least=0)


@dataclass(frozen=True)
class Evaluate:
    """Holds what `seer evaluate` is asked for."""

    weights: Paths = setting(
        MISSING,
        "a run (its newest whole state), RUN@best, RUN/checkpoints/step-…, a bundle, or a file of weights; eval=suite takes several",
    )
    eval: Node = setting(MISSING, "what is measured")
    data: Labelled = setting(MISSING, "on which images")
    output: Path | None = setting(None, "folder for result.json; null = none is written")
    batch: Whole | None = setting(
        None,
        "images of one forward pass; null = 256 on a GPU, on a CPU as many as are quick, on two cores 28 of 96 pixels, 5 of 224",
        least=1,
    )
    threads: Whole | None = setting(None, "that read images; null = the cores this process may use", least=1)
    device: Word = setting("auto", "cuda where there is one", one_of=("auto", "cpu", "cuda"))
    dtype: Word = setting("fp32", "of the forward pass", one_of=("fp32", "bf16"))


@dataclass(frozen=True)
class Export:
    """Holds what `seer export` is asked for."""

    weights: Path = setting(
        MISSING,
        "a run (its newest whole state), RUN/checkpoints/step-…, a bundle, or weights of torchvision, VISSL, timm or Hugging Face",
    )
    to: Word = setting(
        MISSING,
        "weights for another library (huggingface wants transformers), our bundle (safetensors), or a program: torch_export (.pt2, "
        "torch alone), onnx (extra [onnx]), executorch (.pte, extra [device])",
        one_of=("torchvision", "timm", "huggingface", "safetensors", "torch_export", "onnx", "executorch", "all"),
    )
    output: Path = setting(MISSING, "file or folder; to=all makes a folder for each target in it")
    preprocessing: Word = setting(
        "outside",
        "of a program: inside = it normalizes pixels itself; resizing stays outside",
        one_of=("outside", "inside"),
    )
    pixels: Word = setting(
        "uint8", "that preprocessing=inside takes: uint8, 0 to 255, or float, 0 to 1", one_of=("uint8", "float")
    )
    outputs: list[Word] | None = setting(
        None,
        "of a program: [HEAD,HEAD], features among them; null = all heads, or the features where there are none",
    )
    int8: Switch = setting(False, "of to=executorch: weights and activations in int8, a third to a quarter of the file")
    calibration: Paths | None = setting(
        None,
        "images like those of training, for int8; null = what the weights were trained on, where that is still there",
    )
    calibration_images: Whole = setting(128, "how many of them, from all parts of the source", least=32)
    licence: Word | None = setting(
        None, "of imported weights, kept in the bundle and its model card; null = what the weights say"
    )
    source: Paths | None = setting(None, "images for the parity check; null = built-in ones")
    pictures: Whole = setting(8, "how many of them", least=1)
    budget: Budget = setting(Budget(), "what the export may cost at most; above it nothing is written (exit 78)")
    push: Word | None = setting(
        None,
        "USER/NAME on the hub of Hugging Face that to=huggingface also goes to, with the token of HF_TOKEN; to be typed",
    )
    private: Switch = setting(True, "whether others cannot see what is pushed")


@dataclass(frozen=True)
class Tested:
    """Names the labelled images by which a program is judged; how they are cut stands beside the program."""

    test: Paths | None = setting(None, "labelled images; null = none, and nothing is said of accuracy")
    labels: Paths = setting("auto", "where labels come from, as of `seer evaluate`")
    most: Whole = setting(0, "use so many at the most; 0 = all", least=0)


@dataclass(frozen=True)
class Measure:
    """Holds what `seer measure` is asked for."""

    file: Path = setting(
        MISSING, "a program that `seer export` wrote (.onnx, .pt2, .pte), its JSON beside it; or its folder"
    )
    against: Path | None = setting(
        None, "another one, timed in turn with it; with data.test= the float one of which `drop` is"
    )
    data: Tested = setting(Tested(), "by which images the file is judged")
    budget: Budget = setting(Budget(), "what is compared with what was measured; a limit that is broken is told")
    threads: Whole = setting(1, "of the runtime", least=1)
    runs: Whole = setting(50, "that are timed, of one image each", least=1)
    output: Path | None = setting(None, "folder for result.json; null = none is written")


@dataclass(frozen=True)
class Shard:
    """Holds what `seer shard` is asked for."""

    source: Paths = setting(
        MISSING, "a folder of images (nested as it likes), a tar, a glob, a .txt with a path a line, or a,b,c of these"
    )
    output: Path = setting(MISSING, "folder for shard-000000.tar …, an index beside each, manifest.json")
    image: Word | None = setting(None, "the ending of the image, where samples have several: input.jpg")
    fields: dict[str, Word] | None = setting(
        None, "what else belongs to an image: {mask: png} makes a.png the mask of a.jpg, {mask: masks/} masks/a.png"
    )
    per_shard: Whole = setting(10000, "images in a shard; all shards hold the same number, give or take one")
    shuffle: Switch = setting(True, "lay the images in a random order, once")
    seed: Whole = setting(0, "of that order")
    labels: Path | None = setting(
        None,
        "what becomes the `cls` member: folder (the one that names a class), folder:N, FILE.csv, json:KEY, text:ENDING; "
        "of COCO's FILE.json its boxes become `boxes.json`",
    )
    holdout: Part = setting(0, "so many images, or such a share of them, into OUTPUT/test, the rest into OUTPUT/train")
    max_side: Whole | None = setting(
        None, "longest side in pixels; larger images are made smaller, once (changes pixels)"
    )
    quality: Whole | None = setting(
        None, "1 to 100: all images become JPEGs of this quality; null = as they are, or 90 where made smaller"
    )
    check: Switch = setting(
        False,
        "decode each image that is copied, as training would, and leave out what cannot be; images that become smaller, or JPEGs, "
        "are decoded anyway",
    )
    ground: Level = setting(
        "black",
        "where images become JPEGs, what lies under transparent ones: black, white, gray, or a level from 0 to 255",
    )
    max_pixels: Whole = setting(
        MOST_PIXELS,
        "of an image that is decoded; with max_side or check a larger JPEG is at 1/2 to 1/8 of its size, others are left out",
        least=64,
    )
    processes: Whole | None = setting(None, "that write; null = the cores this process may use")
    max_bad: Share = setting("1%", "stop (exit 65) when more of the images cannot be used, and 100 at least")
    max_bad_archives: Whole = setting(0, "so many archives that cannot be read are passed over, and named", least=0)
    index_only: Switch = setting(False, "true = indexes for the tars of the source; nothing is copied")


SCHEMAS: dict[str, type] = {
    "pretrain": Pretrain,
    "adapt": Adapt,
    "plan": Plan,
    "evaluate": Evaluate,
    "export": Export,
    "measure": Measure,
    "shard": Shard,
}
