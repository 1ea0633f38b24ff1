"""Reads the newest whole backbone that a run folder holds, whether the run is going, stopped, killed or done.

A bundle is there once the run has written one; a checkpoint, which holds the same weights, may be newer. Then the tensors
come from the checkpoint, and what a bundle says besides from RUN/config.yaml and the checkpoint's manifest.

Surprising:
- The run may be going: no lock is taken and nothing written. A checkpoint that retention deletes while it is read, or that
  is damaged, is passed over with a word, and the folder is looked at anew, as a newer one may have come.
- The config is a stranger's word. It may name what `core.build` admits for networks, surgery and transforms, nothing else.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seer.core.build import build, check_targets
from seer.core.config import flat
from seer.core.errors import BadDataError, RequestError, StorageError
from seer.core.log import log
from seer.engine.checkpoint_files import read_part
from seer.engine.manifest import CHECKPOINT_MANIFEST
from seer.engine.retention import BEST, NAME, steps_in
from seer.models import zoo
from seer.models.bundle import BUNDLE_WEIGHTS, PROVENANCE, card_of, fill, read_bundle, read_description, step_of
from seer.models.families.family import Network
from seer.models.numbers import UnusableNumbersError
from seer.run import network_input
from seer.run.config import RunConfig
from seer.run.folder import CONFIG, read_config
from seer.run.older import renewed

CHECKPOINTS, BUNDLE = "checkpoints", "bundle"
BACKBONE = "task/backbone."  # how names of its tensors begin in a checkpoint
AVERAGED = "ema/backbone."  # and of their average, where the run keeps one
MOST_TRIES = 20  # states of a run that were damaged, or gone by the time they were read


@dataclass(frozen=True)
class State:
    """Holds a backbone and its card. step: None where that is not known. kind: "bundle", "checkpoint", or
    "file" for others. chosen: which part of a file was taken and what was not, where there was a choice."""

    backbone: Network
    card: dict[str, Any]
    step: int | None = None
    kind: str = "file"
    chosen: Mapping[str, Any] = field(default_factory=dict)

    @property
    def origin(self) -> dict[str, Any]:
        """Returns what the result of a verb says of it."""
        return {"weights_step": self.step, "weights_from": self.kind, **self.chosen}


def of(path: Path) -> State | None:
    """Returns what `weights=` takes from a run folder, its `checkpoints/`, one of these, or a file of one; None
    for all else.

    Raises RequestError for a step that is not there and for a config that is refused, StorageError where nothing is whole.
    """
    path = _named_best(path)
    if path.is_file() and (path.parent / CHECKPOINT_MANIFEST).is_file() and NAME.match(path.parent.resolve().name):
        path = path.parent
    among = path.absolute().parent.name == CHECKPOINTS
    if (among and path.name in ("last", BEST)) or (
        NAME.match(path.resolve().name) and (among or (path / CHECKPOINT_MANIFEST).is_file())
    ):
        return _one(path)
    run = path.absolute().parent if path.name == CHECKPOINTS else path
    if (run / CHECKPOINTS).is_dir() or ((run / CONFIG).is_file() and not (run / BUNDLE_WEIGHTS).is_file()):
        return _newest(run)
    return None


def _named_best(path: Path) -> Path:
    """Returns RUN/checkpoints/best for RUN@best, where nothing has that name itself."""
    if not path.name.endswith(f"@{BEST}") or path.exists():
        return path
    return path.with_name(path.name.removesuffix(f"@{BEST}")) / CHECKPOINTS / BEST


def asked_step(path: Path) -> tuple[Path, int | None]:
    """Returns the run folder and the step of a checkpoint that is asked for by name; of any other path itself, and None. Raises
    RequestError where there is no such checkpoint."""
    path = _named_best(path)
    if path.absolute().parent.name != CHECKPOINTS or not (path.name in ("last", BEST) or NAME.match(path.name)):
        return path, None
    if not path.is_dir():
        raise _no_checkpoint(path)
    return path.absolute().parent.parent, int(NAME.match(path.resolve().name)[1])  # type: ignore[index]


def _no_checkpoint(path: Path) -> RequestError:
    there = ", ".join(map(str, steps_in(path.absolute().parent))) or "none"
    keep = "; a run keeps its best one with every.keep_best=" if path.name == BEST else ""
    return RequestError(f"weights={path}: there is no such checkpoint; there are those of steps {there}{keep}")


def _newest(run: Path) -> State:
    passed: dict[Path, str] = {}
    while len(passed) < MOST_TRIES:
        there = [(step, place) for step, place in _states(run) if place not in passed]
        if not there:
            break
        place = max(there, key=lambda one: (one[0], one[1].name == BUNDLE))[1]
        try:
            state = _bundle(place) if place.name == BUNDLE else _checkpoint(run, place)
        except StorageError as error:
            passed[place] = str(error)
            log.warning(f"weights={run}: {place.name} is passed over: {error}")
            continue
        origin = f"{state.kind} of step {'?' if state.step is None else state.step}"
        for step, other in there:
            if other.name == BUNDLE and other != place:
                origin += (
                    f"; the bundle is of step {step}" if step >= 0 else "; which step the bundle is of cannot be told"
                )
        log.info(f"weights={run}: {origin}")
        return state
    if passed:
        first = next(f"{place.name}: {problem}" for place, problem in passed.items())
        raise StorageError(
            f"weights={run}: none of its {len(passed)} states that were tried is whole ({first}); restore one"
        )
    raise RequestError(
        f"weights={run} is a run that has saved nothing yet: wait for its first checkpoint (every.checkpoint=, "
        "every.minutes=), or let it end"
    )


def _states(run: Path) -> Iterator[tuple[int, Path]]:
    """Yields (step, folder) of what a run has saved, whole or not; -1 for a bundle that does not say its step."""
    for step in steps_in(run / CHECKPOINTS):
        yield step, run / CHECKPOINTS / f"step-{step:08d}"
    if (run / BUNDLE / BUNDLE_WEIGHTS).is_file():
        try:
            of_bundle = step_of(read_description(run / BUNDLE))
        except (OSError, ValueError):  # told when it is its turn to be read
            of_bundle = None
        yield -1 if of_bundle is None else of_bundle, run / BUNDLE


def _one(path: Path) -> State:
    """Returns the checkpoint that was asked for by name, and no other; `last` is whatever it points to when it
    is read."""
    for left in reversed(range(3)):
        folder = path.resolve()
        if not folder.is_dir():
            if left and path.resolve() != folder:
                continue
            raise _no_checkpoint(path)
        try:
            state = _checkpoint(folder.parent.parent, folder)
        except StorageError as error:
            if left and path.resolve() != folder:  # the run has saved another one meanwhile
                continue
            raise StorageError(f"weights={path}: {error}; give its run folder to take the newest whole one") from error
        log.info(f"weights={path}: checkpoint of step {state.step}")
        return state
    raise AssertionError


def _bundle(folder: Path) -> State:
    try:
        backbone, described = read_bundle(folder)
    except UnusableNumbersError:  # the file is whole: it is what training made
        raise
    except (OSError, ValueError, BadDataError) as error:
        raise StorageError(str(error)) from error
    return State(backbone, card_of(described), step_of(described), "bundle")


def _checkpoint(run: Path, folder: Path) -> State:
    config = _config(run)
    tensors, manifest = read_part(folder, AVERAGED if config.ema else BACKBONE)
    return State(_filled(config, tensors, folder), _card(config, manifest, run), manifest["step"], "checkpoint")


def _config(run: Path) -> RunConfig:
    """Reads the run's config. Raises RequestError when there is none, no readable one, or one that is refused."""
    try:
        values = read_config(run)
    except FileNotFoundError as error:
        raise RequestError(
            f"{run / CONFIG} is missing, which says what network its checkpoints are of: leave them in their run folder"
        ) from error
    except (OSError, ValueError) as error:
        raise RequestError(f"{run / CONFIG} cannot be read: {error}") from error
    check_targets(values)
    return RunConfig.of(renewed(values))


