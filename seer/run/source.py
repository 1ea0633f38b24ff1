"""Opens what a run trains on, as the run found it when it began.

Earlier versions knew four endings of images and took what lies in hidden folders. A run that began with one goes on with
the images it had, in their order: which rule that was is told by the fingerprint in its newest checkpoint.
"""

from contextlib import suppress
from pathlib import Path

from seer.core.errors import StorageError
from seer.core.log import log
from seer.data.shards.open import open_shards
from seer.data.shards.shard import Shard, fingerprint
from seer.engine.manifest import read_manifest
from seer.engine.retention import steps_in
from seer.run.config import RunConfig


def open_source(config: RunConfig, folder: Path, source: str | list[str] | None = None) -> list[Shard]:
    """Returns the shards of data.source, for a run in this folder. source: another one. Raises as `open_shards` does."""
    options, where = config.data, source or config.data.source
    assert where is not None
    named = {"check_crc": options.check_crc, "image": options.image, "fields": options.fields}
    shards = open_shards(where, **named)  # type: ignore[arg-type]
    begun = _fingerprint_of(folder)
    if begun in (None, fingerprint(shards)):
        return shards
    older = open_shards(where, **named, older=True)  # type: ignore[arg-type]
    if fingerprint(older) != begun:
        return shards  # other files: resuming says so
    count = sum(map(len, shards)) - sum(map(len, older))
    log.warning(
        f"{folder}: this run began when fewer endings of images were read, and goes on with the {sum(map(len, older))} images "
        f"of then; a new run would have {abs(count)} {'more' if count >= 0 else 'fewer'}"
    )
    return older


def _fingerprint_of(folder: Path) -> str | None:
    """Returns that of the data in the newest checkpoint that can be read."""
    for step in reversed(steps_in(folder / "checkpoints")):
        with suppress(StorageError):  # told when it is loaded
            return read_manifest(folder / "checkpoints" / f"step-{step:08d}").get("data")
    return None
