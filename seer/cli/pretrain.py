"""`seer pretrain`: config -> objects -> one call of the loop -> a backbone."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from seer.cli import config
from seer.core import rng
from seer.core.build import build
from seer.core.errors import BadDataError, Interrupted, LostPeer, RequestError, StorageError
from seer.core.log import log
from seer.core.protocols import Evaluator, MetricSink
from seer.data.ledger import Ledger
from seer.data.multicrop import MultiCrop
from seer.data.order import MOST_LANES, largest_divisor
from seer.data.shards import fingerprint, open_shards
from seer.engine.determinism import cost, use_deterministic
from seer.engine.loop import fit
from seer.engine.metrics import JsonLines, Metrics, ProgressBar, TensorBoard
from seer.engine.numerics import Guard
from seer.engine.precision import quickest
from seer.engine.recorder import FlightRecorder
from seer.engine.retention import Keep, steps_in
from seer.engine.saving import Checkpoints
from seer.engine.stop import StopRequest
from seer.evals.features import Pictures
from seer.evals.probe import Probe, labelled
from seer.evals.rankme import RankMe
from seer.parallel.collectives import any_true
from seer.parallel.world import World, open_world, same_statistics, statistics_groups
from seer.run import assemble, replay
from seer.run import folder as run_folder
from seer.run import validate as requests
from seer.run.assemble import Data, Training
from seer.run.finish import Bundles, Ending
from seer.run.schedule import Lengths, rate


def run(words: Sequence[str], output: list[Path]) -> dict[str, Any]:
    """Returns the result for the JSON line. Raises RequestError and what `fit` raises."""
    wanted = config.read("pretrain", words)
    if wanted["replay"]:
        return replay.run(wanted)
    requests.check_words(wanted)
    try:
        with open_world(wanted["parallel"]["device"], wanted["parallel"]["timeout_s"]) as world, StopRequest() as stop:
            return _run(wanted, world, output, stop)
    except LostPeer as lost:
        raise run_folder.kept(Path(wanted["output"]), lost) from lost
    except KeyboardInterrupt as asked:
        raise _interrupted(asked, output) from None


def _interrupted(asked: KeyboardInterrupt, output: Sequence[Path]) -> Interrupted:
    """Stopped outside of training: what the folder holds already stands."""
    name = asked.args[0] if asked.args else "SIGINT"
    step = max((step for folder in output for step in steps_in(folder / "checkpoints")), default=0)
    saved = f"with step {step} saved" if step else "before anything had to be saved"
    error = Interrupted(f"stopped on {name} {saved}; run the same command again{' to go on' if step else ''}", step)
    if hasattr(asked, "tells"):
        error.tells = asked.tells  # type: ignore[attr-defined]
    return error


def _run(wanted: dict[str, Any], world: World, output: list[Path], stop: StopRequest) -> dict[str, Any]:
    use_deterministic(wanted["parallel"]["deterministic"], world.device)
    folder = Path(wanted["output"])
    if wanted["precision"]["dtype"] == "auto":
        wanted["precision"]["dtype"] = run_folder.begun_with(folder, "precision.dtype") or quickest(world.device)
    crop, precision = build("augment", wanted["augment"]), build("precision", wanted["precision"], world.device)
    batch = wanted["batch"]
    if batch < world.size or batch % world.size:
        raise RequestError(
            f"batch={batch} over {world.size} ranks: the batch is a multiple of the number of ranks, one image each "
            "at least"
        )
    source = wanted["data"]["source"]
    named = {key: wanted["data"][key] for key in ("check_crc", "image", "fields")}
    shards = open_shards(source, **named) if source else None  # a wrong path must not leave a run folder behind
    probed = _probed(wanted, crop)
    pictures = sum(map(len, shards)) if shards is not None else wanted["data"]["drawn"]
    lengths = Lengths(wanted["steps"], batch, pictures)
    task, licence = assemble.task(wanted, crop, lengths, world)
    requests.check_parts(wanted, task, lengths, precision, world, pictures)
    with run_folder.claim(folder, wanted, world):
        output.append(folder)
        if shards is None:
            shards = assemble.drawn(wanted, folder, world)
            probed = probed or _probed(wanted, crop)
        run_folder.same_everywhere(wanted, fingerprint(shards), world)
        data = assemble.data(wanted, shards, crop, world)
        training = assemble.training(wanted, task, lengths, world, precision)
        training.licence = licence
        return _train(wanted, folder, data, training, probed, crop, world, stop)


def _probed(wanted: Mapping[str, Any], crop: MultiCrop) -> tuple[Pictures, Pictures] | None:
    """The labelled pictures of the kNN probe, where there are any. Raises RequestError."""
    return labelled(wanted["eval"], crop.sizes[0]) if wanted["eval"]["train"] else None


def _train(
    wanted: Mapping[str, Any],
    folder: Path,
    data: Data,
    training: Training,
    probed: tuple[Pictures, Pictures] | None,
    crop: MultiCrop,
    world: World,
    stop: StopRequest,
) -> dict[str, Any]:
    batch, total, task = wanted["batch"], training.total_steps, training.task
    facts: dict[str, Any] = {"data": fingerprint(data.shards), "plan": data.plan.fingerprint, "batch": batch}
    group = wanted["parallel"]["batch_norm_group"]
    statistics = statistics_groups(world, group)
    facts |= {"batch_norm_images": batch // statistics, "licence": training.licence}
    bundles = Bundles(wanted, folder / "bundle", training, crop, world, facts["data"], batch, statistics)
    checkpoints = _checkpoints(wanted, folder, training, world, bundles)
    first = _resume(checkpoints, training, facts, world, group)
    if first >= total and (done := run_folder.finished(folder)):
        log.info(f"{folder} is complete; give another output=, or delete it to train again")
        return done
    threads = max(1, data.threads)
    probe = Probe(wanted["eval"], *probed, crop, threads, training.precision.dtype) if probed else None
    _announce(wanted, data, training, first, world)
    if wanted["parallel"]["deterministic"]:
        _tell_cost(training, batch // world.size, world)
    if first == 0 and task.kmeans:
        _seed_prototypes(wanted["seed"], data, training)
    before = run_folder.summary(folder).get("knn_top1_untrained") if first else None
    recorder = FlightRecorder(task.chance_loss, task.prototypes, before)
    metrics = Metrics([*_sinks(wanted, folder, world, total, first, task.chance_loss), recorder])
    if probe and first == 0:
        metrics.add(0, probe.baselines())
    ending = Ending(folder, bundles, world, batch, recorder)
    limits = Ledger(data.shards, wanted["data"]["max_bad"], run_folder.over_ranks(world), world.size)

    def pictures(step: int) -> list[dict[str, Any]]:
        """Where this rank's pictures of a step lie."""
        places = data.plan.places(step * batch, batch, world.rank, world.size)
        rows = zip(places.epoch.tolist(), places.shard.tolist(), places.row.tolist(), strict=True)
        return [{"epoch": e, "shard": str(data.shards[s].path), "row": r} for e, s, r in rows]

    lines = run_folder.SkippedLines(folder, world, first, limits, batch, data.excluded)
    try:
        fit(
            task,
            data.loader.batches,
            training.optimizer,
            lr=training.lr,
            plateau=training.plateau,
            weight_decay=None,
            precision=training.precision,
            guard=Guard(
                folder, world, pictures=pictures, explain=task.explain, weights=task.state_dict, config=dict(wanted)
            ),
            checkpoints=checkpoints,
            metrics=metrics,
            evaluators=_evaluators(probe, crop, data.threads, training.precision.dtype),
            ledger=lines,
            world=world,
            every=training.every,
            batch=batch,
            pictures=data.plan.total,
            first_step=first,
            total_steps=total,
            facts=facts,
            stop=stop,
        )
    except Interrupted as interrupted:
        metrics.close()
        lines.close()
        # a bundle of many GB must not stand between the save and exit 75, without which no scheduler goes on
        bundle = not any_true(stop.hurried, world.group)
        try:
            interrupted.result = ending.result(interrupted.step, bundle=bundle)
        except (OSError, StorageError) as error:
            log.error(f"what the run leaves behind cannot be written: {error}; the checkpoint is whole")
        raise
    except BadDataError as error:
        lines.last(getattr(error, "skipped", ()))
        raise
    finally:
        lines.close()
    metrics.close()
    return ending.result(total)


