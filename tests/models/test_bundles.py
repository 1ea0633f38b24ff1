"""Bundles of the first version load for ever, and those with heads keep each in a file that is held to its hash.

`bundles_1` was written by the code of commit d7ff748 from drawn images: a run of four steps, a network of stride 1 with pixels
of its own, one with a licence and a caution. `features.json` holds what that code then made of `grid()`, to seven digits.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from seer.models.bundle import card_of, plain, read_bundle, read_heads, write_bundle
from seer.models.head_files import HeadCard, hash_of_tensors, stored
from seer.models.multi_head import MultiHead
from seer.models.pretrained import load_backbone
from seer.models.regnet import RegNet

OLD = Path(__file__).parent / "bundles_1"
CARDS = {
    "classify": HeadCard("classify", (), (16,), 3, ("a", "b", "ü")),
    "tags": HeadCard("tags", ("stage1",), (8,), 2, ("c", "d"), (0.5, 0.25)),
    "depth": HeadCard("regress", (), (16,), 4),
    "things": HeadCard("map", ("stage1",), (8,), 2, ("x", "y"), None, 8),
    "boxes": HeadCard("detect", ("stage1", "stage2"), (8, 16), 1, ("cell",), None, 8),
}


def grid(channels: int = 3) -> torch.Tensor:
    return (torch.arange(2 * channels * 32 * 32).reshape(2, channels, 32, 32) % 97).float() / 97 - 0.5


def network(seed: int = 0) -> RegNet:
    torch.manual_seed(seed)
    return RegNet(widths=[8, 16], depths=[1, 1], group_widths=[8, 8], stem_width=8).eval()


def written(folder: Path, names: tuple[str, ...] = tuple(CARDS), **more) -> tuple[RegNet, dict]:
    """A bundle with heads of random weights; the backbone and the heads that were written."""
    backbone = network()
    stands_on = hash_of_tensors(backbone.state_dict())
    made = {name: CARDS[name].build().eval() for name in names}
    heads = {
        name: stored(CARDS[name], {k: plain(v) for k, v in head.state_dict().items()}, backbone=stands_on)
        for name, head in made.items()
    }
    write_bundle(folder, backbone, card={"images_seen": 1}, heads=heads, **more)
    return backbone, made


def said(answer) -> list[torch.Tensor]:
    return list(answer) if isinstance(answer, tuple) else [answer]


@pytest.mark.parametrize("name", ["run", "small", "imported"])
def test_bundles_of_the_first_version_load_and_compute_what_they_did(name):
    backbone, described = read_bundle(OLD / name)
    assert described["version"] == 1 and read_heads(OLD / name) == {}
    expected = torch.tensor(json.loads((OLD / "features.json").read_text())[name])
    with torch.no_grad():
        assert (backbone(grid()) - expected).abs().max() < 1e-5
    card, architecture = card_of(described), backbone.architecture
    assert {
        "run": card["step"] == 4
        and card["images_seen"] == 64
        and json.loads(card["recipe"])["model.widths"] == [8, 16],
        "small": card["mean"] == [0.4] * 3 and card["input_size"] == 32 and architecture["stem_stride"] == 1,
        "imported": card["licence"] == "of the test" and card["caution"] == "drawn" and architecture["se_ratio"] == 0.5,
    }[name]
    assert (load_backbone(OLD / name / "backbone.safetensors").state_dict()["stem.conv.weight"]).shape[0] == 8


def test_a_bundle_without_heads_stays_of_the_first_version(tmp_path):
    write_bundle(tmp_path, network(), card={"mean": [0.4] * 3, "std": [0.25] * 3, "input_size": 32})
    old, new = (json.loads((folder / "bundle.json").read_text()) for folder in (OLD / "small", tmp_path))
    assert list(old) == [*new] and new["version"] == 1 and sorted(p.name for p in tmp_path.iterdir()) == [
        "backbone.safetensors", "bundle.json",
    ]  # fmt: skip


def test_heads_come_back_to_the_bit_and_answer_as_before(tmp_path):
    backbone, made = written(tmp_path, parent="abc")
    stored_heads = read_heads(tmp_path)
    assert list(stored_heads) == list(CARDS) and {n: head.card for n, head in stored_heads.items()} == CARDS
    loaded, described = read_bundle(tmp_path)
    again = MultiHead(loaded, {name: head.build() for name, head in stored_heads.items()}).eval()
    with torch.no_grad():
        before, after = MultiHead(backbone, made).eval()(grid()), again(grid())
    assert all(torch.equal(a, b) for name in CARDS for a, b in zip(said(before[name]), said(after[name]), strict=True))
    # the file alone, and load_backbone, know nothing of heads
    assert torch.equal(load_backbone(tmp_path)(grid()), backbone(grid()))
    with safe_open(tmp_path / "backbone.safetensors", "pt") as opened:
        assert json.loads(opened.metadata()["seer-bundle"])["version"] == 1
    assert described["version"] == 2 and described["lineage"] == {
        "file": hashlib.sha256((tmp_path / "backbone.safetensors").read_bytes()).hexdigest(),
        "backbone": hash_of_tensors(backbone.state_dict()),
        "parent": "abc",
    }


def test_a_head_that_is_added_leaves_the_files_of_the_others_alone(tmp_path):
    written(tmp_path / "first", ("classify", "things"))
    kept, backbone = read_heads(tmp_path / "first"), network()
    head = stored(CARDS["boxes"], CARDS["boxes"].build().state_dict(), backbone=hash_of_tensors(backbone.state_dict()))
    write_bundle(tmp_path / "second", backbone, card={"step": 7}, heads={**kept, "boxes": head})
    assert list(read_heads(tmp_path / "second")) == ["classify", "things", "boxes"]
    for file in (tmp_path / "first" / "heads").iterdir():
        assert (tmp_path / "second" / "heads" / file.name).read_bytes() == file.read_bytes()


def test_a_head_of_another_backbone_is_refused(tmp_path):
    written(tmp_path / "first", ("classify",))
    with pytest.raises(ValueError) as caught:
        write_bundle(tmp_path / "second", network(seed=1), card={}, heads=read_heads(tmp_path / "first"))
    assert "classify" in str(caught.value) and not (tmp_path / "second").exists()


def test_heads_that_are_gone_leave_no_files(tmp_path):
    written(tmp_path, ("classify", "tags"))
    written(tmp_path, ("tags",))
    assert sorted(path.name for path in (tmp_path / "heads").iterdir()) == ["tags.json", "tags.safetensors"]
    write_bundle(tmp_path, network(), card={})
    assert read_heads(tmp_path) == {} and not (tmp_path / "heads").exists()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    "damage, kind",
    [
        (lambda f: flip(f / "heads" / "tags.safetensors"), ValueError),
        (lambda f: flip(f / "heads" / "tags.json"), ValueError),
        (lambda f: (f / "heads" / "tags.safetensors").unlink(), FileNotFoundError),
        (lambda f: (f / "heads" / "tags.json").unlink(), FileNotFoundError),
        (lambda f: shutil.copy(f / "heads" / "depth.safetensors", f / "heads" / "tags.safetensors"), ValueError),
    ],
)
def test_a_damaged_head_is_refused_by_its_hash_and_the_backbone_still_loads(tmp_path, damage, kind):
    backbone, _ = written(tmp_path)
    damage(tmp_path)
    with pytest.raises(kind) as caught:
        read_heads(tmp_path)
    assert "tags" in str(caught.value)
    assert torch.equal(load_backbone(tmp_path)(grid()), backbone(grid()))


def test_heads_beside_another_backbone_or_without_their_list_are_refused(tmp_path):
    written(tmp_path)
    write_bundle(tmp_path / "other", network(seed=1), card={})
    shutil.copy(tmp_path / "other" / "backbone.safetensors", tmp_path / "backbone.safetensors")
    with pytest.raises(ValueError):
        read_heads(tmp_path)
    (tmp_path / "bundle.json").unlink()
    with pytest.raises(FileNotFoundError):
        read_heads(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "shell"}, {"outputs": 10**12}, {"outputs": True}, {"features": [16, 16]}, {"stages": ["../x"]},
        {"classes": ["a"]}, {"thresholds": [0.5, 2]}, {"outputs": 3}, {"version": 9},
    ],
)  # fmt: skip
def test_descriptions_that_make_no_head_or_another_one_are_refused(tmp_path, change):
    written(tmp_path, ("tags",))
    file = tmp_path / "heads" / "tags.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    listed = json.loads((tmp_path / "bundle.json").read_text())
    listed["heads"]["tags"]["description"] = hashlib.sha256(file.read_bytes()).hexdigest()  # whoever made it knows how
    (tmp_path / "bundle.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError):
        read_heads(tmp_path)
