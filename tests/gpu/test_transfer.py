"""Batches that travel to the GPU while it works arrive as the loader made them, though their blocks are used again."""

from contextlib import closing
from itertools import islice

import pytest
import torch

from seer.data import synthetic as sample
from seer.data.loading.device_prefetch import on_device
from seer.data.loading.loader import Loader
from seer.data.loading.reader import Reader
from seer.data.multicrop import MultiCrop
from seer.data.order import plan
from seer.data.shards.open import open_shards
from seer.data.shards.writer import write_shards


@pytest.mark.parametrize("threads", [0, 2])
def test_every_batch_arrives_whole_while_the_device_is_busy(device, tmp_path, threads):
    write_shards(sample.samples(64, seed=0), tmp_path, total=64, per_shard=32)
    shards = open_shards(tmp_path)
    reader = Reader(shards, plan([32, 32], seed=0, lanes=16), 0)
    crop = MultiCrop((64, 32), (2, 2), ((0.3, 1), (0.1, 0.3)))
    loader = Loader(reader, crop, batch=16, threads=threads, prefetch=2, pin=device.type == "cuda")
    with closing(loader.batches(0)) as stream:
        truth = [{name: x.clone() for name, x in b.fields.items()} for b in islice(stream, 30)]
    busy = torch.randn(2048 if device.type == "cuda" else 16, device=device).expand(2048, -1).contiguous()
    found = []
    with closing(on_device(loader.batches(0), device)) as stream:
        for batch in islice(stream, 30):
            for _ in range(20):  # the host runs ahead of the device
                torch.mm(busy, busy.t())
            found.append({name: x.clone() for name, x in batch.fields.items()})
            views = [batch.fields["views/64"], batch.fields["views/32"]]
            assert all(x.device.type == device.type for x in views)
            assert all(x.is_contiguous(memory_format=torch.channels_last) for x in views)
            assert batch.fields["color/64/sigma"].device.type == "cpu"
    assert all(torch.equal(x[name].cpu(), y[name]) for x, y in zip(found, truth, strict=True) for name in y)