def _tell_cost(training: Training, here: int, world: World) -> None:
    """Of deterministic algorithms, measured with the batch of one rank."""
    task = training.task
    shapes = [(v * here, 3, side, side) for v, side in zip(task.crop.counts, task.crop.sizes, strict=True)]
    task.model.train()
    with training.precision.autocast():
        times = cost(task.model, shapes, world.device)
    log.info(f"deterministic algorithms only: a forward and a backward pass take {times:.2f} times as long here")


def _seed_prototypes(seed: int, data: Data, training: Training) -> None:
    """By k-means on the embeddings of the first pictures."""
    task = training.task
    log.info(f"{task.prototypes} prototypes start from the embeddings of {task.kmeans} pictures")
    with closing(data.loader.batches(0)) as batches:  # type: ignore[type-var]
        task.model.train()
        with training.precision.autocast():
            task.seed_prototypes(batches, rng.key(seed, "prototypes") & 0x7FFFFFFFFFFFFFFF)


def _checkpoints(
    wanted: Mapping[str, Any], folder: Path, training: Training, world: World, bundles: Bundles
) -> Checkpoints:
    """Raises StorageError when the disk cannot hold them."""
    often = wanted["every"]
    keep = Keep(often["keep"], training.keep_steps, often["keep_hours"])
    checkpoints = Checkpoints(
        folder / "checkpoints",
        world,
        keep,
        statistics=bundles.statistics,
        background=often["background"],
        beside=bundles.beside,
    )
    each = training.optimizer.defaults
    slots = 2 if "betas" in each else 1  # moments of a parameter
    parameters = sum(p.numel() for group in training.optimizer.param_groups for p in group["params"])
    state = sum(t.numel() * t.element_size() for t in training.task.state_dict().values())
    checkpoints.check_room(state + 4 * slots * parameters)
    return checkpoints


