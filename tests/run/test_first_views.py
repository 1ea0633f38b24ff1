"""What TensorBoard shows of the first batch: views as the network gets them, read back from the event file."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seer.data.augment import augment_batch
from seer.data.shards.open import open_shards
from seer.run.first_views import GAP, GRAY, grid
from tests.data.image_files import jpeg, png
from tests.program import SMALL, seer

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def color(n: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Draws of `records.Color` for n views, all kinds of them."""
    chance = torch.rand(n, generator=generator)
    return {
        "jitter": chance < 0.8,
        "order": torch.stack([torch.randperm(4, generator=generator) for _ in range(n)]),
        "factors": torch.rand(n, 4, generator=generator) * torch.tensor([1, 1, 1, 0.2])
        + torch.tensor([0.5, 0.5, 0.5, -0.1]),
        "gray": chance < 0.3,
        "sigma": torch.where(chance > 0.5, 1.0, 0.0),
    }


def batch(colored: bool) -> dict[str, torch.Tensor]:
    """Six images of two views of 20 px and three of 12 px; the pixel of a view tells its image and view."""
    generator, fields = torch.Generator().manual_seed(0), {}
    for size, views in ((20, 2), (12, 3)):
        pixels = torch.randint(256, (views * 6, 3, size, size), generator=generator, dtype=torch.uint8)
        fields[f"views/{size}"] = pixels.contiguous(memory_format=torch.channels_last)
        if colored:
            fields |= {f"color/{size}/{name}": tensor for name, tensor in color(views * 6, generator).items()}
    return fields


@pytest.mark.parametrize("colored", [False, True])
def test_rows_are_images_and_columns_their_views_as_the_network_gets_them(colored):
    fields = batch(colored)
    found = grid(fields, 6, MEAN, STD)
    assert found.shape == (6 * 22 - 2, 2 * 22 + 3 * 14 - 2, 3) and found.dtype == np.uint8
    left = 0
    for size, views in ((20, 2), (12, 3)):
        seen = augment_batch(fields, size, MEAN, STD)  # of the whole batch
        scale, shift = (torch.tensor(numbers)[:, None, None] for numbers in (STD, MEAN))
        levels = (255 * (seen * scale + shift)).permute(0, 2, 3, 1).numpy()
        if not colored:
            assert np.abs(levels - fields[f"views/{size}"].permute(0, 2, 3, 1).numpy()).max() < 1e-3
        for view in range(views):
            for image in range(6):
                cell = found[image * 22 : image * 22 + size, left : left + size]
                assert np.abs(cell - levels[view * 6 + image]).max() <= 0.51, (size, view, image)
            left += size + GAP
    assert (found[20:22] == GRAY).all() and (found[12:20, -12:] == GRAY).all()


def test_one_band_is_shown_as_gray_and_large_views_are_few():
    one = {"views/30": torch.full((8, 1, 30, 30), 77, dtype=torch.uint8)}
    assert (grid(one, 8, (0.5,), (0.2,))[:30, :30] == 77).all()
    large = {"views/224": torch.zeros(40, 3, 224, 224, dtype=torch.uint8)}
    assert grid(large, 20, MEAN, STD).shape == (3 * 226 - 2, 2 * 226 - 2, 3)


def images_in(folder: Path) -> dict[str, list[tuple[int, np.ndarray]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"images": 0})
    events.Reload()
    return {
        name: [(one.step, np.asarray(Image.open(io.BytesIO(one.encoded_image_string)))) for one in events.Images(name)]
        for name in events.Tags()["images"]
    }


@pytest.mark.slow
def test_a_run_shows_its_first_batch_once_and_learns_the_same(tmp_path, capfd):
    (tmp_path / "d").mkdir()
    for i in range(32):
        (tmp_path / "d" / f"{i}.png").write_bytes(png(i, 40, 40) if i % 2 else jpeg(i, 40, 40))
    words = ("pretrain", *SMALL, f"data.source={tmp_path / 'd'}", "batch=8", "augment.flip=0", "augment.blur=0")
    words += (
        "augment.jitter=0",
        "augment.grayscale=0",
        "augment.scales=[[1.0,1.0],[1.0,1.0]]",
        "augment.aspect=[1.0,1.0]",
    )
    losses = {}
    for board in ("true", "false"):
        run = tmp_path / board
        first = seer(capfd, *words, f"output={run}", "steps=2", f"log.tensorboard={board}")
        assert first.status == 0, first.words
        losses[board] = first.result["loss"]
    assert losses["true"] == losses["false"]
    run = tmp_path / "true"
    assert seer(capfd, *words, f"output={run}", "steps=3", "log.tensorboard=true").status == 0
    (name,) = found = images_in(run / "tensorboard")
    ((step, pixels),) = found[name]
    assert name == "views/first_batch" and step == 0 and pixels.shape == (8 * 34 - 2, 2 * 34 + 2 * 26 - 2, 3)
    (shard,) = open_shards(tmp_path / "d")
    whole = [Image.open(io.BytesIO(next(iter(shard.read(0, row).fields.values())))) for row in range(32)]
    small = np.stack([np.asarray(one.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)) for one in whole])
    for row in range(8):  # each shows one of the images, whole
        cell = pixels[34 * row : 34 * row + 32, :32].astype(int)
        assert np.abs(small.astype(int) - cell).mean((1, 2, 3)).min() < 3
