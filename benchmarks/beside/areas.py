"""Lists what is measured: areas, their parties and sizes, quick and full, and the ratios that have to hold.

A plan says how an area is measured: `workers` [(side, words of its own)], how many `starts` (pairs of fresh processes) and `turns`
in each, and what both sides are given. `floor` is a bound of a ratio "their time over ours", unless it is a share of memory.
"""

from dataclasses import dataclass, field
from typing import Any

SWAV, WEBDATASET, LIGHTLY, LOOP = "SwAV's (torchvision, Pillow)", "webdataset", "lightly", "lightly's loop"
JOINED = "lightly, crops joined"
OURS_WIDE, JOINED_WIDE = "ours, float64", "lightly, crops joined, float64"
VIEWS = {"sizes": [224, 96], "counts": [2, 4]}
BOTH = (("ours", ""), ("peers", ""))
STEP = {"sizes": [96, 48], "counts": [2, 4], "model": "regnety_400mf", "prototypes": 3000}


@dataclass(frozen=True)
class Plan:
    """Holds how an area is measured. script: the workers' file. unit: what a turn's amount counts."""

    title: str
    unit: str
    script: str
    workers: tuple[tuple[str, str], ...]  # side, party; an empty party: all that the script has
    turns: int
    starts: int
    warm_up: int = 2
    given: dict[str, Any] = field(default_factory=dict)
    pinned: bool = True

    @property
    def shared(self) -> bool:
        """Says that workers which have measured other areas will do: those of one worker a side."""
        return self.workers == BOTH


@dataclass(frozen=True)
class Goal:
    """Holds a ratio that has to hold: the time of `theirs` over that of `ours`, in every case of the area."""

    area: str
    ours: str
    theirs: str
    floor: float
    goal: float | None
    name: str


GOALS = (
    Goal("data_path", "ours, uint8 crops", SWAV, 6.8, 9.0, "data path over SwAV's"),
    Goal(
        "reading",
        "ours, no CRC",
        WEBDATASET,
        1 / 0.29,
        1 / 0.2,
        "reading without CRC over webdataset (0.29 of its time)",
    ),
    Goal("sinkhorn", "ours", LIGHTLY, 2.0, None, "Sinkhorn over lightly's"),
    Goal("loss", "ours", LIGHTLY, 1.9, 2.5, "loss with gradient over lightly's"),
    Goal("lars", "ours", LIGHTLY, 1.8, 2.5, "LARS over lightly's"),
    Goal("step", "ours", LOOP, 1.65, None, "whole step, float32, over lightly's loop"),
    Goal("step", "ours, compiled", LOOP, 1.8, None, "whole step, float32, compiled, over lightly's loop"),
)
# how far losses of ten steps may lie apart where batch norm sees the same images; networks in float64, for in float32 rounding
# alone takes one program's losses 3e-3 from its own in float64
SAME_LOSS = 1e-3
NAMES = ("data_path", "reading", "sinkhorn", "loss", "lars", "step", "same_losses", "startup", "end_to_end")


def plans(quick: bool, bf16: bool, toy: bool) -> dict[str, Plan]:
    """Returns area -> plan. quick: under three minutes; toy: seconds, whose figures say nothing. bf16: whether the processor has it."""
    light = quick or toy
    starts, turns = (1, 2) if toy else (1, 9) if quick else (3, 11)
    balanced = (
        ["40 x 32"] if toy else ["3000 x 512", "16000 x 512"] if quick else _crossed((3000, 16000), (512, 2048, 8192))
    )
    scored = ["40 x 8"] if toy else ["3000 x 256"] if quick else ["3000 x 256", "16000 x 256"]
    step = [("ours", "ours"), ("peers", LOOP), ("peers", JOINED)]
    whole = [("ours", "ours"), ("peers", LOOP)]
    if not light:
        step += [("ours", "ours, compiled"), ("peers", "lightly's loop, compiled")]
        step += [("ours", "ours, bf16"), ("ours", "ours, bf16, compiled")] if bf16 else []
        whole += [("ours", "ours, bf16")] if bf16 else []
    small = {**STEP, "batch": 8 if toy else 16 if quick else 32}
    small |= {"sizes": [32, 16], "prototypes": 20} if toy else {}
    # each turn does the same images: they differ by more than parties do from turn to turn
    views = {"sizes": [32, 16], "counts": [2, 4], "photos": 2} if toy else {**VIEWS, "photos": 16 if quick else 48}
    network = {"model": "regnety_400mf" if toy else "regnety_16gf"}
    return {
        "data_path": Plan("Data path", "image", "data_path", BOTH, turns, starts, 1, views),
        "reading": Plan("Reading", "sample", "reading", BOTH, 4 * turns, starts),
        "sinkhorn": Plan("Sinkhorn", "call", "sinkhorn", BOTH, turns, starts, given={"cases": balanced}),
        "loss": Plan("Loss with its gradient", "call", "loss", BOTH, turns, starts, given={"cases": scored}),
        "lars": Plan("LARS", "step", "lars", BOTH, turns, starts, given=network),
        "step": Plan("Step", "image", "step", tuple(step), max(2, turns - 1), starts, 2, small),
        "same_losses": Plan(
            "The same losses",
            "image",
            "step",
            (("ours", OURS_WIDE), ("peers", JOINED_WIDE)),
            2 if light else 8,
            1,
            2,
            small,
        ),
        "startup": Plan("Start-up", "start", "", (), 1 if toy else 2 if quick else 9, 1, 0 if light else 1),
        "end_to_end": Plan(
            "End to end",
            "image",
            "end_to_end",
            tuple(whole),
            2 if toy else 6 if quick else 9,
            1 if light else 2,
            1,
            {**small, "every": 1 if toy else 2 if quick else 3},
            pinned=False,
        ),
    }


def _crossed(prototypes: tuple[int, ...], samples: tuple[int, ...]) -> list[str]:
    return [f"{k} x {b}" for k in prototypes for b in samples]
