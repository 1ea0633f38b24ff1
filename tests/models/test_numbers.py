"""Weights without usable numbers are refused in the same words, wherever they are read."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from seer.export import to_safetensors, to_torchvision
from seer.models.bundle import write_bundle
from seer.models.numbers import UnusableNumbersError, check_numbers
from seer.models.pretrained import load_backbone
from seer.models.zoo import build
from seer.run import weights as run_weights
from tests.messages import naming
from tests.models import foreign_files as foreign

KEY = "trunk_output.block2.block2-1.f.b.0.weight"


def poisoned(value: float):
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[3] = value
        return tensor

    return change


FAULTS = {
    "NaN": (poisoned(float("nan")), "1 NaN of"),
    "inf": (poisoned(float("inf")), "1 infinite of"),
    "half": (lambda t: poisoned(float("-inf"))(t.half()), "1 infinite of"),
    "meta": (lambda t: t.to("meta"), "meta device"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_with_one_bad_tensor_is_refused_by_its_name(tmp_path, fault):
    change, words = FAULTS[fault]
    state = foreign.named("torchvision")
    torch.save(
        {f"backbone.{key}": change(value) if key == KEY else value for key, value in state.items()}, tmp_path / "w.pth"
    )
    with pytest.raises(
        UnusableNumbersError, match=naming("w.pth", f"1 of {len(state)}", f"backbone.{KEY}", words)
    ) as caught:
        load_backbone(tmp_path / "w.pth")
    assert caught.value.exit_status == 78


@pytest.mark.parametrize("change", [lambda t: t.int(), lambda t: t > 0, lambda t: t[:0], lambda t: t.numpy()])
def test_integers_switches_nothing_and_arrays_are_refused_by_name(tmp_path, change):
    state = foreign.named("torchvision")
    torch.save(state | {KEY: change(state[KEY])}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=naming("w.pth", KEY)) as caught:
        load_backbone(tmp_path / "w.pth")
    assert re.search(r"int32|bool|\[0, |numpy\.ndarray", str(caught.value))


def fault(path: Path, read) -> str:
    with pytest.raises(UnusableNumbersError) as caught:
        read(str(path))
    return str(caught.value).split(" cannot be used, ")[1]


def test_warm_start_evaluation_and_every_kind_of_file_say_the_same(tmp_path):
    model = build("regnety_200mf")
    with torch.no_grad():
        model.stage1.block0.a.conv.weight[0] = float("nan")
    torch.save(model.state_dict(), tmp_path / "w.pth")
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    write_bundle(tmp_path / "bundle", model, card={})
    write_bundle(tmp_path / "run" / "bundle", model, card={})
    colors = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    said = set()
    for place in ("w.pth", "w.safetensors", "bundle", "run"):
        for read in (
            load_backbone,
            run_weights.state,
            lambda p: run_weights.start_from(p, build("regnety_200mf"), **colors),
        ):
            said.add(fault(tmp_path / place, read))
    images = torch.zeros(1, 3, 64, 64)
    for exporter in (to_safetensors, to_torchvision):
        said.add(fault(tmp_path / "out", lambda p, e=exporter: e.export(model.eval(), {}, Path(p), images)))
    assert len(said) == 1 and "stage1.block0.a.conv.weight" in said.pop() and not (tmp_path / "out").exists()


def test_sound_numbers_of_every_floating_type_pass():
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
    check_numbers({str(kind): torch.ones(3).to(kind) for kind in kinds} | {"count": torch.tensor(3)}, what="these")
    largest = {str(kind): torch.full((9,), torch.finfo(kind).max, dtype=kind) for kind in kinds}  # whose sum is none
    check_numbers(largest, what="these")


def test_a_tensor_without_elements_is_told():
    with pytest.raises(UnusableNumbersError, match=naming("a", "empty", "[0, 3]")):
        check_numbers({"a": torch.zeros(0, 3)}, what="these")
