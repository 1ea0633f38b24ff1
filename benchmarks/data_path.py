"""Images a second and core from bytes to crops, and microseconds a sample for reading and order.

    python benchmarks/data_path.py [PHOTOS] [--photos 32] [--repeats 7] [--skip-reading] [--swav FOLDER]

PHOTOS is whatever `data.source` takes; without it the built-in images are drawn, which are small and say little about
photos. All parties take turns on the same bytes in one process with one thread. Times are processor seconds, which other
users of the machine disturb little; what is told are medians over the repeats of the *ratio* to the reference of the
same turn, and the lowest and highest.

The reference is the multi-crop recipe of SwAV as torchvision's public transforms make it from Pillow images: crop, flip,
color jitter, grayscale, Pillow's blur, tensor, normalize, 2 x 224 + 4 x 96, each view by itself. With --swav, the folder
that holds SwAV's multicropdataset.py, it is the transforms of that file, unchanged.
"""

import argparse
import io
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter

from seer.data import synthetic as sample
from seer.data.augment import augment_batch
from seer.data.decode import decode
from seer.data.loading.batch_buffer import BatchLayout
from seer.data.loading.batch_builder import SCRATCH
from seer.data.loading.loader import Loader
from seer.data.loading.reader import Reader
from seer.data.multicrop import MultiCrop
from seer.data.order import choose_lanes, plan
from seer.data.shards.open import open_shards
from seer.data.shards.shard import Shard, image_of
from seer.data.shards.tar_shard import TarShard
from seer.data.shards.writer import write_shards

BATCH = 16
HANDED = 25  # batches
SAMPLE = 110_000  # bytes, of an ImageNet photograph
REFERENCE = "SwAV recipe, Pillow + torchvision"


