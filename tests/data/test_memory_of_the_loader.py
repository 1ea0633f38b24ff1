"""Memory of the loader stays flat over a hundred thousand images of which one in a hundred is damaged."""

from contextlib import closing
from pathlib import Path

import pytest

from seer.data import synthetic as sample
from seer.data.ledger import Ledger
from seer.data.loading.loader import Loader
from seer.data.loading.reader import Reader
from seer.data.multicrop import MultiCrop
from seer.data.order import Plan
from seer.data.shards.open import open_shards
from seer.data.shards.writer import write_shards
from tests.data.children import children

SMALL = dict(sizes=[32, 24], counts=[2, 2], scales=[[0.3, 1.0], [0.1, 0.4]], aspect=[0.75, 4 / 3], flip=0.5, jitter=0.8)
COLOR = dict(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.2, blur=0.0, blur_sigma=[0.1, 2.0])


def resident() -> int:
    """Bytes of this process and of the one that reads."""
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 for pid in ("self", *children()))


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_grows_less_than_fifty_megabytes_over_a_hundred_thousand_images(tmp_path):
    images = [(k, {"jpg": f["jpg"]}) for k, f in sample.samples(5000, seed=1)]
    damaged = [(k, {"jpg": f["jpg"][:200]}) if i % 100 == 7 else (k, f) for i, (k, f) in enumerate(images)]
    write_shards(damaged, tmp_path, total=5000, per_shard=250)
    shards = open_shards(tmp_path)
    plan = Plan([len(s) for s in shards], seed=3, lanes=100)
    crop = MultiCrop(**SMALL, **COLOR, mean=[0.5] * 3, std=[0.5] * 3)
    loader = Loader(Reader(shards, plan, 5), crop, batch=100, threads=2)
    ledger = Ledger(shards, "5%", lambda counts: counts, 1)
    taken = skipped = 0
    levels: list[int] = []
    with closing(loader.batches(0)) as stream:
        for batch in stream:
            taken += 100
            skipped += len(batch.skipped)
            ledger.add(100, batch.skipped)
            ledger.check()
            if taken % 10_000 == 0:
                levels.append(resident())
            if taken == 110_000:
                break
    assert skipped == pytest.approx(1100, rel=0.05)
    print(f"grew by {(max(levels[1:]) - levels[0]) / 1e6:.1f} MB from {levels[0] / 1e6:.0f} MB; {skipped} skipped")
    assert max(levels[1:]) - levels[0] < max(50e6, 0.01 * levels[0])
