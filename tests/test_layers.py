"""The order of the layers and what must not appear in the code, read from the source with `ast`; nothing is imported.

`complaints(path, source)` is the checker. The lower half of this file feeds it a source for each rule that breaks it,
because a checker that cannot fail is worth nothing. Surprising: imports under `if TYPE_CHECKING` and inside functions
count like all others. A type that two packages share belongs to `core`; a late import is still a dependency.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parents[1]

# Nothing imports to the right of itself, and packages of one level do not import one another.
LEVELS = [
    {"core"},
    {"parallel", "data", "models"},
    {"losses", "optim"},
    {"tasks", "engine"},
    {"evals", "export"},
    {"run"},
    set(),  # additions: every folder not named here
    {"cli", "configs"},
]
ADDITIONS = 6
DRAWERS = {"utils", "helpers", "common", "misc", "base"}
MAKES_GROUPS = {
    "init_process_group",
    "new_group",
    "new_subgroups",
    "new_subgroups_by_enumeration",
    "split_group",
    "init_device_mesh",
}
UNPICKLES = {
    f"{m}.{f}" for m in ("pickle", "_pickle", "cPickle", "dill", "marshal") for f in ("load", "loads", "Unpickler")
}
FORBIDDEN_CALLS = {
    "eval": "runs text as code",
    "exec": "runs text as code",
    "os.system": "goes through a shell; use subprocess.run([...])",
    "os.popen": "goes through a shell; use subprocess.run([...])",
    "yaml.load": "may build any object; use yaml.safe_load",
    "yaml.unsafe_load": "may build any object; use yaml.safe_load",
    "yaml.full_load": "may build any object; use yaml.safe_load",
    **{name: "runs code from the file; use safetensors, JSON or torch.load(weights_only=True)" for name in UNPICKLES},
}


def level(package: str) -> int:
    return next((n for n, packages in enumerate(LEVELS) if package in packages), ADDITIONS)


def imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str, str]]:
    """(line, what is imported in full, the name it gets here); `package` is the dotted folder of the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name, alias.asname or alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{origin}.{alias.name}", alias.asname or alias.name
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            if ast.unparse(node.func).split(".")[-1] in {"import_module", "__import__"}:
                yield node.lineno, str(node.args[0].value), ""


