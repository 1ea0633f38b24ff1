"""Measures without labels how evenly features lie on the sphere, and how near two views of one image lie there.

Uniformity is log mean exp(-2 |x - y|^2) over all pairs of images, features at unit length: 0 when all are one point, and lower
the more evenly they lie; alignment is the mean of |x - y|^2 over pairs of views of one image, from 0 (the same) to 4 (Wang
and Isola 2020, arXiv 2005.10242, with its alpha 2 and t 2). Both low is good, and either alone is easy: features that are all
equal have alignment 0. Surprising: uniformity, unlike RankMe, hardly depends on the number of images.

Legend: M images, C features, S side.
"""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch.nn import functional as F

from seer.core import rng
from seer.core.errors import RequestError
from seer.core.log import log
from seer.core.protocols import Modules
from seer.data.augment import normalize
from seer.data.decode import Undecodable
from seer.data.shards.tar import TarError
from seer.data.transforms.multi_crop import MultiCrop
from seer.evals.features import LabelledImages, at_once, backbone_of, extract, spread
from seer.evals.figures import bootstrap
from seer.evals.judged import Judged

SHARPNESS = 2.0  # the article's t
BLOCK = 1024  # rows whose distances to all others are in memory at once


def uniformity(features: torch.Tensor, t: float = SHARPNESS) -> float:
    """Returns log mean exp(-t |x - y|^2) over the pairs of [M, C], at unit length, in float64. Raises ValueError."""
    if features.dim() != 2 or len(features) < 2:
        raise ValueError(f"features are {tuple(features.shape)}; uniformity takes [M, C] with M of at least 2")
    x, total = F.normalize(features.double(), dim=1), 0.0
    for first in range(0, len(x), BLOCK):
        rows = x[first : first + BLOCK]
        near = torch.exp(-t * (2 - 2 * rows @ x.T).clamp_min(0))
        total += float(torch.triu(near, diagonal=first + 1).sum())
    return math.log(total / (len(x) * (len(x) - 1) / 2))


def distances(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Returns |x - y|^2 of rows at unit length: [M, C], [M, C] -> float64 [M]."""
    return (F.normalize(first.double(), dim=1) - F.normalize(second.double(), dim=1)).square().sum(1)


class Uniformity:
    """Evaluates features of `most` images of train, spread evenly, by `uniformity`. They need no labels.

    most  images whose features are taken
    """

    def __init__(
        self,
        train: LabelledImages,
        test: LabelledImages | None,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        most: int = 2048,
        batch: int | None = None,
        threads: int = 2,
        dtype: torch.dtype = torch.float32,
    ):
        if most < 2:
            raise RequestError(f"eval.most={most}: pairs need at least 2 images")
        self.images = spread(train, most)
        self._options = {"mean": mean, "std": std, "batch": batch, "threads": threads, "dtype": dtype}

    def run(self, task: Modules) -> dict[str, float]:
        """Returns {"uniformity": …}."""
        features, _ = extract(backbone_of(task), self.images, **self._options)  # type: ignore[arg-type]
        if len(features) < 2:
            raise RequestError("one image alone could be read; uniformity is of pairs")
        return {"uniformity": uniformity(features)}


class Alignment:
    """Evaluates how near the features of two random views of an image lie, of `most` images of train, spread evenly.

    Views are cut and colored as in SwAV's training (`MultiCrop`), by each row's own key, so they are the same every time.

    most   images whose features are taken
    seed   of the views
    scale  lowest and highest share of an image's area that a view shows
    """

    def __init__(
        self,
        train: LabelledImages,
        test: LabelledImages | None,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        most: int = 2048,
        seed: int = 0,
        scale: Sequence[float] = (0.14, 1.0),
        batch: int | None = None,
        threads: int = 2,
        dtype: torch.dtype = torch.float32,
    ):
        if most < 1:
            raise RequestError(f"eval.most={most}: at least 1 image")
        self.images, self.seed = spread(train, most), seed
        self._crop = MultiCrop((train.size,), (2,), (scale,), mean=mean, std=std, pixels=train.pixels)
        self._mean, self._std, self._batch, self._threads, self._dtype = mean, std, batch, threads, dtype

    def run(self, task: Modules) -> dict[str, float]:
        """Returns {"alignment": …}."""
        return self.judge(task).figures

    @torch.no_grad()
    def judge(self, task: Modules) -> Judged:
        """Returns the figure with its interval over images."""
        model, rows, found = backbone_of(task), self.images.rows, []
        device = next(p.device for _, p in model.named_parameters())
        half = max(1, (self._batch or at_once(device, self._crop.input_size)) // 2)  # two views of each
        with ThreadPoolExecutor(self._threads, thread_name_prefix="evaluation") as pool:
            for first in range(0, len(rows), half):
                views = [one for one in pool.map(self.views, rows[first : first + half]) if one is not None]
                if not views:
                    continue
                x = torch.from_numpy(np.concatenate([np.stack([v[i] for v in views]) for i in (0, 1)]))
                x = x.permute(0, 3, 1, 2).to(device).to(torch.float32, memory_format=torch.channels_last).div_(255)
                with torch.autocast(device.type, self._dtype, enabled=self._dtype != torch.float32):
                    features = model(normalize(x, self._mean, self._std)).float().cpu()
                found.append(distances(features[: len(views)], features[len(views) :]))
        if not found:
            raise RequestError("none of the images for evaluation could be read")
        each = torch.cat(found)
        return Judged(
            {"alignment": float(each.mean())}, {"alignment": bootstrap(each)}, {"alignment_images": len(each)}
        )

    def views(self, place: tuple[int, int]) -> np.ndarray | None:
        """Returns two views of the image of a (shard, row), uint8 [2, S, S, 3]; None where it cannot be read."""
        images, size = self.images, self._crop.input_size
        keys = rng.sub_keys(rng.key(self.seed, "alignment"), *(np.array([number]) for number in place))
        try:
            decoded = self._crop.decode(images.shards[place[0]].read(*place))
        except (Undecodable, TarError) as error:
            if place not in images.broken:
                log.warning(f"{images.shards[place[0]].path} row {place[1]} is left out: {error}")
            images.broken.add(place)
            return None
        found = np.empty((2, size, size, self._crop.channels), dtype=np.uint8)
        self._crop.draws(keys, painted=True).fill(0, decoded, {f"views/{size}": found}, 0)
        images.content[place[0]][place[1]] = 1  # read and used
        return found
