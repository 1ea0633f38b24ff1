"""A file that is no checkpoint is told for what it is, and nothing that was not checked is said of it."""

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from seer.models.file_kinds import kind_of
from seer.models.pretrained import load_backbone
from tests.messages import naming
from tests.models import foreign_files as foreign
from tests.models.test_trainers import gives

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 12345\n"


def image(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, kind)
    return buffer.getvalue()


def saved() -> bytes:
    buffer = io.BytesIO()
    torch.save(foreign.named("timm"), buffer)
    return buffer.getvalue()


def packed(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("model.pth", saved())
    elif kind == "npz":
        np.savez(buffer, a=np.zeros(2))
    elif kind == "npy":
        np.save(buffer, np.zeros(2))
    elif kind == "torchscript":
        torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), buffer)
    else:
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            entry = tarfile.TarInfo("model.pth")
            entry.size = len(saved())
            archive.addfile(entry, io.BytesIO(saved()))
    return buffer.getvalue()


KINDS = {
    "git-lfs": (lambda: LFS, ("git-lfs", "git lfs pull")),
    "HTML": (lambda: b"<!DOCTYPE html>\n<html><head><title>404</title>", ("HTML", "fetch")),
    "HTML without its type": (lambda: b"\n <HTML><body>Not found", ("HTML", "fetch")),
    "JSON": (lambda: json.dumps({"error": "Entry not found"}).encode(), ("JSON",)),
    "long JSON": (lambda: json.dumps({"a": ["é" * 7] * 4000}).encode(), ("JSON",)),
    "text": (lambda: b"checkpoint moved to elsewhere\nplease ask\n", ("text", "checkpoint moved")),
    "empty": (lambda: b"", ("empty", "0 bytes")),
    "gzip": (lambda: gzip.compress(saved()), ("gzip", "unpack")),
    "tar": (lambda: packed("tar"), ("tar", "unpack")),
    "zip": (lambda: packed("zip"), ("zip", "'model.pth'", "unpack")),
    "npz": (lambda: packed("npz"), ("numpy",)),
    "npy": (lambda: packed("npy"), ("numpy",)),
    "TorchScript": (lambda: packed("torchscript"), ("TorchScript", "state_dict")),
    "JPEG": (lambda: image("JPEG"), ("JPEG",)),
    "PNG": (lambda: image("PNG"), ("PNG",)),
    "WebP": (lambda: image("WEBP"), ("WebP",)),
    "PDF": (lambda: b"%PDF-1.7\n%\xe2\xe3", ("PDF",)),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n\x00\x00", ("HDF5", "Keras")),
    "cut": (lambda: saved()[:5000], ("cut off",)),
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".bin"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_no_checkpoint_is_told_for_what_it_is(tmp_path: Path, kind, ending):
    make, words = KINDS[kind]
    path = tmp_path / f"w{ending}"
    path.write_bytes(make())
    with pytest.raises(ValueError, match=naming(path, *words)) as caught:
        load_backbone(path)
    said = str(caught.value)
    assert "run code" not in said and "RegNetY" not in said and "weights_only" not in said and "\x1b" not in said


def test_a_file_of_weights_is_of_no_other_kind(tmp_path):
    for legacy in (False, True):
        torch.save(foreign.named("timm"), tmp_path / "w", _use_new_zipfile_serialization=not legacy)
        assert kind_of(tmp_path / "w") is None
    save_file(foreign.named("timm"), tmp_path / "w")
    assert kind_of(tmp_path / "w") is None


def test_bytes_that_nobody_knows_are_not_guessed_at(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(bytes(range(255, 0, -1)) * 9)
    assert kind_of(path) is None
    with pytest.raises(ValueError, match=naming(path)) as caught:
        load_backbone(path)
    assert "run code" not in str(caught.value)


@pytest.mark.parametrize("ending", [".pth", ".bin", ".safetensors", ".ckpt", ""])
@pytest.mark.parametrize("safe", [False, True])
def test_the_first_bytes_say_what_a_file_is_and_not_its_name(tmp_path, safe, ending):
    path = tmp_path / f"w{ending}"
    save_file(foreign.named("timm"), path) if safe else torch.save(foreign.named("timm"), path)
    assert gives(load_backbone(path), foreign.weights())
