"""Every key of a run changes what is built of its config, or is read by the run itself: no word is taken that has no effect.

`CHANGED` has another value for every key; a new key without one fails. What is built is compared attribute by attribute: the
task with its weights, the transform, the optimizer as the schedule leaves it at each step, the order and the loader. A rate
that the schedule writes over would change nothing here, as `optim.lr` did. What only the running loop uses is in `RUNNING`,
and seen to be read there, by other modules than those that check, copy or write the config.
"""

import copy
import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seer.cli import config
from seer.core import rng
from seer.core.build import build
from seer.core.errors import RequestError
from seer.data import synthetic as sample
from seer.data.shards.open import open_shards
from seer.data.shards.writer import write_shards
from seer.evals.features import LabelledImages
from seer.optim.groups import apply_schedules
from seer.parallel.world import World
from seer.run import assemble, network_input, probes, session
from seer.run import config as of_a_run
from seer.run.config import RunConfig
from seer.run.schedule import Durations
from tests.cli.test_keys import TINY, with_value

WORLD = World(0, 1, 0, torch.device("cpu"))
BASE = [word for word in TINY if not word.startswith(("steps=", "batch="))] + ["steps=40", "batch=8"]
CHANGED: dict[str, Any] = {
    "seed": 1, "steps": 60, "batch": 4, "surgery.steps": [{"_target_": "seer.models.surgery.freeze_batch_norm"}],
    "data.source": "OTHER", "data.lanes": 2, "data.block": 2, "data.threads": 2, "data.prefetch": 2, "data.prefetch_gb": 1e-5,
    "data.channels": 1, "data.ground": "white", "data.max_pixels": 1000, "augment.values": 2,
    "every.log": 2, "every.evaluate": 5, "every.checkpoint": 7, "every.compare": 9, "every.minutes": 3, "every.keep_steps": 6,
    "plateau.patience": 11, "plateau.threshold": 0.1,
    "parallel.channels_last": False, "parallel.remat": "block", "parallel.compile": True,
    "groups": [{"pattern": "prototypes", "frozen_steps": 3}],
    "model.widths": [32, 64, 96], "model.depths": [1, 2, 1], "model.group_widths": [16, 16, 32], "model.se_ratio": 0.5,
    "model.stem_width": 16, "model.stem_stride": 1,
    "task.prototypes": 8, "task.hidden": [16], "task.embedding": 8, "task.heads": 2, "task.batch_norm": False,
    "task.last_batch_norm": True, "task.temperature": 0.2, "task.epsilon": 0.03, "task.iterations": 5, "task.assign": [0],
    "task.hard_until": 3, "task.queue": 16, "task.queue_from": 3, "task.kmeans": 20,
    "task.classes": ["a", "b"], "task.several": True, "task.smoothing": 0.1, "task.heads_first": 3, "task.mixup": 0.2,
    "task.cutmix": 1.0, "layer_decay": 0.5,
    "augment.sizes": [40, 16], "augment.counts": [2, 1], "augment.scales": [[0.4, 1.0], [0.1, 0.4]], "augment.brightness": 0.3,
    "augment.contrast": 0.3, "augment.saturation": 0.3, "augment.hue": 0.2, "augment.blur": 0.5, "augment.aspect": [1.0, 1.0],
    "augment.flip": 0.2, "augment.jitter": 0.1, "augment.grayscale": 0.1, "augment.blur_sigma": [0.2, 1.0],
    "augment.mean": [0.5, 0.5, 0.5], "augment.std": [0.5, 0.5, 0.5], "augment.device": "cpu", "augment.scale": [0.5, 1.0],
    "augment.train": False, "augment.resize": 50, "augment.boxes": 2, "augment.size": 48, "augment.mask": True,
    "optim.weight_decay": 0.1, "optim.momentum": 0.5, "optim.trust_coefficient": 0.1, "optim.eps": 1e-3, "optim.foreach": True,
    "optim.amsgrad": True, "optim.betas": [0.5, 0.9], "optim.fused": True, "optim.maximize": True, "optim.capturable": True,
    "optim.differentiable": True, "optim.dampening": 0.5, "optim.nesterov": True,
    "schedule.peak": 0.7, "schedule.warmup": 5, "schedule.final": 0.01, "schedule.start": 0.01, "schedule.halved_at": [10],
    "schedule.lowered_at": [10], "schedule.factor": 0.5, "schedule.wave": "full", "schedule.cycles": 3, "schedule.decay": 0.5,
    "precision.dtype": "bf16", "precision.clip": 1.0,
}  # fmt: skip
# used by the loop alone, or before anything is built
RUNNING = {
    *("output", "weights", "data.max_bad", "data.check_crc", "data.image", "data.fields", "data.exclude", "data.drawn"),
    *(
        "accumulate",
        "data.labels",
        "data.max_bad_archives",
        "ema",
        "holdout",
        "probe.run",
        "probe.share",
        "every.keep_best",
    ),
    *("data.drawn_test", "every.keep", "every.keep_hours", "every.background", "parallel.device", "parallel.mode"),
    *(
        "parallel.batch_norm_group",
        "parallel.deterministic",
        "parallel.timeout_s",
        "eval.train",
        "eval.test",
        "eval.labels",
    ),
    *("eval.size", "eval.resize", "eval.most", "eval.k", "eval.temperature", "log.tensorboard"),
    *("eval.max_pixels", "eval.max_bad_archives"),
}
# of each probe: another value of each key makes another evaluator
PROBED: dict[str, Any] = {
    "probe.knn.k": 5, "probe.knn.temperature": 0.1, "probe.linear.penalty": 0.1, "probe.linear.iterations": 9,
    "probe.linear.several": True, "probe.linear.draws": 9,
    "probe.linear.stages": ["stage1"], "probe.lowshot.parts": [0.5], "probe.lowshot.draws": 2, "probe.lowshot.seed": 1,
    "probe.lowshot.penalties": [0.1], "probe.lowshot.iterations": 9, "probe.rankme.most": 9, "probe.uniformity.most": 9,
    "probe.alignment.most": 9, "probe.alignment.seed": 1, "probe.alignment.scale": [0.5, 1.0], "probe.head.draws": 2,
    "probe.head.seed": 1, "probe.head.bins": 5,
}  # fmt: skip
NOT_OF_A_RUN = {"replay"}  # repeats a step instead: tests/run/test_replay.py
# words with which a key that others have, too, is there or means something
WITH = {
    "task.queue_from": ["task.queue=16"],
    "plateau.patience": ["schedule=constant_halving"],
    "plateau.threshold": ["schedule=constant_halving"],
    "schedule.decay": ["schedule.cycles=2"],
    "data.block": ["data.lanes=1"],
    "schedule.factor": ["schedule.lowered_at=[10]"],
}
HEADS = [word for word in BASE if not word.startswith(("task.", "augment"))] + [
    "task=heads",
    "augment=one_view",
    "task.classes=[c,d,e]",
]
CHOICES = {
    "optim=adamw": [*BASE, "optim=adamw"],
    "optim=sgd": [*BASE, "optim=sgd"],
    "schedule=constant_halving": [*BASE, "schedule=constant_halving"],
    "schedule=step_decay": [*BASE, "schedule=step_decay"],
    "schedule=cosine_restarts": [*BASE, "schedule=cosine_restarts"],
    "task=heads": [*HEADS],
}


