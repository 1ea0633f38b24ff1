"""Turns scores into codes that use every prototype equally, by Sinkhorn-Knopp in scaling vectors.

SwAV wants the codes Q = diag(v) E diag(u), E = exp(scores / epsilon), whose prototypes carry equal mass over the joined
batch and whose samples carry equal mass. The published routine rescales the whole matrix 2 x iterations times; here the
matrix is made once, only the vectors u [K] and v [B] are updated (two matrix-vector products an iteration), and Q is
formed at the end, in place. On a CPU a block of rows gives its part of v and, still in the cache, its share of the next
prototype sums, or its part of Q: one traversal an iteration, and one to make E. Same values at every finite number of
iterations, a tenth of the memory traffic, half the memory.

Surprising here:

- E = exp((score - 1) / epsilon) where all of it fits float32. Scores are cosines, so at most 1: the fixed shift cannot
  overflow, is the same on every rank without asking (no all-reduce of a maximum), and a common factor of E changes nothing.
- Below epsilon = 2 / WIDEST it does not fit: a prototype or a sample whose scores are all low would vanish, or be made
  uniform by a floor. There E = exp((score - m - n) / epsilon), with m [K] the maximum of each prototype over the joined
  batch (one more all-reduce) and n [B] the maximum over prototypes of what is left. Every row and every column of E then
  has an entry of 1. The factor exp(m / epsilon) is free, like that of u; exp(n / epsilon) is not, and is where v starts:
  a shift of samples alone would change the values after finitely many rounds.
- The targets 1/K and 1/(B*R) never appear. The factor of u is arbitrary, because v, updated last, makes the rows sum to
  1 whatever it is; so nobody needs to know the size of the joined batch, and ranks may hold unequal shares.
- What is left free would run away: a round multiplies v by (joined samples) / K, which in ten rounds of 8 samples and
  16,000 prototypes leaves float32. So u is kept at 1 and above, by a power of two, which rounds nothing.
- Everything is float32, under autocast too: in bfloat16 the exponent is off by up to 0.06 (6 % an entry), and autocast
  would run the products in it. They are `mv`, not `matmul`, so that TF32 does not round E to 10 bits either.
- Only the prototype sums are all-reduced; a sample lives on one rank.

Letters: B samples of this rank, K prototypes, R ranks, P leading dimensions (separate problems) made one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seer.parallel.collectives import Group, all_reduce_max, all_reduce_sum

__all__ = ["harden", "residual", "sinkhorn"]

# exp(-80) = 2e-35 is a normal float32, with room for its reciprocal. Cosines differ by 2, so epsilon >= 2/80 = 0.025 needs
# no maxima
WIDEST = 80.0
CACHED = 1 << 19  # entries that a processor keeps near itself between two products: 2 MB
SUM_ROWS = 512  # rows whose sum a product makes at once: one of 8192 rows, added up row by row, is 2e-5 off


@torch.no_grad()
def sinkhorn(scores: Tensor, *, epsilon: float, iterations: int, group: Group | None = None) -> Tensor:
    """Returns balanced soft assignments of samples to prototypes (SwAV, arXiv 2006.09882, section 3; SEER runs
    10 iterations).

    scores      [..., B, K], floating point, cosines (at most 1); leading dimensions are separate problems that share
                each all-reduce. Unchanged by the call.
    epsilon     sharpness: 0.05 (SEER), 0.03 (SEER-10B); smaller is closer to one-hot
    iterations  rounds of (prototypes, then samples); one all-reduce of the prototype sums each, and one of maxima before
                them where epsilon is below 0.025
    group       ranks whose batches form one problem; None for one process

    Returns codes [..., B, K], float32, detached; rows sum to 1, columns approach (joined samples) / K. Extra memory:
    the result, nothing else of that size. ValueError for wrong arguments; scores that are not finite give codes that
    are not.
    """
    if scores.dim() < 2 or 0 in scores.shape or not scores.is_floating_point():
        raise ValueError(
            f"scores are {scores.dtype} {tuple(scores.shape)}; sinkhorn takes floating [..., B, K], none 0"
        )
    if not epsilon > 0:
        raise ValueError(f"epsilon is {epsilon}; it divides the scores and must be above 0 (SEER: 0.05)")
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; at least 1 round is needed for rows that sum to 1 (SEER: 10)")

    with torch.autocast(scores.device.type, enabled=False):
        given = scores.flatten(0, -3) if scores.dim() > 2 else scores.unsqueeze(0)  # [P, B, K]
        codes = torch.empty_like(given, dtype=torch.float32, memory_format=torch.contiguous_format)
        rows = min(SUM_ROWS, max(1, CACHED // codes.shape[2])) if codes.device.type == "cpu" else codes.shape[1]
        sums, samples = _exponentiate(given, codes, epsilon, rows, group)
        blocks = [list(zip(e.split(rows), v.split(rows), strict=True)) for e, v in zip(codes, samples, strict=True)]
        floor = torch.finfo(torch.float32).tiny
        for done in range(1, iterations + 1):
            largest = all_reduce_sum(sums, group).clamp_min_(floor).amax(-1, keepdim=True)  # [P, 1]
            prototypes = torch.ldexp(sums.reciprocal(), torch.frexp(largest).exponent)  # [P, K]
            sums.zero_()
            for total, u, problem in zip(sums, prototypes, blocks, strict=True):
                for block, v in problem:
                    torch.mv(block, u, out=v)
                    v.clamp_min_(floor).reciprocal_()
                    if done < iterations:
                        total.add_(torch.mv(block.t(), v))
                    else:
                        block.mul_(u).mul_(v.unsqueeze(1))
        return codes.view(scores.shape)


def _exponentiate(
    scores: Tensor, codes: Tensor, epsilon: float, rows: int, group: Group | None
) -> tuple[Tensor, Tensor]:
    """Writes E of scores [P, B, K] into codes, float32 of the same shape, `rows` at a time. Returns the sums [P, K] of E v over
    samples and the v [P, B] to start from: sums are those of exp(scores / epsilon), but for a factor of each prototype."""
    narrow = 2.0 / epsilon > WIDEST
    sums, samples = codes.new_zeros(codes.shape[0], codes.shape[2]), codes.new_ones(codes.shape[:2])
    most = all_reduce_max(scores.amax(1).float(), group) if narrow else torch.ones_like(sums)  # [P, K], of scores
    for source, target, highest, starts, total in zip(scores, codes, most, samples, sums, strict=True):
        for given, block, v in zip(source.split(rows), target.split(rows), starts.split(rows), strict=True):
            if given.dtype == torch.float32:
                torch.sub(given, highest, out=block)
            else:
                block.copy_(given).sub_(highest)
            if narrow:
                torch.amax(block, 1, out=v)
                block.sub_(v.unsqueeze(1))
                v.mul_(1.0 / epsilon).exp_()
            block.mul_(1.0 / epsilon).exp_()
            total.add_(torch.mv(block.t(), v))
    return sums, samples


@torch.no_grad()
def harden(codes: Tensor) -> Tensor:
    """Returns one-hot rows at the largest entry of codes [..., B, K], same shape and dtype (the first of equal
    ones)."""
    return torch.zeros_like(codes).scatter_(-1, codes.argmax(-1, keepdim=True), 1.0)


@torch.no_grad()
def residual(codes: Tensor, group: Group | None = None) -> Tensor:
    """Returns how far Sinkhorn is from done: the largest relative deviation of a prototype's mass from uniform.

    codes [..., B, K] -> [] float32, on their device, over all problems; 0 when each prototype holds exactly
    (joined samples) / K. One all-reduce of [..., K].
    """
    mass = all_reduce_sum(codes.sum(dim=-2, dtype=torch.float32), group)  # [..., K]
    return (mass / mass.mean(dim=-1, keepdim=True) - 1.0).abs().amax()
