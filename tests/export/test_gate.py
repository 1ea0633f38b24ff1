"""An export above its budget does not appear, and the refusal names the limit, the value and the nearest row that fits."""

import json
from pathlib import Path

import pytest
import torch

from seer.core.budget import Budget
from seer.export import gate
from seer.models.bundle import read_bundle, write_bundle
from seer.models.zoo import build
from tests.messages import naming, says
from tests.program import seer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bundle")
    return write_bundle(folder / "w", build("regnety_400mf"), card={"input_size": 64})


def words(bundle: Path, *more: str) -> list[str]:
    return ["export", f"weights={bundle}", "pictures=1", *more]


def test_a_file_above_the_limit_is_refused_and_nothing_is_left(capfd, bundle, tmp_path):
    (tmp_path / "there").mkdir()
    wanted = words(bundle, "to=torch_export", f"output={tmp_path / 'there' / 'a' / 'b'}", "budget=phone_5mb")
    ended = seer(capfd, *wanted)
    assert ended.status == 78
    assert says(ended.words, "budget.file_mb=5", "regnety_200mf", "int8", 3.05)
    found = ended.result["budget"]
    (row,) = [row for row in found["limits"] if row["limit"] == "file_mb"]
    assert row["most"] == 5 and row["value"] == pytest.approx(16.2, abs=0.6) and row["ok"] is False
    assert [(one["name"], one["form"]) for one in found["nearest"]] == [
        ("this network", "int8"),
        ("regnety_200mf", "int8"),
    ]
    assert list((tmp_path / "there").iterdir()) == [] and [p.name for p in tmp_path.iterdir()] == ["there"]


def test_the_nearest_row_in_the_same_form_comes_first(capfd, bundle, tmp_path):
    ended = seer(capfd, *words(bundle, "to=safetensors", f"output={tmp_path / 'b'}", "budget.file_mb=13"))
    assert ended.status == 78 and not (tmp_path / "b").exists()
    nearest = ended.result["budget"]["nearest"]
    assert {"name": "regnety_200mf", "form": "float32", "file_mb": 11.19} in nearest


def test_what_needs_no_file_is_refused_before_one_is_written(capfd, bundle, tmp_path, monkeypatch):
    from seer.cli import export

    monkeypatch.setitem(export.PROGRAMS, "torch_export", lambda *given: pytest.fail("it was exported"))
    limits = ["budget.macs_m=10", "budget.parameters_m=20"]
    ended = seer(capfd, *words(bundle, "to=torch_export", f"output={tmp_path / 'c'}", *limits))
    assert ended.status == 78 and says(ended.words, "budget.macs_m=10", "raise the limit")
    assert "parameters_m" not in ended.words and not (tmp_path / "c").exists()


def test_an_export_within_its_budget_lies_where_it_would_lie_and_says_so(capfd, bundle, tmp_path):
    place = tmp_path / "new" / "out"
    ended = seer(capfd, *words(bundle, "to=torch_export", f"output={place}", "budget.file_mb=17", "budget.rss_mb=1"))
    assert ended.status == 0, ended.words
    assert sorted(p.name for p in place.iterdir()) == ["model.pt2", "model.pt2.json"]
    assert ended.result["file"] == str(place / "model.pt2")
    assert ended.result["described"] == str(place / "model.pt2.json")
    found = ended.result["budget"]
    assert found["pass"] is None and [row["ok"] for row in found["limits"]] == [True, None]
    size = (place / "model.pt2").stat().st_size
    assert found["limits"][0]["value"] == size / 1e6
    assert json.loads((place / "model.pt2.json").read_text())["bytes"] == size
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out"]


def test_without_limits_the_export_is_as_ever(capfd, bundle, tmp_path):
    ended = seer(capfd, *words(bundle, "to=safetensors", f"output={tmp_path / 'd'}"))
    assert ended.status == 0 and "budget" not in ended.result
    card = (tmp_path / "d" / "README.md").read_text()
    assert says(card, "3,903,144", "4.23 MB", "15.63 MB")


def test_of_all_targets_those_above_the_limit_are_told(capfd, bundle, tmp_path):
    ended = seer(capfd, *words(bundle, "to=all", f"output={tmp_path / 'all'}", "budget.file_mb=15.8"))
    assert ended.status == 78
    rows = ended.result["targets"]
    assert (
        says(rows["torch_export"]["error"], "budget.file_mb=15.8") and not (tmp_path / "all" / "torch_export").exists()
    )
    assert rows["safetensors"]["budget"]["pass"] is True


def test_the_arena_is_that_which_the_description_tells(bundle, tmp_path):
    """ExecuTorch plans it; the two numbers are of two pools of memory."""
    backbone, _ = read_bundle(bundle)

    def write(place: Path) -> dict[str, str]:
        place.mkdir(parents=True)
        (place / "m.pte").write_bytes(bytes(100))
        (place / "m.pte.json").write_text(
            json.dumps({"arena_bytes": [0, 3_000_000, 500_000], "cost": {"parameters": 7, "macs": 9}})
        )
        return {"file": str(place / "m.pte"), "described": str(place / "m.pte.json")}

    found = gate.write_within(Budget(arena_mb=3.5), tmp_path / "a", write, backbone.architecture, 64)
    assert found["budget"]["limits"] == [{"limit": "arena_mb", "most": 3.5, "value": 3.5, "ok": True}]
    with pytest.raises(gate.OverBudgetError, match=naming("arena_mb", 3.5, 3)):
        gate.write_within(Budget(arena_mb=3), tmp_path / "b", write, backbone.architecture, 64)
    assert [one.name for one in tmp_path.iterdir()] == ["a"]


def test_a_program_that_is_cut_to_what_its_heads_read_is_judged_by_its_own_costs(bundle, tmp_path):
    """The whole network has 3.9 M parameters; what is written, of earlier stages alone, says that it has fewer."""
    backbone, _ = read_bundle(bundle)

    def write(place: Path) -> dict[str, str]:
        place.mkdir(parents=True)
        (place / "m.pt2").write_bytes(bytes(100))
        (place / "m.pt2.json").write_text(json.dumps({"cost": {"parameters": 400_000, "macs": 9}}))
        return {"file": str(place / "m.pt2"), "described": str(place / "m.pt2.json")}

    given = (Budget(parameters_m=1), tmp_path / "a", write, backbone.architecture, 64)
    found = gate.write_within(*given, whole=False)
    assert found["budget"]["limits"] == [{"limit": "parameters_m", "most": 1, "value": 0.4, "ok": True}]
    with pytest.raises(gate.OverBudgetError, match=naming("parameters_m", 3.903)):
        gate.write_within(*given)