def _evaluators(probe: Probe | None, crop: MultiCrop, threads: int, dtype: torch.dtype) -> list[Evaluator]:
    """The probe, and RankMe where the probe has so many pictures that a tenth of them more is worth a figure."""
    if probe is None:
        return []
    most = min(1024, (len(probe.train) + len(probe.test)) // 10)
    if most < 256:
        return [probe]
    again = RankMe(probe.train, probe.test, mean=crop.mean, std=crop.std, most=most, threads=threads, dtype=dtype)
    return [probe, again]


def _resume(
    checkpoints: Checkpoints, training: Training, facts: Mapping[str, Any], world: World, batch_norm_group: int
) -> int:
    """Load the newest checkpoint into everything; returns the step to go on from. Raises RequestError for other data, and for
    batch statistics of another number of images."""
    task, groups = training.task.state_dict(), training.optimizer.param_groups
    named = {f"task/{name}": tensor for name, tensor in task.items()}
    named |= {f"optimizer/state/{i}": p for i, p in enumerate(p for group in groups for p in group["params"])}
    found = checkpoints.load_newest({name: t for name, t in named.items() if hasattr(t, "full_tensor")})
    if found is None:
        return 0
    state, manifest = found
    changed = {"data": "the pictures have changed; restore them", "batch": "give the batch of before"}
    changed["plan"] = (
        "the pictures would come in another order; give data.lanes as before (a run begun by a version that chose no more than "
        f"{MOST_LANES} goes on with data.lanes={largest_divisor(facts['batch'], MOST_LANES)})"
    )
    for name in ("data", "batch", "plan"):
        if manifest[name] != facts[name]:
            raise RequestError(
                f"the checkpoint of step {manifest['step']} was made with {name} {manifest[name]}, now it is "
                f"{facts[name]}: {changed[name]}, or give another output="
            )
    if "batch_norm_images" in manifest:
        same_statistics(world, batch_norm_group, facts["batch"], manifest["batch_norm_images"])
    training.task.load_state_dict(state["task"])
    training.optimizer.load_state_dict(state["optimizer"])
    training.precision.load_state_dict(state["precision"])
    if training.plateau is not None:
        training.plateau.load_state_dict(state["plateau"])
    log.info(f"going on from step {manifest['step']}")
    return int(manifest["step"])


def _announce(wanted: Mapping[str, Any], data: Data, training: Training, first: int, world: World) -> None:
    task, batch = training.task, wanted["batch"]
    trunk = sum(p.numel() for p in task.backbone.parameters()) / 1e6
    head = sum(p.numel() for p in task.head.parameters()) / 1e6
    log.info(
        f"{data.plan.total} pictures in {len(data.shards)} shards, {data.plan.lanes} lanes; backbone {trunk:.1f} M "
        f"parameters, head {head:.1f} M; {world.size} x {world.device.type} in "
        f"{wanted['precision']['dtype']}, {data.threads} reading threads"
    )
    peak = wanted["schedule"]["peak"]
    log.info(
        f"{training.total_steps} steps of {batch} pictures ({training.total_steps * batch / data.plan.total:.1f} epochs), "
        f"from step {first}; peak learning rate {rate(peak, batch, None):g} (schedule.peak={peak}); "
        f"loss starts near ln K = {task.chance_loss:.2f}"
    )
    queue = wanted["task"]["queue"]
    if wanted["task"]["prototypes"] > batch + queue:
        log.warning(
            f"{wanted['task']['prototypes']} prototypes share {batch + queue} pictures a step (batch {batch} + queue {queue}), "
            "so some get none; use fewer task.prototypes, a larger batch, or task.queue"
        )


def _sinks(
    wanted: Mapping[str, Any], folder: Path, world: World, total: int, first: int, chance_loss: float
) -> list[MetricSink]:
    if world.rank != 0:
        return []
    sinks: list[MetricSink] = [JsonLines(folder / "metrics.jsonl", first)]
    if wanted["log"]["tensorboard"]:
        sinks.append(TensorBoard(folder / "tensorboard", first))
    return [*sinks, ProgressBar(total, first, chance_loss)]
