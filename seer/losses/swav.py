"""Computes the SwAV loss: every view predicts the codes of the other assign views.

Surprising here: the published loop takes a log-softmax for each of the A*(V-1) (assign, predicting) pairs, though it
depends on the predicting view alone. Cross entropy is linear in the codes, so here each view meets the *sum* of the
codes it has to predict, once:

    sum_a CE(q_a, x) = mass * logsumexp(x/T) - sum_k q[k] x[k]/T        q = the sum of those codes, mass = sum_k q[k]

and the gradient, (mass * softmax(x/T) - q) / T, is made in the same pass, in the one buffer that backward returns: softmax
gives the logsumexp on the way (the largest x/T less the log of the largest probability), and nothing else of the size of
the scores is kept or made. So backward may run once only. Where nobody needs the scores any more, that buffer is theirs, so
that a step holds one array of their size less, and a CPU need not clear fresh memory for it. float32 also under autocast,
where no operation used here goes to a lower precision; the codes get no gradient.

Letters: V views, A assign views, B images, K prototypes, T temperature.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from seer.parallel.collectives import Group, all_reduce_mean, all_reduce_sum

__all__ = ["code_entropy", "embedding_spread", "swav_loss", "used_prototypes"]


def swav_loss(
    scores: Tensor, codes: Tensor, *, temperature: float, assign: Sequence[int] = (0, 1), overwrite: bool = False
) -> Tensor:
    """Returns the cross entropy of softmax(scores[p] / T) against the codes of a, mean over assign views a and
    views p != a.

    scores       [V, B, K] floating point, view-major; computed in float32
    codes        [A, B, K], row i belongs to view assign[i]; no gradient flows to them
    temperature  T, 0.1 in SwAV and SEER
    assign       the A distinct views whose codes were computed
    overwrite    that scores may be lost: where they get a gradient it is laid in their memory, if that is float32 and without
                 gaps. Whoever needs their values for another backward is told of it by autograd

    Returns [] float32; ln K for uniform predictions. ValueError for wrong arguments. Source: arXiv 2006.09882, eq. 2.
    """
    views, assign = scores.shape[0], tuple(assign)
    if scores.dim() != 3 or codes.shape != (len(assign), *scores.shape[1:]):
        raise ValueError(
            f"scores {tuple(scores.shape)} and codes {tuple(codes.shape)} with assign={assign}; "
            f"swav_loss takes [V, B, K] and [A, B, K] with A = len(assign) = {len(assign)}"
        )
    if len(set(assign)) != len(assign) or not assign or not all(0 <= view < views for view in assign):
        raise ValueError(f"assign is {assign}; it has to name distinct views from 0 to {views - 1}")
    if views < 2:
        raise ValueError(f"scores hold {views} view; a view predicts the codes of another, so at least 2 are needed")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it divides the scores and must be above 0 (SEER: 0.1)")
    wide = scores.float()
    mine = (overwrite or wide is not scores) and wide.is_contiguous()
    return _SwappedPrediction.apply(wide, codes.float(), 1.0 / temperature, assign, mine)


class _SwappedPrediction(torch.autograd.Function):
    """Makes the gradient in the forward pass and hands it out once."""

    @staticmethod
    def forward(
        ctx, scores: Tensor, codes: Tensor, sharpness: float, assign: tuple[int, ...], overwrite: bool
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        overwrite = overwrite and wanted
        if overwrite:
            made = scores.detach()  # [V, B, K] as what follows
        elif wanted:
            made = torch.empty_like(scores)
        else:
            made = torch.empty_like(scores[:1]).expand_as(scores)  # one view's memory for all
        spare = torch.empty_like(scores[0]) if overwrite else None  # [B, K]
        terms = len(assign) * (scores.shape[0] - 1) * scores.shape[1]
        loss = scores.new_zeros(())
        for view, target in enumerate(_targets(codes, assign, scores.shape[0])):
            buffer = made[view]
            if target is None:
                if wanted:
                    buffer.zero_()
                continue
            product = torch.mul(scores[view], target, out=buffer if spare is None else spare)
            agreement = product.sum(1)  # [B] sum_k q x; a batched product is slow
            torch.mul(scores[view], sharpness, out=buffer)
            highest, mass = buffer.amax(1), target.sum(1)  # [B]
            torch.softmax(buffer, dim=1, out=buffer)
            normalizer = highest - buffer.amax(1).log()  # [B] logsumexp(x/T)
            loss += (mass * normalizer - sharpness * agreement).sum()
            if wanted:
                buffer.mul_((mass * (sharpness / terms)).unsqueeze(1)).sub_(target, alpha=sharpness / terms)
        ctx.gradient = made if wanted else None
        return loss / terms

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError(
                "the gradient of this swav_loss was handed out already; call swav_loss again for another backward"
            )
        return gradient.mul_(upstream), None, None, None, None


def _targets(codes: Tensor, assign: tuple[int, ...], views: int) -> Iterator[Tensor | None]:
    """Yields the sum [B, K] of the codes that each view has to predict; None for an only assign view, which predicts nothing.
    The sum of all codes is made once."""
    everything = codes.sum(0) if len(assign) > 1 else codes[0]
    for view in range(views):
        others = [row for row, owner in enumerate(assign) if owner != view]
        if len(others) == len(assign):
            yield everything
        elif len(others) == 1:
            yield codes[others[0]]
        else:
            yield codes[others].sum(0) if others else None


@torch.no_grad()
def code_entropy(codes: Tensor) -> Tensor:
    """Returns the mean entropy of a sample's code in nats: codes [..., K] -> [] float32. ln K says that
    training has collapsed."""
    return torch.special.entr(codes.float()).sum(-1).mean()


@torch.no_grad()
def used_prototypes(codes: Tensor, group: Group | None = None) -> Tensor:
    """Returns [] int64, the number of distinct prototypes that are some sample's first choice, over all rows of
    codes [..., K].

    With a group, over the rows of all ranks (one all-reduce of [K]). Marks instead of `unique`, which would wait for
    the device.
    """
    marks = torch.zeros(codes.shape[-1], dtype=torch.int64, device=codes.device)  # [K]
    marks.index_fill_(0, codes.argmax(-1).flatten(), 1)
    return (all_reduce_sum(marks, group) > 0).sum()


@torch.no_grad()
def embedding_spread(embeddings: Tensor, group: Group | None = None) -> Tensor:
    """Returns [] float32, the root mean square distance of unit rows [..., D] from their mean. 0: all point the
    same way, 1: none do together. Over all ranks, of equally many rows each (one all-reduce of [D])."""
    mean = all_reduce_mean(embeddings.float().flatten(0, -2).mean(0), group)  # [D]
    return (1.0 - mean.square().sum()).clamp_min(0.0).sqrt()