def reference(crop: MultiCrop) -> Callable[[list[bytes]], object]:
    from torchvision import transforms as T

    def blur(image: Image.Image) -> Image.Image:
        return (
            image.filter(ImageFilter.GaussianBlur(random.uniform(*crop.blur_sigma))) if random.random() < 0.5 else image
        )

    def one(size: int, scale: tuple[float, float]) -> Callable:
        jitter = T.RandomApply([T.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8)
        steps = [T.RandomResizedCrop(size, scale=scale), T.RandomHorizontalFlip(), jitter, T.RandomGrayscale(0.2)]
        return T.Compose([*steps, T.Lambda(blur), T.ToTensor(), T.Normalize(crop.mean, crop.std)])

    views = [one(224, (0.14, 1.0))] * 2 + [one(96, (0.05, 0.14))] * 4

    def run(photos: list[bytes]) -> object:
        images = [Image.open(io.BytesIO(data)).convert("RGB") for data in photos]
        return [[view(image) for view in views] for image in images]

    return run


def published(folder: str, photo: bytes) -> Callable[[list[bytes]], object]:
    """The transforms of SwAV's own MultiCropDataset, which wants a folder of classes to look at."""
    sys.path.insert(0, folder)
    from multicropdataset import MultiCropDataset  # type: ignore[import-not-found]

    with tempfile.TemporaryDirectory() as images:
        (Path(images) / "class").mkdir()
        (Path(images) / "class" / "photo.jpg").write_bytes(photo)
        transforms = MultiCropDataset(images, [224, 96], [2, 4], [0.14, 0.05], [1.0, 0.14]).trans

    def run(photos: list[bytes]) -> object:
        images = [Image.open(io.BytesIO(data)).convert("RGB") for data in photos]
        return [[transform(image) for transform in transforms] for image in images]

    return run


def ours(crop: MultiCrop, finished: bool) -> Callable[[list[bytes]], object]:
    """Decode and crops into a batch's buffer, as the loader's threads do; finished: also color, blur, and float32 here."""
    layout = BatchLayout(crop.layout(BATCH, painted=finished), BATCH)
    buffer = layout.buffer(torch.empty(layout.bytes, dtype=torch.uint8))
    scratch = np.empty(SCRATCH, np.uint8)

    def run(photos: list[bytes]) -> object:
        draws = crop.draws(np.array([random.getrandbits(63) for _ in photos], dtype=np.uint64), painted=finished)
        for i, data in enumerate(photos):
            draws.fill(i, {"image": decode(data, scratch)}, buffer.arrays, i)
        return [augment_batch(buffer.tensors, size, crop.mean, crop.std) for size in crop.sizes] if finished else buffer

    return run


def compare(parties: dict[str, Callable[[list[bytes]], object]], photos: list[bytes], repeats: int) -> None:
    """One table, parties in turns of BATCH photos."""
    turns = [photos[i : i + BATCH] for i in range(0, len(photos), BATCH)]
    for run in parties.values():
        run(turns[0])
    seconds = {name: [] for name in parties}
    for _ in range(repeats):
        spent = dict.fromkeys(parties, 0.0)
        for turn in turns:
            for name, run in parties.items():
                start = time.process_time()
                run(turn)
                spent[name] += time.process_time() - start
        for name, value in spent.items():
            seconds[name].append(value)
    print(f"{'':44} {'images/s/core':>13} {'over the reference':>26}")
    for name, times in seconds.items():
        ratios = [r / t for r, t in zip(seconds[REFERENCE], times, strict=True)]
        rate = len(photos) / statistics.median(times)
        print(f"{name:44} {rate:13.0f} {statistics.median(ratios):12.2f} ({min(ratios):.2f} .. {max(ratios):.2f})")


ORDER = "order, a million images in 1000 shards"


def reading(shards: list[Shard], unchecked: list[Shard], repeats: int) -> None:
    """Microseconds a sample, in random order, from the page cache. The largest are left out until the mean is SAMPLE bytes,
    but not for webdataset, which reads whole archives."""
    total, batch = sum(len(s) for s in shards), 256
    sizes = sorted((len(image_of(shard.read(s, r))), s, r) for s, shard in enumerate(shards) for r in range(len(shard)))
    everything = float(np.mean([size for size, _, _ in sizes]))
    while len(sizes) > 1 and np.mean([size for size, _, _ in sizes]) > SAMPLE:
        sizes.pop()
    kept, size = {(s, r) for _, s, r in sizes}, np.mean([size for size, _, _ in sizes])
    lanes = choose_lanes(batch, total)
    order = plan([len(s) for s in shards], seed=0, lanes=lanes)

    def read(which: list[Shard]) -> Callable[[], int]:
        places = [order.places(step * batch, batch) for step in range(4)]
        rows = [(int(s), int(r)) for p in places for s, r in zip(p.shard, p.row, strict=True)]
        rows = [row for row in rows if row in kept]

        def run() -> int:
            for shard, row in rows:
                which[shard].read(shard, row)
            return len(rows)

        return run

    tars = {s: os.open(shard.path, os.O_RDONLY) for s, shard in enumerate(shards) if isinstance(shard, TarShard)}
    runs = [(tars[s], *shards[s].index[r].item()[:2]) for s, r in sorted(kept) if s in tars]
    random.Random(0).shuffle(runs)

    def copying() -> int:
        for file, offset, length in runs:
            os.pread(file, length, offset)
        return len(runs)

    pool, steps = plan([1000] * 1000, seed=0, lanes=choose_lanes(batch, 10**6)), count()  # on and on, as a run does

    def places() -> int:
        for step in islice(steps, 64):
            pool.places(step * batch, batch)
        return 64 * batch

    parties = {"reading, with CRC": read(shards), "reading, without": read(unchecked), ORDER: places}
    parties |= {"os.pread of the same bytes": copying} if runs else {}
    parties |= _webdataset(shards, everything)
    for run in parties.values():
        run()
    micros = {name: [] for name in parties}
    for _ in range(repeats):
        for name, run in parties.items():
            start = time.process_time()
            samples = run()
            micros[name].append((time.process_time() - start) / samples * 1e6)
    for file in tars.values():
        os.close(file)
    print(f"\n{f'samples of {size / 1000:.0f} kB':44} {'us a sample':>13}")
    for name, values in micros.items():
        print(f"{name:44} {statistics.median(values):13.1f} ({min(values):.1f} .. {max(values):.1f})")


def _webdataset(shards: list[Shard], everything: float) -> dict[str, Callable[[], int]]:
    """The outsider, reading the same tars from first to last."""
    tars = [str(s.path) for s in shards if s.path.is_file()]
    if not tars:
        return {}
    import webdataset

    def run() -> int:
        count = 0
        for _ in webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).to_tuple("jpg;jpeg;png;webp;JPEG"):
            count += 1
        return max(count, 1)

    return {f"webdataset, in order, {everything / 1000:.0f} kB": run}


