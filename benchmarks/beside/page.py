"""Writes the page: what it was measured on, one table an area, what has to hold, the losses beside each other, JSON lines."""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from areas import GOALS, JOINED, JOINED_WIDE, LOOP, OURS_WIDE, SAME_LOSS, Goal, Plan
from pairs import Summary, paired_ratio, summary

Row = dict[str, Any]
SHOWN = (
    "torch",
    "torchvision",
    "lightly",
    "timm",
    "webdataset",
    "numpy",
    "pillow",
    "opencv-python-headless",
    "simplejpeg",
)
MEMORY = ("step", "sinkhorn", "loss")


def by_party(rows: Iterable[Row], value: Callable[[Row], float]) -> dict[tuple[str, str], list[float]]:
    """Returns (case, party) -> a number a turn, in the order in which turns were taken; without those of the warm-up."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if row["turn"] >= 0:
            found.setdefault((row["case"], row["party"]), []).append(value(row))
    return found


def told(ratio: Summary) -> str:
    return f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def amount(seconds: float) -> str:
    return (
        f"{seconds:.2f} s"
        if seconds >= 1
        else f"{seconds * 1e3:.2f} ms"
        if seconds >= 1e-3
        else f"{seconds * 1e6:.1f} us"
    )


def megabytes(bytes_: float) -> str:
    return f"{bytes_ / 1e6:.1f} MB"


def table(
    numbers: dict[tuple[str, str], list[float]], peers: Sequence[str], shown: Callable[[float], str]
) -> list[str]:
    """Returns a table: a row for each party and case, a column for each peer, which takes so many times as much."""
    cases = any(case for case, _ in numbers)
    head = (["case"] if cases else []) + ["", "median (quartiles)", *[f"{peer} takes" for peer in peers]]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (case, party), mine in numbers.items():
        own = summary(mine)
        cells = ([case] if cases else []) + [party]
        cells.append(f"{shown(own.median)} ({shown(own.lower_quartile)} .. {shown(own.upper_quartile)})")
        for peer in peers:
            theirs = numbers.get((case, peer))
            cells.append("" if theirs is None or peer == party else told(paired_ratio(theirs, mine)) + " x")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def peers_of(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row["party"] for row in rows if row["side"] == "peers"))


def area(name: str, plan: Plan, rows: Sequence[Row]) -> list[str]:
    """Returns the section of one area."""
    count = len(next(iter(by_party(rows, lambda r: 1.0).values())))
    note = f"Processor time of one {plan.unit}, {count} turns each in {plan.starts} pair(s) of processes; ratios: {_interval(count)}."
    lines = [f"### {plan.title}", "", note, ""]
    lines += table(by_party(rows, lambda r: r["seconds"]), peers_of(rows), amount)
    if name == "end_to_end":
        rates = by_party(rows, lambda r: r["wall"])
        lines += ["", "Wall time of one image, both cores free, the loader a turn ahead:", ""]
        lines += table(rates, peers_of(rows), amount)
        pace = "; ".join(f"{party} {1 / summary(each).median:.1f}" for (_, party), each in rates.items())
        lines += ["", f"Images a second: {pace}."]
    return [*lines, ""]


def _interval(pairs: int) -> str:
    one = summary([1.0] * pairs)
    kind = "lowest and highest" if pairs < 6 else "interval of the median"
    return f"median of {pairs} pairs and {kind} ({100 * one.coverage:.1f} %)"


def memory(rows: Sequence[Row]) -> list[str]:
    """Returns the tables of peaks. One turn of each start tells, the last of the warm-up: it begins without freed memory."""
    lines = ["### Memory", ""]
    lines += [
        "Peak of resident memory in a turn: of a step beyond libraries and crops, else beyond what was held before it.",
        "",
    ]
    for name in MEMORY:
        own = [{**row, "turn": 0} for row in rows if row["area"] == name and row["turn"] == -1]
        peaks = by_party(own, lambda r: max(1.0, r["peak"]))
        if peaks:
            lines += [f"{name}:", "", *table(peaks, peers_of(own), megabytes), ""]
    return lines if len(lines) > 4 else []


def same_losses(rows: Sequence[Row]) -> tuple[list[str], list[Row]]:
    """Returns the section on losses of the steps, from the same weights and crops, and its JSON lines. Networks in float64 are
    held against ours in float64, the others against ours in float32."""
    losses: dict[str, list[float]] = {}
    choices: dict[str, list[list[int]]] = {}
    for row in rows:
        if row["area"] in ("step", "same_losses") and row["start"] == 0:
            losses.setdefault(row["party"], []).append(row["loss"])
            choices.setdefault(row["party"], []).append(row["choices"])
    if not losses:
        return [], []
    lines, facts = ["### The same losses", "", "The first steps from the same weights on the same crops.", ""], []
    lines += [
        "| | beside | steps | largest difference of a loss | same first choices | losses |",
        "|---|---|---|---|---|---|",
    ]
    for party, each in losses.items():
        beside = OURS_WIDE if party in (OURS_WIDE, JOINED_WIDE) else "ours"
        steps = min(10, len(each), len(losses[beside]))
        apart = max(abs(a - b) for a, b in zip(each[:steps], losses[beside][:steps], strict=True))
        pairs = [
            a == b
            for x, y in zip(choices[party][:steps], choices[beside][:steps], strict=True)
            for a, b in zip(x, y, strict=True)
        ]
        same = sum(pairs) / len(pairs)
        curve = " ".join(f"{loss:.4f}" for loss in each[:steps])
        lines.append(f"| {party} | {beside} | {steps} | {apart:.1e} | {100 * same:.1f} % | {curve} |")
        facts.append(
            {"losses": party, "beside": beside, "steps": steps, "largest_difference": apart, "same_choices": same}
        )
    lines += [
        "",
        f'"{LOOP}" lets batch norm see one crop at a time, so its losses differ; "{JOINED}" does as ours. In float64 what is left',
        "between two programs is not the rounding of their networks; heads and losses of ours are float32 all the same.",
        "",
    ]
    return lines, facts


def goals(rows: Sequence[Row], asked: Iterable[Goal] = GOALS) -> tuple[list[str], list[Row]]:
    """Returns the table of what has to hold, and its JSON lines; a case of several is told by the lowest of them."""
    lines = ["### What has to hold", "", "| | has to be | goal | found, lowest case | |", "|---|---|---|---|---|"]
    facts: list[Row] = []
    for goal in asked:
        numbers = by_party((r for r in rows if r["area"] == goal.area), lambda r: r["seconds"])
        ratios = {
            case: paired_ratio(numbers[case, goal.theirs], mine)
            for (case, party), mine in numbers.items()
            if party == goal.ours and (case, goal.theirs) in numbers
        }
        bound = f">= {goal.floor:.2f} x"
        wanted = "" if goal.goal is None else f"{goal.goal:.1f} x"
        if not ratios:
            lines.append(f"| {goal.name} | {bound} | {wanted} | | not measured |")
            continue
        case, lowest = min(ratios.items(), key=lambda one: one[1].median)
        verdict = "held" if lowest.median >= goal.floor else "MISSED"
        sure = "" if (lowest.low >= goal.floor) == (lowest.high >= goal.floor) else ", the interval holds the bound"
        where = f" ({case})" if case else ""
        lines.append(f"| {goal.name} | {bound} | {wanted} | {told(lowest)} x{where} | {verdict}{sure} |")
        facts.append({"goal": goal.name, "floor": goal.floor, "case": case, "held": verdict == "held", **lowest.row()})
    apart = next((f for f in same_losses(rows)[1] if f["losses"] == JOINED_WIDE), None)
    if apart is not None:
        verdict = "held" if apart["largest_difference"] <= SAME_LOSS else "MISSED"
        found = f"{apart['largest_difference']:.1e} over {apart['steps']} steps"
        lines.append(f"| same losses, crops joined on both sides, float64 | <= {SAME_LOSS} | | {found} | {verdict} |")
        facts.append({"goal": "same losses", "ceiling": SAME_LOSS, "held": verdict == "held", **apart})
    return [*lines, ""], facts


def summed_up(rows: Sequence[Row]) -> list[Row]:
    """Returns a line for every pair of one of ours and a peer in a case: the ratio of all turns, and its median in each start."""
    found: list[Row] = []
    for name in dict.fromkeys(row["area"] for row in rows):
        own = [row for row in rows if row["area"] == name]
        numbers = by_party(own, lambda r: r["seconds"])
        mine = {row["party"] for row in own if row["side"] == "ours"}
        for (case, party), each in numbers.items():
            found.append({"area": name, "case": case, "party": party, "seconds": summary(each).row()})
            for peer in peers_of(own) if party in mine else ():
                if (case, peer) in numbers:
                    ratio = paired_ratio(numbers[case, peer], each).row()
                    found.append(
                        {"area": name, "case": case, "ours": party, "peer": peer, "their_time_over_ours": ratio}
                    )
    return found


def head(facts: dict[str, Any], versions: dict[str, dict[str, str]], images: dict[str, Any], how: str) -> list[str]:
    """Returns the head of a page. versions: side -> package -> version."""
    merged = {**versions.get("ours", {}), **versions.get("peers", {})}
    brief = ", ".join(f"{name} {merged[name]}" for name in SHOWN if name in merged)
    what = (
        f"{images['images']} JPEGs of {images['kilobytes']:.0f} kB and {images['megapixels']:.2f} megapixels on average, "
        f"{images['source']}."
    )
    return [
        f"## The project beside its peers ({facts['date']})",
        "",
        f"{facts['processor']}, kind: {facts['kind']}; {facts['cores']} cores, {facts['memory_gb']} GB, load {facts['load_before']} "
        f"when it began. {facts['system']}. Python {facts['python']}, commit {facts['commit']}.",
        f"{brief}; all versions in the first line of JSON. {what} {how}",
        "",
        "Two processes take turns, A B A B …, one thread each on the same core, processor time; a ratio is taken pair by pair.",
        "",
    ]


def page(
    facts: dict[str, Any],
    versions: dict[str, dict[str, str]],
    images: dict[str, Any],
    how: str,
    measured: dict[str, tuple[Plan, list[Row]]],
) -> str:
    """Returns the whole page."""
    rows = [row for _, each in measured.values() for row in each]
    bounds, held = goals(rows)
    curves, compared = same_losses(rows)
    lines = [*head(facts, versions, images, how), *bounds]
    for name, (plan, own) in measured.items():
        if name != "same_losses":  # whose times say nothing
            lines += area(name, plan, own)
    lines += [*curves, *memory(rows)]
    data = [{"measured_on": facts, "versions": versions, "images": images}, *held, *compared, *summed_up(rows)]
    lines += ["```", *[json.dumps(row, ensure_ascii=False) for row in data], "```"]
    return "\n".join(lines) + "\n"
