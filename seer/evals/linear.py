"""Trains a linear classifier on frozen features.

Features are taken once from the center cut, standardized, and a softmax regression is trained on them to convergence by
L-BFGS, so the figure has no learning rate, no epochs and no seed. (The published protocol trains with random crops; the
two differ by a point or so, and this one takes minutes.) Legend: M train images, C features, Y classes.
"""

import torch
from torch import nn

from seer.core.errors import RequestError
from seer.core.protocols import Modules
from seer.evals.features import LabelledImages, backbone_of, extract


def linear_top1(
    train: torch.Tensor,
    train_labels: torch.Tensor,
    test: torch.Tensor,
    test_labels: torch.Tensor,
    *,
    penalty: float = 1e-3,
    iterations: int = 200,
) -> float:
    """Returns the share of test rows classified right. [M, C], [M], [Q, C], [Q]. penalty: weight of the squared
    weights, per row."""
    if penalty < 0 or iterations < 1:
        raise RequestError(f"penalty={penalty}, iterations={iterations}: not negative, and at least 1")
    std, mean = torch.std_mean(train, 0)
    train, test = (train - mean) / std.clamp(min=1e-6), (test - mean) / std.clamp(min=1e-6)
    classes = int(train_labels.max()) + 1  # of another one nothing can be learned, and its test rows are wrong
    weight, bias = torch.zeros(classes, train.shape[1], requires_grad=True), torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(train @ weight.T + bias, train_labels) + penalty * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return float(((test @ weight.T + bias).argmax(1) == test_labels).float().mean())


class Linear:
    """Evaluates features of train and test by `linear_top1`.

    penalty     weight of the squared weights, per image
    iterations  of L-BFGS at the most
    """

    def __init__(
        self,
        train: LabelledImages,
        test: LabelledImages,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        penalty: float = 1e-3,
        iterations: int = 200,
        batch: int = 256,
        threads: int = 2,
        dtype: torch.dtype = torch.float32,
    ):
        self.train, self.test, self.penalty, self.iterations = train, test, penalty, iterations
        self._how = {"mean": mean, "std": std, "batch": batch, "threads": threads, "dtype": dtype}

    def run(self, task: Modules) -> dict[str, float]:
        model = backbone_of(task)
        known, known_labels = extract(model, self.train, **self._how)  # type: ignore[arg-type]
        asked, asked_labels = extract(model, self.test, **self._how)  # type: ignore[arg-type]
        top1 = linear_top1(known, known_labels, asked, asked_labels, penalty=self.penalty, iterations=self.iterations)
        return {"linear_top1": top1}
