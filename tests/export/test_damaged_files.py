"""Weights that were cut or altered after they were written are refused, in every format and by every verb that reads them."""

import hashlib
import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from seer.core.errors import BadDataError
from seer.export import checked_folder, parity, to_safetensors, to_timm, to_torchvision
from seer.models.bundle import write_bundle
from seer.models.pretrained import load_backbone
from seer.models.stored_hash import beside
from seer.models.zoo import build
from tests.export.test_export import drawn, small
from tests.messages import says
from tests.program import seer

pytestmark = pytest.mark.slow

HASHES = re.compile(r"sha256 ([0-9a-f]{12})….*? says ([0-9a-f]{12})…")


def as_bundle(folder: Path) -> Path:
    return write_bundle(folder, small(), card={"input_size": 32}) / "backbone.safetensors"


def as_torchvision(folder: Path) -> Path:
    return Path(to_torchvision.export(small(), {}, folder, drawn(0, 1))["file"])


def as_folder(folder: Path) -> Path:
    """A folder of another library, in names of ours; that library looks for itself in its own tests."""
    model = small()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = parity.reference(model, drawn(0, 1))
    checked_folder.write_checked(folder, state, {}, lambda _: expected, expected, tolerance=0, what="nothing")
    return folder / "model.safetensors"


FORMATS = {"bundle": as_bundle, "torchvision": as_torchvision, "folder": as_folder}


def flip(file: Path) -> None:
    """Flips the lowest bit of a number's mantissa, amid the numbers: no shape and no finiteness tells of it."""
    data = bytearray(file.read_bytes())
    at = len(data) // 2 // 64 * 64
    data[at] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("place", ["file", "folder"])
@pytest.mark.parametrize("form", FORMATS)
def test_a_flipped_bit_is_refused_by_the_hash(tmp_path, form, place):
    file = FORMATS[form](tmp_path / "out")
    given = file if place == "file" or form == "torchvision" else file.parent
    before = load_backbone(given).state_dict()
    flip(file)
    with pytest.raises(BadDataError) as refused:
        load_backbone(given)
    found, wanted = HASHES.search(str(refused.value)).groups()
    assert found != wanted and says(str(refused.value), file, "copy")
    flip(file)
    assert all(torch.equal(one, before[name]) for name, one in load_backbone(given).state_dict().items())


@pytest.mark.parametrize("form", FORMATS)
def test_a_cut_file_is_refused(tmp_path, form):
    file = FORMATS[form](tmp_path / "out")
    os.truncate(file, file.stat().st_size - 1000)
    with pytest.raises((BadDataError, ValueError), match=re.escape(str(file))):
        load_backbone(file)


@pytest.mark.parametrize("form", FORMATS)
def test_export_ends_with_65_and_writes_nothing(tmp_path, capfd, form):
    file = FORMATS[form](tmp_path / "out")
    flip(file)
    ended = seer(capfd, "export", f"weights={file}", "to=safetensors", f"output={tmp_path / 'again'}", "pictures=1")
    assert ended.status == 65 and says(ended.result["error"], file, "sha256") and not (tmp_path / "again").exists()


def test_evaluate_of_a_damaged_bundle_ends_with_65(tmp_path, capfd):
    flip(as_bundle(tmp_path / "out"))
    words = ("eval=rankme", f"weights={tmp_path / 'out'}", "data.train=sample", f"output={tmp_path / 'judged'}")
    ended = seer(capfd, "evaluate", *words)
    assert ended.status == 65 and "sha256" in ended.result["error"]


def test_files_without_a_hash_load_as_before(tmp_path):
    bundle, pth = as_bundle(tmp_path / "bundle"), as_torchvision(tmp_path / "pth")
    with safe_open(bundle, framework="pt") as opened:
        old = {key: value for key, value in opened.metadata().items() if key in ("format", "seer-bundle")}
    state = load_file(bundle)
    next(iter(state.values())).mul_(2)
    save_file({name: tensor.clone() for name, tensor in state.items()}, bundle, metadata=old)
    whole = load_backbone(pth).state_dict()
    beside(pth).unlink()
    name, doubled = next(iter(state.items()))
    assert torch.equal(load_backbone(bundle).state_dict()[name], doubled)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in load_backbone(pth).state_dict().items())


@pytest.mark.parametrize("text", ["[]", "no JSON", '{"format": "of another program", "sha256": "0"}'])
def test_json_of_others_beside_a_file_is_not_asked(tmp_path, text):
    pth = as_torchvision(tmp_path / "pth")
    whole = load_backbone(pth).state_dict()
    beside(pth).write_text(text)
    flip(pth)
    found = load_backbone(pth).state_dict()
    assert not all(torch.equal(found[name], tensor) for name, tensor in whole.items())  # the flipped file was read


def test_the_hash_of_a_torchvision_file_is_that_of_its_bytes(tmp_path):
    pth = as_torchvision(tmp_path / "pth")
    told = json.loads(beside(pth).read_text())
    assert told["sha256"] == hashlib.sha256(pth.read_bytes()).hexdigest()
    assert told["bytes"] == pth.stat().st_size and told["file"] == pth.name


def test_timm_loads_a_file_with_a_hash_and_a_bundle_of_it_keeps_the_features(tmp_path):
    pytest.importorskip("timm")
    to_timm.export(build("regnety_200mf"), {"input_size": 32}, tmp_path / "timm", drawn(0, 2, 32))
    backbone = load_backbone(tmp_path / "timm")
    assert to_safetensors.export(backbone, {}, tmp_path / "bundle", drawn(0, 2, 32))["parity"] == 0
    flip(tmp_path / "timm" / "model.safetensors")
    with pytest.raises(BadDataError):
        load_backbone(tmp_path / "timm")