@functools.cache
def keys() -> dict[str, tuple[str, list[str]]]:
    """Returns every key of every choice, with the first choice that has it and the words that give it a meaning."""
    found: dict[str, tuple[str, list[str]]] = {}
    for choice, words in {"base": BASE, **CHOICES}.items():
        for key in config.flat(config.read("pretrain", words)):
            found.setdefault(key, (choice, [*words, *WITH.get(key, [])]))
    return {key: found[key] for key in found if not key.endswith("._target_")}


def facts(value: Any, depth: int = 6) -> Any:
    """Returns what an object is made of, as plain values that can be compared."""
    if value is None or isinstance(value, bool | int | float | str | bytes | type | torch.dtype | torch.device):
        return repr(value)
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), value.stride(), float(value.double().abs().sum())
    if isinstance(value, np.ndarray):
        return value.tolist()
    if depth == 0:
        return type(value).__name__
    if isinstance(value, dict):
        return {str(key): facts(one, depth - 1) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [facts(one, depth - 1) for one in value]
    if isinstance(value, functools.partial):
        return value.func.__name__, facts(value.args, depth - 1), facts(value.keywords, depth - 1)
    if isinstance(value, torch.nn.Module):
        kind = [(name, type(one).__name__, one.training, one.extra_repr()) for name, one in value.named_modules()]
        own = {k: v for k, v in vars(value).items() if not k.startswith("_")}
        return (
            kind,
            facts(dict(value.state_dict()), depth - 1),
            facts(own, depth - 1),
            value._compiled_call_impl is None,
        )
    if type(value).__module__.startswith("seer."):
        own = (
            {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            if dataclasses.is_dataclass(value)
            else {}
        )
        return type(value).__name__, facts({**getattr(value, "__dict__", {}), **own}, depth - 1)
    return type(value).__name__


def built(values: dict[str, Any]) -> dict[str, Any]:
    """Returns the facts of what a run makes of its config before the first step."""
    wanted = RunConfig.of({key: value for key, value in values.items() if key != "replay"})
    transform, precision = network_input.transform(wanted), build("precision", wanted.precision, WORLD.device)
    shards = open_shards(wanted.data.source)
    lengths = Durations(wanted.steps, wanted.batch, sum(map(len, shards)))
    task, _ = assemble.task(wanted, transform, lengths, WORLD)
    found = {"task": facts(task), "transform": facts(transform), "precision": facts(precision)}
    data = assemble.data(wanted, shards, transform, WORLD)
    made = assemble.training(wanted, task, lengths, WORLD, precision)
    groups = []
    for step in range(0, lengths.total, 3):
        apply_schedules(made.optimizer, step, made.lr)
        groups.append(
            [{k: facts(v) for k, v in group.items() if k != "params"} for group in made.optimizer.param_groups]
        )
    plan = [data.plan.places(8 * i, 8, 0, 1) for i in range(2)] if wanted.batch == 8 else wanted.batch
    loader = {k: facts(v) for k, v in vars(data.loader).items() if isinstance(v, int | float | bool | str)}
    keyed = [str(shard.identity) for shard in shards], rng.key(wanted.seed, "views")
    found |= {
        "groups": groups,
        "every": facts((made.every, made.keep_steps, made.total_steps)),
        "plateau": facts(made.plateau),
    }
    blocks = {
        name: (type(one).__name__, "forward" in vars(one), one._compiled_call_impl is None)
        for name, one in task.model.named_modules()
    }
    strides = [parameter.stride() for parameter in task.model.parameters()]
    return found | {
        "model": (blocks, strides),
        "order": facts(plan),
        "loader": loader,
        "data": (keyed, data.threads),
    }


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[Path, Path]:
    found = []
    for name, seed in (("one", 1), ("other", 2)):
        found.append(tmp_path_factory.mktemp(name))
        write_shards(sample.samples(16, seed=seed), found[-1], total=16, per_shard=16)
    return found[0], found[1]


def test_every_key_has_another_value_or_is_used_by_the_loop():
    assert set(keys()) == set(CHANGED) | RUNNING | NOT_OF_A_RUN | set(PROBED)
    assert not set(CHANGED) & RUNNING


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["base", *CHOICES])
def test_another_value_of_a_key_builds_something_else_or_is_refused(choice, places):
    idle = []
    mine = [key for key, (of, _) in keys().items() if of == choice and key in CHANGED]
    assert mine
    known: dict[tuple[str, ...], dict[str, Any]] = {}
    for key in mine:
        values = config.read("pretrain", [*keys()[key][1], f"data.source={places[0]}"])
        same = tuple(keys()[key][1])
        known[same] = known.get(same) or built(copy.deepcopy(values))
        other = str(places[1]) if CHANGED[key] == "OTHER" else CHANGED[key]
        changed = with_value(values, key, other)
        try:
            after = built(changed)
        except ValueError:  # RequestError and what constructors raise: status 78
            continue
        if after == known[same]:
            idle.append(key)
    assert idle == []


def test_another_value_of_a_key_of_a_probe_makes_another_evaluator(places):
    images = LabelledImages(open_shards(places[0]), size=32)
    of = probes.Images(images, images, None, images)  # type: ignore[arg-type]  # heads look at them when they run
    options = {"mean": (0.5,) * 3, "std": (0.2,) * 3}
    values = config.read("pretrain", [*BASE, "probe=[knn]", f"eval.train={places[0]}", f"eval.test={places[1]}"])
    values.pop("replay")

    def made(name: str, changed: dict[str, Any]) -> Any:
        changed = with_value(changed, "probe.run", [name])
        changed = with_value(changed, "task", {"_target_": "seer.tasks.heads.HeadsTask"}) if name == "head" else changed
        try:
            found = vars(probes.evaluators(RunConfig.of(changed), of, options)[name])
        except RequestError as error:
            return str(error), []
        plain = {key: value for key, value in found.items() if not isinstance(value, LabelledImages)}
        rows = [len(value.rows) for value in found.values() if isinstance(value, LabelledImages)]
        return str({key: getattr(value, "__dict__", value) for key, value in plain.items()}), rows

    idle = []
    for key, value in PROBED.items():
        name = key.split(".")[1]
        assert made(name, values) == made(name, values)
        if made(name, with_value(values, key, value)) == made(name, values):
            idle.append(key)
    assert idle == []


@pytest.mark.slow
def test_the_same_config_builds_the_same(places):
    """What differs from call to call would pass for an effect of any key."""
    for words in (BASE, CHOICES["task=heads"]):
        values = config.read("pretrain", [*words, f"data.source={places[0]}"])
        assert built(copy.deepcopy(values)) == built(copy.deepcopy(values))


@pytest.mark.slow
def test_what_the_loop_uses_is_read_by_a_run(monkeypatch, tmp_path):
    read: set[str] = set()
    nodes = {
        "Data": "data.",
        "Intervals": "every.",
        "Parallel": "parallel.",
        "Probe": "eval.",
        "Probes": "probe.",
        "Log": "log.",
        "Run": "",
    }
    others = ("dataclasses", "copy", "seer.run.config", "seer.run.validate", "seer.core.schema")
    for name, prefix in nodes.items():

        def spy(self: Any, key: str, prefix: str = prefix) -> Any:
            if sys._getframe(1).f_globals["__name__"] not in others:
                read.add(prefix + key)
            return object.__getattribute__(self, key)

        monkeypatch.setattr(getattr(of_a_run, f"{name}Config"), "__getattribute__", spy)
    words = [*BASE, "data.drawn=32", "data.drawn_test=16", "batch=16", f"output={tmp_path / 'run'}"]
    values = config.read("pretrain", [word for word in words if word not in ("batch=8", "steps=40")] + ["steps=1"])
    values.pop("replay")
    values["batch"] = 16
    session.train(RunConfig.of(values))
    assert RUNNING - read == set()
