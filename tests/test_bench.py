"""`make bench`: its statistics against closed forms, and every worker that measures at toy size."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks" / "beside"))

import areas  # noqa: E402
import machine  # noqa: E402
import page  # noqa: E402
from areas import Goal  # noqa: E402
from measure import commands, measure  # noqa: E402
from pairs import paired_ratio, rank_and_coverage, summary  # noqa: E402
from turns import Failed, Worker, pool  # noqa: E402

PEERS = ROOT / ".venv-peers" / "bin" / "python"
TOY = areas.plans(quick=False, bf16=True, toy=True)
OURS = {"ours": sys.executable}


def row(party: str, seconds: float, turn: int, case: str = "", area: str = "lars") -> page.Row:
    side = "ours" if party.startswith("ours") else "peers"
    return {"area": area, "case": case, "party": party, "side": side, "turn": turn, "start": 0, "seconds": seconds}


@pytest.mark.parametrize(
    ("pairs", "rank", "coverage"), [(6, 1, 0.96875), (9, 2, 0.9609375), (20, 6, 0.95861053), (5, 1, 0.9375)]
)
def test_the_interval_of_a_median_is_that_of_the_sign_test(pairs, rank, coverage):
    """Ranks and coverages of published tables of the sign test (n = 6, 9, 20; five pairs hold no 95 %)."""
    k, found = rank_and_coverage(pairs)
    assert k == rank and math.isclose(found, coverage, abs_tol=1e-8)


def test_the_interval_of_many_pairs_is_that_of_the_normal_curve():
    """k is about (n - 1.96 sqrt(n)) / 2."""
    k, coverage = rank_and_coverage(1000)
    assert abs(k - (1000 - 1.959964 * math.sqrt(1000)) / 2) < 1 and 0.95 <= coverage < 0.956


def test_median_quartiles_and_interval_of_a_ratio_are_those_of_its_pairs():
    ours = [1.0, 2.0, 4.0, 1.0, 2.0, 4.0, 1.0, 2.0, 4.0]  # a machine whose speed changes from turn to turn
    ratios = [1.0, 9.0, 2.0, 8.0, 3.0, 7.0, 4.0, 6.0, 5.0]
    found = paired_ratio([r * o for r, o in zip(ratios, ours, strict=True)], ours)
    assert (found.median, found.lower_quartile, found.upper_quartile) == (5.0, 3.0, 7.0)
    assert (found.low, found.high, found.pairs) == (2.0, 8.0, 9)  # the second lowest and highest of nine
    with pytest.raises(ValueError):
        paired_ratio([1.0], [1.0, 2.0])
    with pytest.raises(ValueError):
        summary([])


@pytest.mark.parametrize(
    ("theirs", "verdict"), [(2.5, "held"), (1.5, "MISSED"), (None, "not measured")], ids=["above", "below", "absent"]
)
def test_what_has_to_hold_is_judged_by_the_lowest_case(theirs, verdict):
    goal = Goal("lars", "ours", "lightly", 2.0, None, "a name")
    rows = [row("ours", 1.0, turn, case) for turn in range(-1, 7) for case in ("easy", "hard")]
    if theirs is not None:
        rows += [
            row("lightly", {"easy": 3.0, "hard": theirs}[case], t, case) for t in range(7) for case in ("easy", "hard")
        ]
        rows.append(row("lightly", 1e9, -1, "hard"))  # a turn of the warm-up
    lines, facts = page.goals(rows, [goal])
    assert lines[-2].endswith(f"| {verdict} |")
    if theirs is not None:
        assert [(f["case"], f["median"], f["held"]) for f in facts] == [("hard", theirs, theirs >= 2.0)]


def test_losses_are_held_against_those_of_the_same_batch_statistics():
    parties = {"ours": "step", areas.JOINED: "step", areas.OURS_WIDE: "same_losses", areas.JOINED_WIDE: "same_losses"}
    rows = [row(party, 1.0, turn, area=area) for turn in range(-2, 3) for party, area in parties.items()]
    for each in rows:
        each |= {"loss": 8.0 - 0.25 * each["turn"] + (each["party"] == areas.OURS_WIDE) / 4, "choices": [1, 2]}
        if each["party"] in (areas.JOINED, areas.JOINED_WIDE) and each["turn"] == 2:
            each |= {"loss": each["loss"] + 0.5, "choices": [1, 3]}
    _, facts = page.same_losses(rows)
    assert [(f["losses"], f["beside"], f["steps"], f["largest_difference"]) for f in facts] == [
        ("ours", "ours", 5, 0.0),
        (areas.JOINED, "ours", 5, 0.5),
        (areas.OURS_WIDE, areas.OURS_WIDE, 5, 0.0),
        (areas.JOINED_WIDE, areas.OURS_WIDE, 5, 0.25),
    ]
    assert facts[1]["same_choices"] == 0.9  # one of ten
    assert "| MISSED |" in page.goals(rows, [])[0][-2]


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ("fma avx512f avx512_bf16", "bf16"),
        ("avx512f amx_bf16", "bf16"),
        ("avx2 avx512f", "AVX-512"),
        ("avx2", "neither"),
    ],
)
def test_the_kind_of_processor_is_read_from_its_flags(tmp_path, flags, kind):
    (tmp_path / "cpuinfo").write_text(
        f"processor\t: 0\nmodel name\t: A Name\nflags\t\t: fpu {flags}\n\nprocessor\t: 1\n"
    )
    found = machine.processor(tmp_path / "cpuinfo")
    assert found["processor"] == "A Name" and found["kind"].startswith(kind)


def test_the_versions_are_those_that_the_interpreter_imports():
    import numpy
    import torch

    found = machine.versions(sys.executable)
    assert found["torch"] == torch.__version__.partition("+")[0] and found["numpy"] == numpy.__version__


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Worker]:
    """A folder of what both sides read, and a worker of ours that goes from area to area."""
    folder = tmp_path_factory.mktemp("bench")
    with pool(OURS, ["ours"]) as workers:
        given = {**TOY["step"].given, "folder": str(folder), "images": None, "count": 16, "prepared": 3}
        workers[0].make("prepare", given)
        told = workers[0].ready().turn("prepare")
        assert told["images"] == 16 and told["kilobytes"] > 10
        yield folder, workers[0]


@pytest.mark.slow
@pytest.mark.parametrize("area", ["data_path", "reading", "sinkhorn", "loss", "lars"])
def test_our_parties_of_an_area_take_their_turns(made, area):
    folder, worker = made
    rows = measure(area, TOY[area], OURS, {"folder": str(folder)}, [worker])
    wanted = {goal.ours for goal in areas.GOALS if goal.area == area}
    assert wanted <= {r["party"] for r in rows} and {r["side"] for r in rows} == {"ours"}
    assert all(r["seconds"] > 0 and r["amount"] >= 1 for r in rows)
    assert {r["turn"] for r in rows} == set(range(-TOY[area].warm_up, TOY[area].turns))


@pytest.mark.slow
def test_our_steps_and_our_whole_run_take_their_turns(made):
    folder, _ = made
    rows = measure("step", TOY["step"], OURS, {"folder": str(folder)})
    assert [r["party"] for r in rows] == ["ours"] * 4 and all(math.isfinite(r["loss"]) and r["peak"] > 0 for r in rows)
    assert len({r["loss"] for r in rows}) == 4  # it learns
    whole = measure("end_to_end", TOY["end_to_end"], OURS, {"folder": str(folder)})
    assert [r["turn"] for r in whole] == [-1, 0, 1] and all(r["seconds"] > 0 and r["amount"] == 8 for r in whole)


def test_a_worker_that_dies_is_told_with_its_last_words():
    with pool(OURS, ["ours"]) as workers:
        workers[0].make("no_such_area", {})
        with pytest.raises(Failed, match="no_such_area"):
            workers[0].ready()


@pytest.mark.slow
def test_without_peers_the_page_has_ours_alone_and_says_so_in_a_line(tmp_path):
    words = ["toy=true", "areas=loss", "peers=no/such/python", f"output={tmp_path / 'page.md'}"]
    ended = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "bench.py"), *words], capture_output=True, text=True, check=True
    )
    assert "no/such/python" in ended.stderr.splitlines()[0]
    assert ended.stdout == (tmp_path / "page.md").read_text()
    lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    facts = lines[0]["measured_on"]
    assert {"date", "processor", "kind", "cores", "commit", "python"} <= facts.keys()
    assert [(one["area"], one["party"]) for one in lines[1:]] == [("loss", "ours")]
    assert "not measured" in ended.stdout and "### Loss" in ended.stdout


def test_a_word_that_is_not_known_or_cannot_be_used_ends_with_78():
    for wrong in (
        "quikc=true",
        "areas=loss,teps",
        f"output={ROOT}",
        f"output={ROOT / 'none' / 'page.md'}",
        f"keep={ROOT}",
    ):
        script = str(ROOT / "benchmarks" / "bench.py")
        ended = subprocess.run([sys.executable, script, wrong], capture_output=True, text=True, check=False)
        assert (
            ended.returncode == 78
            and ended.stdout == ""
            and wrong.partition("=")[2].split(",")[-1] in ended.stderr + wrong
        )


@pytest.mark.slow
@pytest.mark.skipif(not PEERS.exists(), reason="the peers of make bench are not installed")
def test_the_peers_take_their_turns_and_lose_and_balance_as_we_do(made):
    """The same scores, codes, weights and crops go in on both sides; what comes out are equal losses."""
    folder, _ = made
    both = {**OURS, "peers": str(PEERS)}
    with pool(both, ["ours", "peers"]) as workers:
        for area in ("data_path", "reading", "lars"):
            rows = measure(area, TOY[area], both, {"folder": str(folder)}, workers)
            theirs = {goal.theirs for goal in areas.GOALS if goal.area == area}
            assert theirs <= {r["party"] for r in rows if r["side"] == "peers"}
        for area, value in (("sinkhorn", "sum"), ("loss", "loss")):
            rows = measure(area, TOY[area], both, {"folder": str(folder)}, workers)
            found = {r["party"]: r[value] for r in rows}
            assert math.isclose(found["ours"], found["lightly"], rel_tol=1e-4)
    rows = measure("step", TOY["step"], both, {"folder": str(folder)})
    first = {r["party"]: r for r in rows if r["turn"] == -2}
    assert abs(first["ours"]["loss"] - first[areas.JOINED]["loss"]) < 1e-4
    assert {r["party"] for r in rows} == {"ours", areas.LOOP, areas.JOINED}
    rows = measure("same_losses", TOY["same_losses"], both, {"folder": str(folder)})
    wide = [[r["loss"] for r in rows if r["party"] == party] for party in (areas.OURS_WIDE, areas.JOINED_WIDE)]
    assert len(wide[0]) == 4 and max(abs(a - b) for a, b in zip(*wide, strict=True)) < 1e-5


@pytest.mark.parametrize("brief", [True, False])
def test_each_start_that_is_measured_has_one_of_ours_in_its_case(brief):
    both = commands({**OURS, "peers": str(PEERS)}, brief)
    assert {case for case, _, _, _ in both} == {case for case, party, _, _ in both if party == "ours"}
