"""Opens what a run trains on, as the run found it when it began.

Earlier versions knew four endings of images and took what lies in hidden folders, and later ones passed symbolic links in
tars over. A run that began with one goes on with the images it had, in their order: which rule that was is told by the
fingerprint in its newest checkpoint.
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
    begun, today = _fingerprint_of(folder), list[Shard]()
    for by in ({}, {"links": False}, {"older": True}):  # the rules of today, and of two versions
        bad.found.clear()  # they are met again
        try:
            shards = open_shards(where, **named, **by)  # type: ignore[arg-type]
        except RequestError:
            if begun is None or (by.get("older") and not today):
                raise
            continue
        if not by:
            today = shards
        if begun in (None, fingerprint(shards)):
            break
    else:
        return today or open_shards(where, **named)  # type: ignore[arg-type]  # other files: resuming says so
    if shards is not today:
        log.warning(
            f"{folder}: this run began with a version that found images by other rules, and goes on with the "
            f"{sum(map(len, shards))} images of then{f'; a new run would have {sum(map(len, today))}' if today else ''}"
        )
    return shards


def _fingerprint_of(folder: Path) -> str | None:
    """Returns that of the data in the newest checkpoint that can be read."""
    for step in reversed(steps_in(folder / "checkpoints")):
        with suppress(StorageError):  # told when it is loaded
            return read_manifest(folder / "checkpoints" / f"step-{step:08d}").get("data")
    return None
