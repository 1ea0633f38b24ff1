"""Trains one run, from its config to what it leaves behind: `train`. Called by the command line, and by anyone
in Python."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from seer.core import rng
from seer.core.build import build, find
from seer.core.errors import BadDataError, Interrupted, LostPeer, StorageError
from seer.core.log import log
from seer.core.protocols import Evaluator, MetricSink
from seer.core.records import Batch
from seer.core.signals import listener
from seer.data.ledger import Ledger, parse_fraction
from seer.data.shards.bad_archives import BadArchives
from seer.data.shards.open import census_of
from seer.data.shards.shard import content_fingerprint, fingerprint
from seer.engine.alarms import FlightRecorder
from seer.engine.best import Best
from seer.engine.checkpoint_policy import Checkpoints
from seer.engine.control import Control
from seer.engine.determinism import cost, use_deterministic
from seer.engine.loop import fit
from seer.engine.metrics import JsonLines, Metrics, TensorBoard
from seer.engine.monitor import Monitor
from seer.engine.nan_guard import NaNGuard
from seer.engine.precision import default_dtype
from seer.engine.probes import Probes
from seer.engine.progress import ProgressBar
from seer.engine.retention import steps_in
from seer.engine.spent import Spent
from seer.engine.stop_request import StopRequest
from seer.evals.knn import KNN, baselines
from seer.evals.labels import UNLABELLED, Labels
from seer.evals.used import learned, sizes, tell_overlap, used
from seer.export.targets import possible
from seer.parallel.collectives import any_rank
from seer.parallel.world import World, open_world, statistics_groups
from seer.run import assemble, ended, environment, first_views, fresh, network_input, probes, resume, validate
from seer.run.assemble import Data, Training
from seer.run.cached_features import with_cached_features
from seer.run.classes import Listed, give_targets, with_classes
from seer.run.config import RunConfig
from seer.run.finish import Bundles, Ending
from seer.run.folder import begun_with, check_same_on_ranks, claim
from seer.run.kept_out import kept_out, told
from seer.run.lineage import lineage
from seer.run.longer import restated
from seer.run.opening import announce
from seer.run.result import describe_lost_peer, finished, summary
from seer.run.schedule import Durations
from seer.run.skipped import SkippedLines, over_ranks
from seer.run.source import open_source


@dataclass
class Session:
    """Holds a run whose folder is claimed. asked: the config before machine and data decided what it left open. sinks,
    evaluators: given by a caller, beside the run's own. length_before: what `steps` was when it ran last. images: of
    the probes."""

    asked: RunConfig
    config: RunConfig
    folder: Path
    world: World
    stop: StopRequest
    data: Data
    training: Training
    images: probes.Images
    spent: Spent
    sinks: Sequence[MetricSink] = ()
    evaluators: Sequence[Evaluator] = ()
    length_before: Any = None
    bad_archives: Mapping[str, str] = field(default_factory=dict)


def train(
    config: RunConfig,
    *,
    sinks: Sequence[MetricSink] = (),
    evaluators: Sequence[Evaluator] = (),
    output: list[Path] | None = None,
    numbered: bool = False,
) -> dict[str, Any]:
    """Trains a run to its end, going on from its newest checkpoint where there is one, and returns its result.

    sinks receive what is logged, on the first rank, and may raise StopTraining; evaluators run beside the kNN probe. output:
    gets the run folder as soon as it is owned. numbered: config.output is a default, to which a number is added where it
    belongs to another request (`run.fresh`). Every rank calls this. Raises RequestError, BadDataError, StorageError,
    NumericsError, LostPeer, and Interrupted once a requested stop is saved.
    """
    output = [] if output is None else output
    validate.check_config(config)
    try:
        with open_world(config.parallel.device, config.parallel.timeout_s) as world, StopRequest() as stop:
            if numbered:
                config, which = fresh.choose(config, world)
                log.info(which)
            return _train(config, world, stop, output, sinks, evaluators)
    except LostPeer as lost:
        raise describe_lost_peer(output[0] if output else Path(config.output), lost) from lost
    except KeyboardInterrupt as asked:
        raise _interrupted(asked, output) from None


def _interrupted(asked: KeyboardInterrupt, output: Sequence[Path]) -> Interrupted:
    """Returns the word of a run that was stopped outside of training: what the folder holds already stands."""
    name = asked.args[0] if asked.args else "SIGINT"
    step = max((step for folder in output for step in steps_in(folder / "checkpoints")), default=0)
    saved = f"with step {step} saved" if step else "before anything had to be saved"
    error = Interrupted(f"stopped on {name} {saved}; run the same command again{' to go on' if step else ''}", step)
    if hasattr(asked, "reports"):
        error.reports = asked.reports  # type: ignore[attr-defined]
    return error


def _train(
    config: RunConfig,
    world: World,
    stop: StopRequest,
    output: list[Path],
    sinks: Sequence[MetricSink],
    evaluators: Sequence[Evaluator],
) -> dict[str, Any]:
    use_deterministic(config.parallel.deterministic, world.device)
    spent, asked, folder = Spent(listener.running()), config, Path(config.output)
    config = resolved(config, folder, world)
    transform, precision = network_input.transform(config), build("precision", config.precision, world.device)
    validate.check_batch(config, world)
    source = config.data.source
    bad = BadArchives(config.data.max_bad_archives, "data.max_bad_archives")
    probe_bad = BadArchives(config.eval.max_bad_archives, "eval.max_bad_archives")
    with spent.on("opening the data"):
        shards = open_source(config, folder, bad=bad) if source else None  # a wrong path must leave no folder
        config, labels = with_classes(config, shards)
    draws_probe = shards is None and config.eval.train == str(folder / "pictures" / "train")
    images = sum(map(len, shards)) if shards is not None else config.data.drawn
    lengths = Durations(config.steps, config.batch, images)
    network_input.tell(config, shards)
    task, licence = assemble.task(config, transform, lengths, world)
    origin = lineage(config, task)
    validate.check_parts(config, task, lengths, precision, world, images)
    probed = None if draws_probe else probes.opened(config, task, transform, world.group, probe_bad)
    kept = None if shards is None else kept_out(config, task, shards, world.group)
    length_before = begun_with(folder, "steps")
    with claim(folder, config.plain(), world, output, lengths):
        if world.rank == 0:
            environment.record(folder, world)
        with spent.on("drawing"):
            shards = assemble.drawn(config, folder, world) if shards is None else shards
        if probed is None:
            probed = probes.opened(config, task, transform, world.group, probe_bad)
        give_targets(task, shards, labels)
        check_same_on_ranks(config.plain(), fingerprint(shards), world)
        unlabelled = () if labels is None else labels.places(UNLABELLED)
        kept = kept if source else kept_out(config, task, shards, world.group)  # built-in images are drawn by now
        aside = () if kept is None else kept.rows
        data = assemble.data(config, shards, transform, world, [*unlabelled, *aside])
        training = assemble.training(config, task, lengths, world, precision)
        training.licence, training.lineage = licence, origin
        data = with_cached_features(config, data, training, world)
        known = learned(shards, probed.asked) if isinstance(labels, Labels) and probed.asked is not None else None
        passed_over = bad.found | probe_bad.found
        given: tuple[Any, ...] = (replace(probed, kept_out=kept), spent, sinks, evaluators, length_before, passed_over)
        result = _run(Session(asked, config, folder, world, stop, data, training, *given), lengths)
        return {**result, **_counts(labels, probed, known), **told(config, task, kept)} if result else result


def _counts(labels: Labels | Listed | None, probed: probes.Images, known: int | None) -> dict[str, Any]:
    """Returns what the result says of labels: of the classes that were learned, and of the images of the probe. known: how many
    test images are learned from, where any are learned from."""
    found: dict[str, Any] = {}
    if isinstance(labels, Labels):
        found = {"classes": len(labels.per_class()), **sizes(labels.per_class())}
    elif labels is not None:
        found = {"classes": len(labels.things.names), "labels_left_out": labels.things.left_out}
    both = probed.known is not None and probed.asked is not None
    probe = used(probed.known, probed.asked) if both else {}  # type: ignore[arg-type]
    if probe.get("test"):
        found["probe"] = probe if known is None else {**probe, "learned": known}
    return found


def resolved(config: RunConfig, folder: Path, world: World) -> RunConfig:
    """Returns the config with what the machine, the task and the folder decide: precision, groups, the images of the probe."""
    if config.precision.get("dtype") == "auto":
        config = config.replace(
            precision={"dtype": begun_with(folder, "precision.dtype") or default_dtype(world.device)}
        )
    if config.groups is None:
        own = getattr(find("task", config.task.get("_target_", "")), "groups", ())
        config = config.replace(groups=[dict(rule) for rule in own])
    if not config.data.source and config.data.drawn_test and not config.eval.train:
        config = config.replace(eval={part: str(folder / "pictures" / part) for part in ("train", "test")})
    return config


def _run(session: Session, lengths: Durations) -> dict[str, Any]:
    config, folder, world, training = session.config, session.folder, session.world, session.training
    group = config.parallel.batch_norm_group
    facts = _facts(session)
    bundles = Bundles(
        config, folder / "bundle", training, world, facts["data"], config.batch, statistics_groups(world, group)
    )
    checkpoints = resume.checkpoints(config, folder, training, world, bundles)
    probe, judges, best = _probes(session)
    accounts: dict[str, resume.Account] = {"probes": judges, **({} if best is None else {"best": best})}
    first = resume.resume(checkpoints, training, facts, world, group, accounts)
    probes.check_best(best, checkpoints, world)
    if (first >= training.total_steps or training.clock.over) and (done := finished(folder)):
        log.info(f"{folder} is complete; give more steps= to go on, or another output=")
        return done
    _begin(session, first, lengths)
    metrics, recorder, progress = _watched(session, first, probe, judges)
    counts = census_of(session.data.shards).plain()
    ending = Ending(folder, bundles, world, config.batch, recorder, counts, bad_archives=session.bad_archives)
    ending = replace(ending, told=partial(probes.told, judges, best, checkpoints))
    limits = Ledger(session.data.shards, config.data.max_bad, over_ranks(world), world.size)
    lines = SkippedLines(folder, world, first, limits, config.batch, session.data.excluded)
    monitor = Monitor(
        world,
        metrics,
        _guard(session),
        lines,
        training.optimizer,
        training.precision,
        training.plateau,
        config.batch,
        session.data.plan.total,
        progress,
        session.spent,
    )
    control = Control(
        training.task,
        training.every,
        monitor,
        _saver(session, checkpoints, facts, accounts),
        checkpoints,
        judges,
        session.stop,
        first,
        training.total_steps,
        training.clock,
        training.average,
        best,
    )
    try:
        result = _fit(session, monitor, control, lines, ending)
    finally:
        if progress:
            progress.close()
    return _with_times(session, result, len(probe.test) if probe else 0)


def _saver(
    session: Session, checkpoints: Checkpoints, facts: dict[str, Any], accounts: Mapping[str, resume.Account]
) -> Callable[[int], None]:
    """Returns what begins to save the state of a run after so many steps, with all that a later start takes up."""
    batch, training = session.config.batch, session.training

    def save(step: int) -> None:
        spent = {"images": step * batch, "seconds": training.clock.seconds}
        told = {name: account.plain() for name, account in accounts.items()}
        checkpoints.save(step, resume.state(training), {**facts, **spent, **told})

    return save


def _watched(
    session: Session, first: int, probe: KNN | None, judges: Probes
) -> tuple[Metrics, FlightRecorder, ProgressBar | None]:
    """Returns the metrics with all their sinks, the one that raises alarms, and the first rank's bar. Measures, at the start of
    a run, what the probe comes to without a network."""
    training, main = session.training, session.world.rank == 0
    began = summary(session.folder).get("knn_top1_untrained") if first else None
    recorder = FlightRecorder(training.task.alarms, began, len(probe.test) if probe else 0)
    clock = training.clock if training.clock.limit is not None else None
    progress = ProgressBar(training.total_steps, first, training.task.chance_loss, clock=clock) if main else None
    own = [*_sinks(session, first), *([progress] if progress else ())]
    metrics = Metrics([*own, *(session.sinks if main else ()), recorder])
    if probe and first == 0:
        with session.spent.on("evaluating"), judges.counted():
            options = {"k": probe.k, "temperature": probe.temperature, "threads": max(1, session.data.threads)}
            metrics.add(0, {**baselines(probe.train, probe.test, **options), "images": 0})  # type: ignore[arg-type]
        tell_overlap(probe.train, probe.test)
    return metrics, recorder, progress


def _with_times(session: Session, result: dict[str, Any], probe: int) -> dict[str, Any]:
    """Returns the result of a run that is done, with where its time went, and tells people of it."""
    if session.world.rank:
        return result
    spent = session.spent.until_now()
    targets = possible(session.training.task.modules()["backbone"])  # type: ignore[arg-type]
    ended.tell(result, session.config, session.data.plan.total, spent, probe, targets)
    return {**result, "seconds_of": spent}


def _fit(session: Session, monitor: Monitor, control: Control, lines: SkippedLines, ending: Ending) -> dict[str, Any]:
    """Runs the loop, and leaves everything closed and told however it ends."""
    training = session.training
    try:
        fit(
            training.task,
            _batches(session, monitor.metrics),
            training.optimizer,
            lr=training.lr,
            precision=training.precision,
            monitor=monitor,
            control=control,
            by_group=training.by_group,
            accumulate=session.config.accumulate,
            average=training.average,
        )
    except Interrupted as interrupted:
        monitor.metrics.close()
        lines.close()
        # a bundle of many GB must not stand between the save and exit 75, without which no scheduler goes on
        bundle = not any_rank(session.stop.hurried, session.world.group)
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
    monitor.metrics.close()
    return ending.result(control.total_steps)


def _batches(session: Session, metrics: Metrics) -> Callable[[int], Iterator[Batch]]:
    """Returns what yields the batches of this rank; views of the first one are shown where there is TensorBoard."""
    batches, transform = session.data.loader.batches, session.training.task.transform
    board = next((sink for sink in metrics.sinks if isinstance(sink, TensorBoard)), None)
    if board is None or not (hasattr(transform, "mean") and hasattr(transform, "std")):
        return batches
    images = session.config.batch // session.world.size
    return first_views.shown(batches, images, transform.mean, transform.std, board)


def _facts(session: Session) -> dict[str, Any]:
    """Returns what every checkpoint says of the run, to be held against the run that goes on from it."""
    config, data = session.config, session.data
    groups = statistics_groups(session.world, config.parallel.batch_norm_group)
    facts: dict[str, Any] = {"data": fingerprint(data.shards), "plan": data.plan.fingerprint, "batch": config.batch}
    facts["content"] = content_fingerprint(data.shards)
    seen = config.batch // groups // config.accumulate
    return facts | {"accumulate": config.accumulate, "batch_norm_images": seen, "licence": session.training.licence}


def _guard(session: Session) -> NaNGuard:
    data, world, batch, task = session.data, session.world, session.config.batch, session.training.task

    def images(step: int) -> list[dict[str, Any]]:
        """Returns where this rank's images of a step lie."""
        places = data.plan.places(step * batch, batch, world.rank, world.size)
        rows = zip(places.epoch.tolist(), places.shard.tolist(), places.row.tolist(), strict=True)
        return [{"epoch": e, "shard": str(data.shards[s].path), "row": r} for e, s, r in rows]

    return NaNGuard(
        session.folder,
        world,
        images=images,
        explain=task.explain,
        weights=task.state_dict,
        config=session.config.plain(),
    )