def _filled(config: RunConfig, tensors: Mapping[str, Tensor], folder: Path) -> Network:
    """Makes the backbone that was trained, as a plain network of its shape: what merely freezes it has no bearing on reading."""
    with torch.device("meta"):
        model = network_input.backbone(config)
        for step in config.surgery.get("steps") or []:
            model = build("surgery", step, model)
        if not isinstance(model, nn.Module) or not isinstance(getattr(model, "architecture", None), dict):
            raise RequestError(f"{config.model.get('_target_')} of the run's {CONFIG} is no backbone")
        plain = zoo.of(model.architecture)  # type: ignore[arg-type]
    return fill(plain, tensors, what=str(folder))


def _card(config: RunConfig, manifest: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """Returns what the bundle of this step says, but for figures."""
    transform = network_input.transform(config)
    if not all(hasattr(transform, name) for name in ("mean", "std", "input_size")):
        raise RequestError(f"augment of {run / CONFIG} says nothing of the pixels that the network expects")
    return {
        **dict.fromkeys(PROVENANCE),
        "mean": list(transform.mean),
        "std": list(transform.std),
        "input_size": config.eval.size or transform.input_size,
        "ground": config.data.pixels.ground,
        "recipe": json.dumps(flat(config.plain())),
        "data_fingerprint": manifest.get("data"),
        "step": manifest["step"],
        "images_seen": manifest.get("images"),
        "licence": manifest["licence"] if "licence" in manifest else _licence(config, run),
        "metrics": {},
    }


def _licence(config: RunConfig, run: Path) -> str | None:
    """Returns that of the weights the run started from, where its checkpoints do not say, as those of earlier versions."""
    if not config.weights:
        return None
    try:
        return read_description(run / BUNDLE)["provenance"].get("licence")
    except (OSError, ValueError, KeyError):
        return f"training started from {Path(config.weights).name}, whose licence its checkpoints do not state"
