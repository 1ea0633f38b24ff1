"""Opens what a run trains on, as the run found it when it began.

Earlier versions knew four endings of images and took what lies in hidden folders. A run that began with one goes on with
the images it had, in their order: which rule that was is told by the fingerprint in its newest checkpoint.
"""

from contextlib import suppress
from pathlib import Path

from seer.core.errors import RequestError, StorageError
from seer.core.log import log
from seer.data.shards.bad_archives import BadArchives
from seer.data.shards.open import open_shards
from seer.data.shards.shard import Shard, fingerprint
from seer.engine.manifest import read_manifest
from seer.engine.retention import steps_in
from seer.run.config import RunConfig


def open_source(
    config: RunConfig, folder: Path, source: str | list[str] | None = None, bad: BadArchives | None = None
) -> list[Shard]:
    """Returns the shards of data.source, for a run in this folder. source: another one. bad: receives the archives that were
    passed over. Raises as `open_shards` does."""
    options, where = config.data, source or config.data.source
    assert where is not None
    bad = BadArchives(options.max_bad_archives, "data.max_bad_archives") if bad is None else bad
    named = {"check_crc": options.check_crc, "image": options.image, "fields": options.fields, "bad": bad}
    begun = _fingerprint_of(folder)
    try:
        shards = open_shards(where, **named)  # type: ignore[arg-type]
        if begun in (None, fingerprint(shards)):
            return shards
    except RequestError:
        if begun is None:
            raise
        shards = []
    bad.found.clear()  # they are met again
    older = open_shards(where, **named, older=True)  # type: ignore[arg-type]
    if fingerprint(older) != begun:
        return shards or open_shards(where, **named)  # type: ignore[arg-type]  # other files: resuming says so
    log.warning(
        f"{folder}: this run began with a version that found images by other rules, and goes on with the "
        f"{sum(map(len, older))} images of then{f'; a new run would have {sum(map(len, shards))}' if shards else ''}"
    )
    return older


def _fingerprint_of(folder: Path) -> str | None:
    """Returns that of the data in the newest checkpoint that can be read."""
    for step in reversed(steps_in(folder / "checkpoints")):
        with suppress(StorageError):  # told when it is loaded
            return read_manifest(folder / "checkpoints" / f"step-{step:08d}").get("data")
    return None
