"""Measures by RankMe how many dimensions the features really use, without labels.

The exponential of the entropy of the singular values, each as a share of their sum (Garrido et al., arXiv 2210.02885):
1 when all features lie on a line, at most min(M, C). It follows what features are worth on other tasks, and falls when
dimensions collapse. Surprising: it grows with the number of images, so only figures of equally many compare; features
are not centered, as in the article. Legend: M images, C features.
"""

import torch

from seer.core.errors import RequestError
from seer.core.protocols import Modules
from seer.evals.features import LabelledImages, backbone_of, extract, spread

SMALLEST = 1e-7  # the article's epsilon, added to every share


def rankme(features: torch.Tensor) -> float:
    """Returns the effective rank of [M, C], from 1 to min(M, C), computed in float64. Raises ValueError for
    fewer than 2 rows."""
    if features.dim() != 2 or len(features) < 2:
        raise ValueError(f"features are {tuple(features.shape)}; rankme takes [M, C] with M of at least 2")
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum().clamp_min(torch.finfo(torch.float64).tiny) + SMALLEST
    return float(torch.exp(-(shares * shares.log()).sum()))


class RankMe:
    """Evaluates features of `most` images of train, spread evenly, by `rankme`. They need no labels, and test is not looked at.

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
            raise RequestError(f"eval.most={most}: a rank needs at least 2 images")
        self.images = spread(train, most)
        self._options = {"mean": mean, "std": std, "batch": batch, "threads": threads, "dtype": dtype}

    def run(self, task: Modules) -> dict[str, float]:
        model = backbone_of(task)
        features, _ = extract(model, self.images, **self._options)  # type: ignore[arg-type]
        return {"rankme": rankme(features)}
