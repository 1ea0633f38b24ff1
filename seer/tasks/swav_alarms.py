"""Tells from SwAV's numbers what goes wrong, and what to do about it.

Limits were set between runs that learnt and runs that did not (LOG.md). Surprising: a share of used prototypes means little
when codes are uniform (the first choice is then noise), and Sinkhorn's residual near 1 is usual at 3 rounds, so their limits
are loose. Sources: SwAV's advice for a loss stuck at ln K, and what its users met (facts: arXiv 2006.09882 and its repository).
"""

import statistics

from seer.core.records import Alarm

UNIFORM = 0.95  # of ln K: entropy of a code. Runs that learnt: up to 0.81, and that early; collapsed ones: 0.96 to 1
PINNED = 0.005  # of ln K: distance of the loss from it
UNUSED = 0.1  # of K: prototypes that are anybody's first choice
UNBALANCED = 2.5  # relative excess of a prototype after Sinkhorn's last round; runs that learnt: up to 1.2
POINT = 0.2  # spread of embeddings, 1 = all around the sphere, 0 = one point
MOST_COSINE = 1.01  # largest score; cosines end at 1


def alarms(chance: float, prototypes: int) -> tuple[Alarm, ...]:
    """Returns the alarms of SwAV. chance: ln K. prototypes: K."""
    return (
        Alarm(
            "uniform codes",
            "codes/entropy",
            lambda rows: all(r["codes/entropy"] >= UNIFORM * chance for r in rows),
            f"collapsing: codes are uniform (entropy {{codes/entropy:.3f}}, ln K {chance:.3f}); lower task.epsilon (a tenth of "
            "task.temperature learns in small runs), freeze prototypes longer, or use fewer",
        ),
        Alarm(
            "loss at ln K",
            "loss",
            lambda rows: all(abs(r["loss"] - chance) <= PINNED * chance for r in rows),
            f"stuck: the loss rests at ln K = {chance:.3f}, as of a model that predicts nothing; lower task.epsilon, soften the "
            "colors of augment, set task.hard_until, or lower schedule.peak",
        ),
        Alarm(
            "unused prototypes",
            "codes/used_prototypes",
            lambda rows: all(r["codes/used_prototypes"] < UNUSED * prototypes for r in rows),
            f"{{codes/used_prototypes:.0f}} of {prototypes} prototypes are anybody's first choice; use fewer task.prototypes, a "
            "larger batch, or task.queue",
        ),
        Alarm(
            "unbalanced prototypes",
            "codes/residual",
            lambda rows: statistics.median(r["codes/residual"] for r in rows) > UNBALANCED,
            "Sinkhorn ends far from balance (a prototype has {codes/residual:.1f} times its share too much); raise "
            "task.iterations or task.epsilon",
        ),
        Alarm(
            "embeddings in a point",
            "embeddings/spread",
            lambda rows: all(r["embeddings/spread"] < POINT for r in rows),
            "collapsed: all embeddings point the same way (spread {embeddings/spread:.4f} of 1); set task.last_batch_norm, lower "
            "schedule.peak, and see whether the images differ at all",
        ),
        Alarm(
            "scores above 1",
            "scores/largest",
            lambda rows: rows[-1]["scores/largest"] > MOST_COSINE,
            "a score is {scores/largest:.3f}, but cosines end at 1: prototypes or embeddings have lost unit length, and "
            "Sinkhorn will overflow; task.after_step has to normalize prototypes",
            rows=1,  # a few steps later every number is nan
        ),
    )