def handing(shards: list[Shard], crop: MultiCrop, repeats: int) -> None:
    """What the loader costs beside the work itself: processor seconds of batches from a Loader, those of its process and
    of this one, over the same images read and cut here by one thread."""
    lanes = choose_lanes(BATCH, sum(len(s) for s in shards))
    reader = Reader(shards, plan([len(s) for s in shards], seed=0, lanes=lanes), 0)
    ratios: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for _ in range(repeats):
        for threads, found in ratios.items():
            loader = Loader(reader, crop, batch=BATCH, threads=threads)
            with closing(loader.batches(0)) as stream:  # type: ignore[type-var]
                next(stream)
                start = _spent(threads)
                for _ in range(HANDED):
                    next(stream)
                spent = _spent(threads) - start
            buffer = loader.layout.buffer(torch.empty(loader.layout.bytes, dtype=torch.uint8))
            begin = time.process_time()
            for step in range(1, 1 + HANDED):
                loader.builder.fill(buffer.arrays, loader.builder.places(step * BATCH), 0, BATCH)
            found.append(spent / (time.process_time() - begin))
    print(f"\n{'a batch from the loader, over one made here':44}")
    for threads, found in ratios.items():
        name = f"process with {threads} threads" if threads else "no process"
        print(f"{name:44} {statistics.median(found):13.3f} ({min(found):.3f} .. {max(found):.3f})")


def _spent(threads: int) -> float:
    """Processor seconds so far, of this process and of its children, once the ring is full and they rest."""
    time.sleep(1.0 if threads else 0.0)
    ticks = 0
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])  # utime and stime
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="photos: whatever data.source takes")
    parser.add_argument("--photos", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--skip-reading", action="store_true")
    parser.add_argument("--swav", help="folder of SwAV's multicropdataset.py")
    how = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    torch.manual_seed(0)
    crop = MultiCrop()
    with tempfile.TemporaryDirectory() as folder:
        source = how.source
        if source is None:
            print("no photos given: the built-in images, which are small")
            write_shards(sample.samples(256, seed=0), Path(folder), total=256, per_shard=128)
            source = folder
        shards = open_shards(source)
        line = [(s, r) for s, shard in enumerate(shards) for r in range(len(shard))]
        photos = [image_of(shards[s].read(s, r)) for s, r in random.sample(line, min(how.photos, len(line)))]
        sizes = [len(b) for b in photos]
        print(f"{len(photos)} photos of {np.mean(sizes) / 1000:.0f} kB, {how.repeats} repeats, one thread\n")
        scratch = np.empty(SCRATCH, np.uint8)
        parties = {
            REFERENCE: published(how.swav, photos[0]) if how.swav else reference(crop),
            "decode + crops, uint8 (color on the device)": ours(crop, False),
            "the same + color, blur, float on the CPU": ours(crop, True),
            "decode alone": lambda turn: [decode(b, scratch) for b in turn],
        }
        compare(parties, photos, how.repeats)
        if not how.skip_reading:
            packed = Path(folder) / "packed"  # with indexes, which hold what a CRC is compared with
            rows = ((one.key, one.fields) for one in (shards[s].read(s, r) for s, r in line))
            write_shards(rows, packed, total=len(line), per_shard=100)
            reading(open_shards(packed), open_shards(packed, check_crc=False), how.repeats)
            handing(shards, crop, how.repeats)


if __name__ == "__main__":
    main()
