"""`_target_` finds public classes and functions of SEER and of torch's optimizers, and nothing else runs."""

import importlib
import os

import pytest
import torch

from seer.core import build as module
from seer.core.build import PLACES, allow, build, check_targets, find
from seer.core.errors import RequestError
from seer.data.multicrop import MultiCrop
from seer.optim.lars import LARS


@pytest.mark.parametrize(
    ("group", "target", "expected"),
    [
        ("optim", "torch.optim.SGD", torch.optim.SGD),
        ("optim", "torch.optim.adamw.AdamW", torch.optim.AdamW),
        ("optim", "seer.optim.lars.LARS", LARS),
        ("augment", "seer.data.multicrop.MultiCrop", MultiCrop),
    ],
)
def test_public_classes_and_functions_are_found_in_the_places_of_their_group(group, target, expected):
    assert find(group, target) is expected
    for other in set(PLACES) - {group}:
        with pytest.raises(RequestError) as caught:
            find(other, target)
        assert target in str(caught.value) and PLACES[other][0] in str(caught.value)


WRITERS = ("seer.cli.export.run", "seer.data.shards.writer.write_manifest", "seer.models.bundle.write_bundle")


@pytest.mark.parametrize(
    "target", [*WRITERS, "seer.data.shards.open.write_shards", "seer.tasks.swav.MultiCrop", "os.system"]
)
def test_no_group_admits_a_writer_or_what_another_module_defines(target):
    for group in PLACES:
        with pytest.raises(RequestError):
            find(group, target)
        node = {"_target_": target}
        if target in WRITERS:
            with pytest.raises(RequestError):
                check_targets({group: {"steps": [node]} if group == "surgery" else node})


@pytest.mark.parametrize(
    "config",
    [
        {"data": {"_target_": "seer.optim.lars.LARS"}},
        {"optim": {"_target_": "torch.optim.SGD", "lr": {"_target_": "torch.optim.SGD"}}},
        {"optim": {"_target_": "torch.optim.SGD", "betas": [1, {"deep": {"_target_": "torch.optim.SGD"}}]}},
        {"groups": [{"_target_": "torch.optim.SGD"}]},
    ],
)
def test_a_target_anywhere_else_in_a_config_is_refused(config):
    with pytest.raises(RequestError):
        check_targets(config)


def test_targets_are_checked_before_anything_is_imported(monkeypatch):
    monkeypatch.setattr(module.importlib, "import_module", lambda name: pytest.fail(f"{name} was imported"))
    check_targets({"optim": {"_target_": "torch.optim.SGD", "lr": 0.1}, "surgery": {"steps": []}, "seed": 0})
    with pytest.raises(RequestError):
        check_targets({"optim": {"_target_": "seer_evil.run"}})


def test_only_code_admits_another_place(monkeypatch):
    monkeypatch.setattr(module, "_allowed", {})
    with pytest.raises(RequestError):
        find("task", "tests.program.start")
    allow("task", "tests.program")
    assert find("task", "tests.program.start").__name__ == "start"
    with pytest.raises(RequestError):  # of that group alone
        find("model", "tests.program.start")
    with pytest.raises(ValueError):
        allow("data", "tests.program")


# private names, module entry points, things that are neither class nor function: all are there
PRIVATE = [
    "seer.data.loading.reader_process._stopped",
    "seer.data.shards.tar_shard._Archive",
    "seer.__main__.entry",
    "seer.data.loading.loader.Loader.__init__",
    "seer.data.loading.loader.Loader.batches",
    "seer.data.decode.MOST_BYTES",
    "seer.data.shards.index.INDEX",
    "seer.core.log.log",
    "seer.models.zoo.STRIDE",
]

