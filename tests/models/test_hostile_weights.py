"""A file of weights runs nothing, whatever its pickle asks for, and though names of other trainers' types are known."""

import argparse
import builtins
import contextlib
import io
import os
import pickle
import types
import zipfile
from pathlib import Path, PosixPath

import numpy as np
import pytest
import torch

from seer.core.errors import RequestError
from seer.models.foreign_containers import read_checkpoint
from seer.models.inert_types import ALLOWED, Inert, empty_dict
from seer.models.pretrained import load_backbone
from tests.messages import naming
from tests.models import foreign_files as foreign


class Calls:
    """Pickles as a call of `function`, with the state and the entries that follow."""

    def __init__(self, function, arguments, *rest):
        self.reduced = (function, arguments, *rest)

    def __reduce__(self):
        return self.reduced


def touching(trap: Path) -> str:
    return f"open({str(trap)!r}, 'w').close()"


def payloads(trap: Path) -> dict[str, object]:
    """Name -> an object that makes the file `trap` when an unrestricted reader has loaded it."""
    touch = f"touch {trap}"
    objects = np.empty(1, dtype=object)
    objects[0] = Calls(os.system, (touch,))
    return {
        "os.system": Calls(os.system, (touch,)),
        "builtins.eval": Calls(builtins.eval, (touching(trap),)),
        "builtins.exec": Calls(builtins.exec, (touching(trap),)),
        "in a numpy array of objects": objects,
        "in a Namespace": argparse.Namespace(lr=1, evil=Calls(os.system, (touch,))),
        "in the state of a path": Calls(PosixPath, ("a",), {"x": Calls(os.system, (touch,))}),
        "as the function of torch's own rebuilding": Calls(
            torch._tensor._rebuild_from_type_v2, (os.system, torch.Tensor, (touch,), {})
        ),
    }


def raw(path: Path, pickled: bytes) -> Path:
    """Writes a file of torch.save whose pickle is this one."""
    torch.save({"a": torch.zeros(1)}, path)
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, pickled if name.endswith("/data.pkl") else content)
    return path


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", payloads(Path("x")))
def test_a_payload_beside_good_weights_runs_nothing(tmp_path, name, legacy):
    trap, path = tmp_path / "trap", tmp_path / "w.pth"
    content = {"state_dict": foreign.named("timm"), "args": payloads(trap)[name]}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(RequestError) as caught:
        load_backbone(path)
    assert not trap.exists()
    assert "\x1b" not in str(caught.value)
    with contextlib.suppress(TypeError, AttributeError, RuntimeError):  # after it has run
        torch.load(path, weights_only=False)
    assert trap.exists(), "the trap itself must work, or this test shows nothing"


def test_a_chain_of_getattr_runs_nothing(tmp_path):
    """{"args": getattr(__import__("os"), "system")(command)}, in opcodes, as no object pickles so."""
    trap = tmp_path / "trap"
    module = b"c__builtin__\n__import__\n(" + text("os") + b"tR"
    function = b"cbuiltins\ngetattr\n(" + module + text("system") + b"tR"
    pickled = b"\x80\x02}(" + text("args") + function + b"(" + text(f"touch {trap}") + b"tRu."
    path = raw(tmp_path / "w.pth", pickled)
    with pytest.raises(RequestError, match=naming("w.pth", "getattr")):
        load_backbone(path)
    assert not trap.exists()
    assert pickle.loads(pickled) == {"args": 0} and trap.exists(), "the trap itself must work"


def opcodes(module: str, name: str, arguments: bytes, state: bytes) -> bytes:
    """Returns the pickle of {"a": module.name(*arguments) with this state}."""
    return b"\x80\x02}(X\x01\x00\x00\x00ac" + f"{module}\n{name}\n".encode() + arguments + b"R" + state + b"bu."


def text(words: str) -> bytes:
    return b"X" + len(words).to_bytes(4, "little") + words.encode()


@pytest.mark.parametrize(("module", "name"), [full.rpartition(".")[::2] for _, full in ALLOWED])
def test_a_listed_name_can_be_called_and_given_a_state_and_nothing_comes_of_it(tmp_path, module, name):
    """The trick: the state names methods and attributes that a reader, or this program, would use later."""
    state = b"}(" + text("__setstate__") + text("x") + text("__class__") + text("x") + text("numel") + text("y") + b"u"
    plain = raw(tmp_path / "w.pth", opcodes(module, name, b"(" + text("argument") + b"t", state))
    try:
        top, _ = read_checkpoint(plain)
    except RequestError:  # a dict takes neither such an argument nor a state
        assert (dict, f"{module}.{name}") in ALLOWED or (empty_dict, f"{module}.{name}") in ALLOWED
        return
    assert isinstance(top["a"], Inert) and not hasattr(top["a"], "__dict__") and not hasattr(top["a"], "numel")
    assert type(top["a"]).__setstate__ is Inert.__setstate__


def test_nothing_on_the_list_is_the_type_of_its_name():
    for made, name in ALLOWED:
        assert made in (dict, empty_dict) or (isinstance(made, type) and issubclass(made, Inert)), name
        assert isinstance(made, type | types.FunctionType)
        if isinstance(made, type) and made is not dict:
            assert set(vars(made)) <= {"__slots__", "__module__", "__doc__", "__static_attributes__", "__firstlineno__"}
    assert vars(empty_dict(list, 3)) if hasattr(empty_dict(list, 3), "__dict__") else empty_dict(list, 3) == {}


@pytest.mark.parametrize(
    "name", ["os.system", "posix.system", "builtins.eval", "builtins.exec", "builtins.getattr", "builtins.__import__",
             "builtins.setattr", "operator.attrgetter", "functools.partial", "subprocess.Popen", "codecs.decode",
             "numpy.load", "numpy.f2py.crackfortran.myeval", "torch.load", "torch.hub.load", "pickle.loads", "runpy.run_path"],
)  # fmt: skip
def test_what_runs_code_is_not_listed_and_is_refused_by_its_name(tmp_path, name):
    assert name not in {full for _, full in ALLOWED}
    module, _, function = name.rpartition(".")
    file = raw(tmp_path / "w.pth", opcodes(module, function, b"(" + text("1") + b"t", b"}"))
    with pytest.raises(RequestError, match=function):
        read_checkpoint(file)


def test_the_list_is_not_left_behind_in_torch(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    torch.save({"args": argparse.Namespace(a=1), "state_dict": foreign.named("timm")}, tmp_path / "w.pth")
    load_backbone(tmp_path / "w.pth")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "w.pth", weights_only=True)


def test_bytes_at_random_never_do_more_than_a_refusal(tmp_path):
    buffer = io.BytesIO()
    torch.save({"args": argparse.Namespace(a=1), "x": np.arange(3), "state_dict": {"w": torch.zeros(2)}}, buffer)
    sound = buffer.getvalue()
    generator = np.random.default_rng(0)
    path = tmp_path / "w.pth"
    for _ in range(300):
        broken = bytearray(sound)
        for place in generator.integers(0, len(sound), 4):
            broken[place] = generator.integers(256)
        path.write_bytes(bytes(broken[: generator.integers(1, len(sound) + 1)] if generator.random() < 0.3 else broken))
        try:
            read_checkpoint(path)
        except RequestError as error:
            assert str(path) in str(error)
