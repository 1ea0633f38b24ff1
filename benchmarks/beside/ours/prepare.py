"""Makes what both sides read: a tar of JPEGs, a folder of the same JPEGs, and weights and views that both start from.

Without images of the caller's, mosaics of 4 x 4 drawn images stand for photographs: about 400 x 400 pixels, with edges and
grain everywhere, as JPEGs of photographs have them; drawn images alone are of 100 pixels. `start.pt` holds a state dict of
torchvision's RegNet, the projector, the prototypes, and crops [steps][sizes] float32 [v*B, 3, S, S], view-major.
"""

from contextlib import closing
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from seer.data import synthetic
from seer.data.augment import augment_batch
from seer.data.loading.loader import Loader
from seer.data.loading.reader import Reader
from seer.data.multicrop import MultiCrop
from seer.data.order import Plan, choose_lanes
from seer.data.shards.open import open_shards
from seer.data.shards.shard import image_of
from seer.data.shards.writer import write_shards
from seer.export.targets import of_library
from seer.models import zoo
from seer.tasks.swav import SwAVTask

POOL, SIDE, ACROSS = 160, 104, 4


def mosaics(count: int) -> list[bytes]:
    """Returns JPEGs of 4 x 4 drawn images each."""
    draw = np.random.default_rng(0)
    pool = [Image.open(BytesIO(fields["jpg"])).convert("RGB") for _, fields in synthetic.samples(POOL, seed=0)]
    made = []
    for _ in range(count):
        whole = Image.new("RGB", (ACROSS * SIDE, ACROSS * SIDE))
        for place, chosen in enumerate(draw.integers(POOL, size=ACROSS * ACROSS).tolist()):
            row, column = divmod(place, ACROSS)
            whole.paste(pool[chosen].resize((SIDE, SIDE)), (column * SIDE, row * SIDE))
        file = BytesIO()
        whole.save(file, "JPEG", quality=90)
        made.append(file.getvalue())
    return made


def photos(source: str | None, count: int) -> list[bytes]:
    """Returns the bytes of so many images of a source, drawn by a seed; JPEGs alone, which every side can read."""
    if source is None:
        return mosaics(count)
    shards = open_shards(source)
    rows = [(s, r) for s, shard in enumerate(shards) for r in range(len(shard))]
    found: list[bytes] = []
    for at in np.random.default_rng(0).permutation(len(rows)).tolist():
        data = bytes(image_of(shards[rows[at][0]].read(*rows[at])))
        found += [data] if data[:2] == b"\xff\xd8" else []
        if len(found) == count:
            break
    return found


def crop(given: dict[str, Any]) -> MultiCrop:
    return MultiCrop(given["sizes"], given["counts"])


def write_start(given: dict[str, Any], folder: Path) -> None:
    """Writes weights and crops of the first steps. The source is repeated where it holds fewer images than a step takes."""
    cut, batch = crop(given), given["batch"]
    shards = open_shards(str(folder / "tars"))
    total = sum(len(s) for s in shards)
    reader = Reader(shards, Plan([len(s) for s in shards], seed=1, lanes=choose_lanes(batch, total)), 1)
    with closing(Loader(reader, cut, batch=batch, threads=0).batches(0)) as stream:  # type: ignore[type-var]
        steps = [
            [augment_batch(b.fields, size, cut.mean, cut.std).clone() for size in cut.sizes]
            for b in islice(stream, given["prepared"])
        ]
    torch.manual_seed(0)
    task = SwAVTask(zoo.build(given["model"]), cut, prototypes=given["prototypes"])
    start = {
        "backbone": of_library("torchvision", task.backbone).rename(task.backbone.state_dict()),
        "ours": task.backbone.state_dict(),
        "head": task.head.state_dict(),
        "crops": steps,
    }
    torch.save(start, folder / "start.pt")


def make(given: dict[str, Any]) -> dict[str, Any]:
    def prepare() -> dict[str, Any]:
        folder = Path(given["folder"])
        found = photos(given["images"], given["count"])
        named = [(f"{i:06d}", {"jpg": data}) for i, data in enumerate(found)]
        write_shards(named, folder / "tars", total=len(named), per_shard=len(named))
        (folder / "jpegs").mkdir()
        for name, fields in named:
            (folder / "jpegs" / f"{name}.jpg").write_bytes(fields["jpg"])
        write_start(given, folder)
        sides = [Image.open(BytesIO(data)).size for data in found]
        pixels = sum(w * h for w, h in sides) / len(sides) / 1e6
        return {
            "amount": len(found),
            "images": len(found),
            "kilobytes": sum(map(len, found)) / len(found) / 1e3,
            "megapixels": pixels,
        }

    return {"prepare": prepare}