def _begin(session: Session, first: int, lengths: Durations) -> None:
    """Tells what the run is going to do, and prepares a model that has not trained yet."""
    announce(session.asked, session.config, session.data, session.training, session.world, first)
    _tell_of_length(session, first, lengths)
    if session.config.parallel.deterministic:
        _tell_cost(session)
    if first == 0:
        with session.spent.on("warm start"):
            _warm_start(session)


def _tell_of_length(session: Session, first: int, lengths: Durations) -> None:
    """Tells what another length changes of a run that goes on."""
    config, before, training = session.config, session.length_before, session.training
    if first and before is not None and str(before) != str(config.steps):
        for words in restated(config, before, lengths, first, training.lr(first)):
            log.info(words)


def _tell_cost(session: Session) -> None:
    """Tells what deterministic algorithms cost, measured with the batch of one rank."""
    training, world = session.training, session.world
    example = training.task.example(session.config.batch // world.size // session.config.accumulate).to(world.device)
    times = cost(training.task, example, training.precision, world.device)
    log.info(f"deterministic algorithms only: a forward and a backward pass take {times:.2f} times as long here")


def _warm_start(session: Session) -> None:
    task, precision = session.training.task, session.training.precision
    with closing(session.data.loader.batches(0)) as batches:  # type: ignore[type-var]
        task.model.train()
        with precision.autocast():
            task.warm_start(batches, rng.key(session.config.seed, "prototypes") & 0x7FFFFFFFFFFFFFFF)


def _probes(session: Session) -> tuple[KNN | None, Probes, Best | None]:
    """Returns kNN, where it is among the probes, all of them, and what keeps the best of a figure in mind, where that is asked."""
    config, training = session.config, session.training
    options = {
        "mean": tuple(training.task.transform.mean),
        "std": tuple(training.task.transform.std),
        "threads": max(1, session.data.threads),
        "dtype": training.precision.dtype,
    }
    made = probes.evaluators(config, session.images, options)
    given = {f"given {i}": one for i, one in enumerate(session.evaluators)}
    share = None if config.probe.share is None else parse_fraction(config.probe.share, "probe.share")
    knn = made.get("knn")
    best = Best(config.every.keep_best) if config.every.keep_best else None
    return knn if isinstance(knn, KNN) else None, Probes({**made, **given}, session.world, share), best


def _sinks(session: Session, first: int) -> list[MetricSink]:
    if session.world.rank != 0:
        return []
    folder = session.folder
    sinks: list[MetricSink] = [JsonLines(folder / "metrics.jsonl", first)]
    if session.config.log.tensorboard:
        sinks.append(TensorBoard(folder / "tensorboard", first))
    return sinks