REFUSED = [
    "os.system",
    "os.mkdir",
    "builtins.eval",
    "builtins.exec",
    "subprocess.run",
    "torch.load",
    "torch.nn.Linear",
    "torch.hub.load",
    "numpy.load",
    "webdataset.gopen",
    "seer_evil.run",
    "torch.optimx.f",
    # paths that walk through what a module of ours has imported
    "torch.optim.optimizer.torch.os.mkdir",
    "torch.optim.optimizer.torch.load",
    "torch.optim.optimizer.functools.partial",
    "torch.optim.optimizer.torch",
    "seer.cli.main.importlib.import_module",
    "seer.cli.main.importlib",
    "seer.cli.main.os.system",
    "seer.cli.main.Path",
    "seer.cli.main.sys.exit",
    "seer.data.shards.open.os.remove",
    "seer.data.shards.open.Counter",
    "seer.data.shards.index.mmap.mmap",
    "seer.core.rng.torch.load",
    "seer.engine.checkpoint_files.shutil.rmtree",
    "seer.engine.checkpoint_files.torch.load",
    *PRIVATE,
    # nonsense
    "seer.data.multicrop.Multicrop",
    "seer.nowhere.Thing",
    "seer",
    "seer.",
    ".",
    "",
    "SGD",
    "seer.data.multicrop:MultiCrop",
    "seer.data..multicrop.MultiCrop",
    "../seer/data/multicrop.MultiCrop",
    None,
    3,
    ["os.system"],
]


@pytest.mark.parametrize("target", [name for name in PRIVATE if ".Loader." not in name])
def test_what_is_refused_for_being_private_or_no_callable_can_be_reached(target):
    module, _, name = target.rpartition(".")
    assert getattr(importlib.import_module(module), name) is not None


@pytest.mark.parametrize("target", REFUSED, ids=str)
def test_everything_else_is_refused_by_name_and_nothing_runs(target, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seer_evil.py").write_text("open('imported', 'w').close()\ndef run(*a): open('ran', 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for given in (("ran",), (f"touch {tmp_path}/ran",), ()):
        for group in PLACES:
            with pytest.raises(RequestError) as caught:
                build(group, {"_target_": target}, *given)
            assert repr(target) in str(caught.value) and caught.value.exit_status == 78
    assert os.listdir(tmp_path) == ["seer_evil.py"]


def test_what_is_built_gets_the_arguments_of_the_node_and_of_the_program():
    parameter = torch.nn.Parameter(torch.zeros(1))
    node = {"_target_": "torch.optim.SGD", "lr": 0.5, "momentum": 0.1}
    made = build("optim", node, [parameter], momentum=0.9)
    assert type(made) is torch.optim.SGD and made.defaults["lr"] == 0.5 and made.defaults["momentum"] == 0.9
    assert node == {"_target_": "torch.optim.SGD", "lr": 0.5, "momentum": 0.1}


@pytest.mark.parametrize("node", [{"lrr": 1}, {"lr": 1, "_args_": [1]}, {"_convert_": "all"}, {"_partial_": True}])
def test_an_argument_that_the_target_does_not_take_is_refused_by_name(node):
    with pytest.raises(RequestError, match=next(k for k in reversed(node))):
        build("optim", {"_target_": "torch.optim.SGD", **node}, [torch.nn.Parameter(torch.zeros(1))])


def test_a_missing_argument_is_refused_by_name():
    with pytest.raises(RequestError, match="name"):
        build("model", {"_target_": "seer.models.zoo.build"})


def test_values_are_values_and_not_built_in_turn(tmp_path):
    nested = {"_target_": "os.mkdir", "path": str(tmp_path / "ran")}
    with pytest.raises((RequestError, TypeError, ValueError)):
        build("augment", {"_target_": "seer.data.multicrop.MultiCrop", "sizes": nested})
    assert not (tmp_path / "ran").exists()


def test_a_type_error_inside_a_constructor_is_not_mistaken_for_a_wrong_argument():
    with pytest.raises(TypeError):
        build("optim", {"_target_": "torch.optim.SGD"}, 5)
