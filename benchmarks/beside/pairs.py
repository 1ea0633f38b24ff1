"""Sums up times of two parties that took turns: the ratio pair by pair, its median, and an interval of that median.

Turn i of one party and turn i of the other stand beside each other in time, so what else the machine did then is in both, and
their ratio says more than two medians do. The interval is that of the sign test: the k-th lowest and k-th highest ratio, which
hold the true median with the probability that a fair coin, thrown once a pair, shows each side k times or more. It asks
nothing of the distribution. Fewer than six pairs hold no 95 %; then it is the lowest and highest, with what they do hold.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

WANTED = 0.95


@dataclass(frozen=True)
class Summary:
    """Holds the median of a list of numbers, its quartiles, and an interval of the median."""

    median: float
    lower_quartile: float
    upper_quartile: float
    low: float
    high: float
    coverage: float  # the probability that low and high hold the true median
    pairs: int

    def row(self) -> dict[str, float]:
        return asdict(self)


def rank_and_coverage(pairs: int, wanted: float = WANTED) -> tuple[int, float]:
    """Returns k and the probability with which the k-th lowest and the k-th highest of so many numbers hold the median: the
    largest k that reaches `wanted`, else 1."""

    def coverage(k: int) -> float:
        return 1 - 2 * sum(math.comb(pairs, i) for i in range(k)) / 2**pairs

    k = 1
    while k + 1 <= (pairs + 1) // 2 and coverage(k + 1) >= wanted:
        k += 1
    return k, max(0.0, coverage(k))


def summary(numbers: Sequence[float]) -> Summary:
    """Returns the summary of numbers. ValueError for none."""
    if not numbers:
        raise ValueError("no numbers to sum up")
    ordered = sorted(numbers)
    k, coverage = rank_and_coverage(len(ordered))
    quarter = statistics.quantiles(ordered, n=4, method="inclusive") if len(ordered) > 1 else [ordered[0]] * 3
    return Summary(
        statistics.median(ordered), quarter[0], quarter[2], ordered[k - 1], ordered[-k], coverage, len(ordered)
    )


def paired_ratio(theirs: Sequence[float], ours: Sequence[float]) -> Summary:
    """Returns the summary of theirs / ours, turn by turn: above 1 where ours is faster. ValueError for unequal lengths."""
    return summary([t / o for t, o in zip(theirs, ours, strict=True)])