def full_name(node: ast.AST, names: dict[str, str]) -> str:
    """`dist.new_group` -> "torch.distributed.new_group" where that is what `dist` stands for; "" for other nodes."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        inner = full_name(node.value, names)
        return f"{inner}.{node.attr}" if inner else f"?.{node.attr}"
    return ""


def complaints_about_place(path: str, line: int, name: str) -> Iterator[str]:
    """What may not stand in this file, whatever is done with it: `name` is a full dotted name."""
    parts, place = name.split("."), path.split("/")
    here = place[1] if len(place) > 2 else ""  # "" for seer/__init__.py and seer/__main__.py
    if parts[0] == "seer" and len(parts) > 1 and parts[1] != "__version__":
        there = parts[1]
        if not here:
            if path != "seer/__main__.py" or (there != "cli" and parts[1:3] not in EARLY):
                early = " and ".join(map(".".join, EARLY))
                yield f"{path}:{line}: {name}: of the top, only __main__ imports anything, and only cli and {early}"
        elif there != here and level(there) > level(here):
            yield f"{path}:{line}: {name}: {here} may not import {there}, which lies to the right of it"
        elif there != here and level(there) == level(here) and here != "cli":
            yield f"{path}:{line}: {name}: {here} and {there} lie side by side and may not import one another"
    if name == "torch.distributed" or name.startswith("torch.distributed."):
        if here != "parallel" and path != "seer/engine/checkpoint_files.py":
            yield f"{path}:{line}: {name}: torch.distributed belongs to parallel/ and engine/checkpoint.py"
    if parts[0] in {"hydra", "omegaconf"} and here != "cli":
        yield f"{path}:{line}: {name}: only cli/ sees Hydra"
    if parts[-1] in MAKES_GROUPS and path != "seer/parallel/world.py":
        yield f"{path}:{line}: {name}: only parallel/world.py makes process groups"


def complaints_about_call(node: ast.Call, name: str) -> Iterator[str]:
    keywords = {k.arg: k.value for k in node.keywords}

    def given(keyword: str, value: bool) -> bool:
        return isinstance(keywords.get(keyword), ast.Constant) and keywords[keyword].value is value  # type: ignore

    if name in FORBIDDEN_CALLS:
        yield f"{name}: {FORBIDDEN_CALLS[name]}"
    if "shell" in keywords and not given("shell", False):
        yield f"{name}: shell=True: a file name can carry a command; pass a list"
    if name == "torch.load" and not given("weights_only", True):
        yield f"{name}: without weights_only=True it runs code from the file"
    if name in {"numpy.load", "np.load"} and "allow_pickle" in keywords and not given("allow_pickle", False):
        yield f"{name}: allow_pickle runs code from the file"
    if name.split(".")[-1] == "extractall":
        yield f"{name}: extractall writes where the archive says; read members one by one"


def swallows(node: ast.ExceptHandler) -> bool:
    """A bare `except:` that does not raise again, or one for every exception whose body does nothing."""
    if node.type is None:
        return not any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
    named = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    everything = any(isinstance(n, ast.Name) and n.id in {"Exception", "BaseException"} for n in named)
    idle = all(isinstance(n, ast.Pass | ast.Continue) or ast.unparse(n) == "..." for n in node.body)
    return everything and idle


EARLY = [["core", "signals"], ["core", "streams"]]  # what the program needs before it imports anything heavy


def complaints(path: str, source: str) -> list[str]:
    """What is wrong with this file, as `seer/…/file.py:line: …`. `path` is relative to the checkout."""
    tree = ast.parse(source, path)
    parts = path.removesuffix(".py").split("/")
    imports = list(imported(tree, ".".join(parts[:-1])))
    # `import torch.nn` binds torch alone
    names = {local: local if origin.startswith(f"{local}.") else origin for _, origin, local in imports if local}
    # of torch.distributed.barrier, the whole and not its inner torch.distributed once more
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    found = [
        f"{path}:1: a room is named for what is in it, not {part}"
        for part in parts
        if part.removeprefix("_") in DRAWERS
    ]
    for line, origin, _ in imports:
        found += complaints_about_place(path, line, origin)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            found += complaints_about_place(path, node.lineno, full_name(node, names))
        elif isinstance(node, ast.Call):
            found += [f"{path}:{node.lineno}: {c}" for c in complaints_about_call(node, full_name(node.func, names))]
        elif isinstance(node, ast.ExceptHandler) and swallows(node):
            found.append(f"{path}:{node.lineno}: swallows every error; name the one that is expected")
    return list(dict.fromkeys(found))


def test_the_code_keeps_the_rules():
    files = sorted((TOP / "seer").rglob("*.py"))
    assert files, f"no code under {TOP / 'seer'}"
    found = [c for f in files for c in complaints(f.relative_to(TOP).as_posix(), f.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


def test_every_layer_is_a_folder():
    """A renamed package would become an addition in silence, and its place in the order be lost."""
    named = set().union(*LEVELS) - {"configs"}
    folders = {f.name for f in (TOP / "seer").iterdir() if f.is_dir()}
    assert named <= folders, f"named in LEVELS but no folder: {sorted(named - folders)}"


BROKEN = [
    # to the right, written in each way that Python has
    ("seer/core/rng.py", "import seer.data.order", "core may not import data"),
    ("seer/models/zoo.py", "from seer.losses.swav import swav_loss", "models may not import losses"),
    ("seer/models/zoo.py", "from seer import losses", "models may not import losses"),
    ("seer/models/zoo.py", "from ..losses import swav", "models may not import losses"),
    ("seer/models/zoo.py", "from .. import losses", "models may not import losses"),
    ("seer/losses/swav.py", "def f():\n    from seer.engine.loop import fit", "losses may not import engine"),
    (
        "seer/core/log.py",
        "import typing\nif typing.TYPE_CHECKING:\n    from seer.parallel.world import World",
        "core may",
    ),
    ("seer/core/log.py", "import importlib\nimportlib.import_module('seer.cli.main')", "core may not import cli"),
    ("seer/core/log.py", "import seer\nseer.cli.main.main()", "core may not import cli"),
    ("seer/engine/loop.py", "import seer.evals.knn", "engine may not import evals"),
    ("seer/export/to_timm.py", "import seer.cli.main", "export may not import cli"),
    ("seer/export/to_timm.py", "import seer.search.space", "export may not import search"),
    ("seer/search/space.py", "import seer.cli.main", "search may not import cli"),
    ("seer/engine/loop.py", "import seer.configs", "engine may not import configs"),
    # side by side
    ("seer/models/zoo.py", "import seer.parallel.world", "models and parallel lie side by side"),
    ("seer/data/loading/loader.py", "from seer.models import zoo", "data and models lie side by side"),
    ("seer/optim/lars.py", "import seer.losses.swav", "optim and losses lie side by side"),
    ("seer/tasks/swav.py", "import seer.engine.loop", "tasks and engine lie side by side"),
    ("seer/evals/knn.py", "import seer.export.to_timm", "evals and export lie side by side"),
    ("seer/search/space.py", "import seer.segmentation.heads", "search and segmentation lie side by side"),
    # the top
    ("seer/__init__.py", "import seer.core.rng", "of the top"),
    ("seer/__main__.py", "import seer.engine.loop", "of the top"),
    ("seer/__main__.py", "import seer.core.log", "of the top"),
    # process groups and torch.distributed
    ("seer/losses/sinkhorn.py", "import torch.distributed as dist", "torch.distributed belongs"),
    ("seer/losses/sinkhorn.py", "from torch import distributed", "torch.distributed belongs"),
    ("seer/losses/sinkhorn.py", "from torch.distributed.nn import all_reduce", "torch.distributed belongs"),
    ("seer/losses/sinkhorn.py", "import torch\ntorch.distributed.barrier()", "torch.distributed belongs"),
    ("seer/losses/sinkhorn.py", "import torch as t\nt.distributed.barrier()", "torch.distributed belongs"),
    ("seer/losses/sinkhorn.py", "import torch.nn\ntorch.distributed.barrier()", "torch.distributed belongs"),
    ("seer/engine/loop.py", "import torch.distributed", "torch.distributed belongs"),
    ("seer/parallel/wrap.py", "import torch.distributed as d\nd.new_group([0])", "makes process groups"),
    ("seer/parallel/wrap.py", "from torch.distributed import init_process_group", "makes process groups"),
    (
        "seer/engine/checkpoint_files.py",
        "import torch.distributed as d\nd.init_process_group()",
        "makes process groups",
    ),
    ("seer/parallel/wrap.py", "from torch.distributed.device_mesh import init_device_mesh", "makes process groups"),
    # Hydra
    ("seer/engine/loop.py", "import hydra", "only cli/ sees Hydra"),
    ("seer/core/records.py", "from omegaconf import DictConfig", "only cli/ sees Hydra"),
    ("seer/data/loading/loader.py", "from hydra.utils import instantiate", "only cli/ sees Hydra"),
    # names
    ("seer/core/utils.py", "", "a room is named"),
    ("seer/models/helpers/zoo.py", "", "a room is named"),
    ("seer/data/_common.py", "", "a room is named"),
    # what runs foreign input
    ("seer/data/shards/open.py", "import subprocess\nsubprocess.run('ls', shell=True)", "shell=True"),
    ("seer/data/shards/open.py", "import subprocess\nsubprocess.run('ls', shell=s)", "shell=True"),
    ("seer/data/shards/open.py", "import os\nos.system('ls')", "goes through a shell"),
    ("seer/data/shards/open.py", "import pickle\npickle.load(f)", "pickle.load"),
    ("seer/data/shards/open.py", "from pickle import loads\nloads(b)", "pickle.loads"),
    ("seer/data/shards/open.py", "import pickle as p\np.Unpickler(f).load()", "pickle.Unpickler"),
    ("seer/data/shards/open.py", "import yaml\nyaml.load(f)", "yaml.safe_load"),
    ("seer/data/shards/open.py", "import yaml\nyaml.load(f, Loader=yaml.Loader)", "yaml.safe_load"),
    ("seer/models/pretrained.py", "import torch\ntorch.load(f)", "weights_only=True"),
    ("seer/models/pretrained.py", "import torch\ntorch.load(f, weights_only=False)", "weights_only=True"),
    ("seer/models/pretrained.py", "from torch import load\nload(f)", "weights_only=True"),
    ("seer/data/shards/tar.py", "import tarfile\ntarfile.open(p).extractall(d)", "extractall"),
    ("seer/data/shards/tar.py", "import numpy as np\nnp.load(p, allow_pickle=True)", "allow_pickle"),
    ("seer/core/durations.py", "eval('1 + 1')", "runs text as code"),
    ("seer/core/durations.py", "exec('1')", "runs text as code"),
    # errors that vanish
    ("seer/data/loading/reader.py", "try:\n    f()\nexcept:\n    pass", "swallows every error"),
    ("seer/data/loading/reader.py", "try:\n    f()\nexcept:\n    x = 1", "swallows every error"),
    ("seer/data/loading/reader.py", "try:\n    f()\nexcept Exception:\n    pass", "swallows every error"),
    (
        "seer/data/loading/reader.py",
        "for i in x:\n    try:\n        f()\n    except (OSError, BaseException):\n        continue",
        "swall",
    ),
]


@pytest.mark.parametrize(("path", "source", "expected"), BROKEN, ids=range(len(BROKEN)))
def test_a_broken_rule_is_told_with_its_place(path, source, expected):
    found = complaints(path, source)
    assert any(expected in c for c in found), found or "nothing was said"
    assert all(c.startswith(f"{path}:") for c in found)


FINE = [
    ("seer/__main__.py", "from seer.core.signals import listener\nfrom seer.cli.main import main"),
    (
        "seer/cli/main.py",
        "import hydra, omegaconf, seer.configs, seer.engine.loop, seer.search.space\nfrom . import shard",
    ),
    (
        "seer/engine/loop.py",
        "from seer import __version__\nfrom seer.core.log import log\nfrom .metrics import Metrics",
    ),
    ("seer/losses/sinkhorn.py", "from seer.parallel.collectives import all_reduce"),
    ("seer/search/space.py", "import seer.engine.loop, seer.export.to_timm\nfrom seer.search import mutations"),
    ("seer/parallel/world.py", "import torch.distributed as dist\ndist.init_process_group()\ndist.new_group([0])"),
    ("seer/parallel/collectives.py", "import torch.distributed as dist\ndist.all_reduce(x)"),
    ("seer/engine/checkpoint_files.py", "import torch.distributed.checkpoint as dcp\ndcp.save(state)"),
    ("seer/models/zoo.py", "import torch\nmodel.eval()\nre.compile('x')\nx = sample.distributed\ntorch.distributions"),
    ("seer/models/pretrained.py", "import torch\ntorch.load(f, map_location='cpu', weights_only=True)"),
    (
        "seer/data/shards/open.py",
        "import subprocess, yaml\nsubprocess.run(['ls'], shell=False)\nyaml.safe_load(f)\njson.load(f)",
    ),
    (
        "seer/data/loading/reader.py",
        "try:\n    f()\nexcept FileNotFoundError:\n    pass\nexcept Exception as e:\n    log(e)",
    ),
    ("seer/data/loading/reader.py", "try:\n    f()\nexcept:\n    undo()\n    raise"),
    ("seer/data/basement.py", "import base64"),
]


@pytest.mark.parametrize(("path", "source"), FINE, ids=range(len(FINE)))
def test_what_is_allowed_is_not_complained_of(path, source):
    assert complaints(path, source) == []


def test_no_function_is_longer_than_a_screen():
    long = [
        f"{path.relative_to(TOP)}:{node.lineno} {node.name}"
        for path in sorted((TOP / "seer").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    ]
    assert long == []
