"""Keeps the run folder: whose it is, and what it was asked for.

RUN/config.yaml  environment.json  train.log  metrics.jsonl  tensorboard/  skipped.jsonl  result.json  checkpoints/  bundle/
"""

import hashlib
import platform
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml

from seer.core.config import flat
from seer.core.errors import WRONG_PATH, RequestError, StorageError
from seer.core.log import keep_copy, log
from seer.engine.lock import NAME as LOCK
from seer.engine.lock import RunLock
from seer.parallel.collectives import broadcast_text
from seer.parallel.consistency import same_request
from seer.parallel.world import World
from seer.run.longer import check_length
from seer.run.older import renewed
from seer.run.schedule import Durations
from seer.run.skipped import merge_skipped

CONFIG = "config.yaml"
# Keys that may differ when a run goes on: how it is watched, how fast it goes, where its data lies; never what it learns.
# data.exclude moves no image but those it names (`data.ledger`); data.lanes is held against the checkpoint's plan.
FREE = (
    *("output", "every.", "log.", "eval.", "probe.", "parallel.", "augment.device"),
    *(
        "data.lanes",
        "data.threads",
        "data.prefetch",
        "data.prefetch_gb",
        "data.source",
        "data.exclude",
        "data.max_bad",
        "data.check_crc",
    ),
)
MAKING = (LOCK, f".{CONFIG}.writing")  # what a run leaves behind that was killed before its config was written
BEFORE_TRAINING = (
    *(*MAKING, CONFIG, "environment.json", ".environment.json.writing", "train.log", "result.json"),
    ".result.json.writing",
)  # and one that was refused


@contextmanager
def claim(
    folder: Path, settings: Mapping[str, Any], world: World, output: list[Path], lengths: Durations | None = None
) -> Iterator[None]:
    """Makes the folder ours, or finds that it is, and keeps other jobs out. Raises RequestError when it belongs
    to another run, to something else, or to a job that runs now. output: gets the folder once it is ours, so that whoever
    sees its config also finds a result there, however soon the run ends. lengths: of a run that may go on to another length.

    A run that ended before it had images, metrics or checkpoints holds nothing to lose: whoever corrects a wrong word
    goes on in the same folder. What ranks skipped is gathered at both ends.
    """
    kept = folder / CONFIG
    if kept.exists():
        before = flat(renewed(read_config(folder)))
        now = flat(renewed(settings))
        differ = [k for k in {**before, **now} if before.get(k) != now.get(k) and not k.startswith(FREE)]
        holds_something = any(path.name not in BEFORE_TRAINING for path in folder.iterdir())
        if differ == ["steps"] and holds_something and lengths is not None:
            check_length(folder, before["steps"], now["steps"], lengths)
        elif differ and holds_something:
            changes = ", ".join(f"{k}: {before.get(k)} -> {now.get(k)}" for k in differ[:5])
            raise RequestError(
                f"output={folder} belongs to another run ({changes}); give another output= or the same words"
            )
        for key in ("data.exclude", "data.max_bad"):
            if before.get(key) != now.get(key):
                log.info(f"{key}: {before.get(key)} before, {now.get(key)} from here on")
    elif folder.exists() and any(path.name not in MAKING for path in folder.iterdir()):
        raise RequestError(f"output={folder} is not empty and holds no run; give another output=")
    world.barrier()
    with ExitStack() as held:
        problem = ""
        if world.rank == 0:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(RunLock(folder))
                temporary = folder / f".{CONFIG}.writing"
                temporary.write_text(
                    yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True), encoding="utf-8"
                )
                _show(temporary, kept, output)
                keep_copy(folder / "train.log")
                merge_skipped(folder)
            except RequestError as error:
                problem = str(error)
            except OSError as error:
                problem = f"output={folder} cannot be made: {error.strerror}; give another output="
                if error.errno not in WRONG_PATH:
                    raise StorageError(f"output={folder} cannot be written: {error.strerror}") from error
        if problem := broadcast_text(problem, world.group):
            raise RequestError(problem)
        if folder not in output:
            output.append(folder)
        try:
            yield
        finally:
            if world.rank == 0:
                with suppress(OSError):  # what ended the run is told; the next start gathers
                    merge_skipped(folder)


def _show(temporary: Path, config: Path, output: list[Path]) -> None:
    """Gives the config its name, and its folder to output; neither where a request to stop comes between the two."""
    try:
        output.append(config.parent)
        temporary.replace(config)
    finally:
        if not config.exists():
            output.clear()


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the config of the run in this folder, as plain values. Raises OSError, and ValueError for what is none."""
    try:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    if not isinstance(config, dict):
        raise ValueError(f"{folder / CONFIG} holds no keys")
    return {str(key): value for key, value in config.items()}


def begun_with(folder: Path, key: str) -> Any:
    """Returns what the run in this folder has for a key; None where there is no run."""
    try:
        return flat(read_config(folder)).get(key)
    except FileNotFoundError:
        return None


def check_same_on_ranks(settings: Mapping[str, Any], data: str, world: World) -> None:
    """Raises RequestError when ranks were started with other words, code, libraries or images."""
    code = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        code.update(path.read_bytes())
    libraries = {"torch": torch.__version__, "Python": platform.python_version()}
    words = {key: str(value) for key, value in flat(dict(settings)).items()}
    same_request({**words, "the code": code.hexdigest()[:12], **libraries, "the data": data}, world.group)
