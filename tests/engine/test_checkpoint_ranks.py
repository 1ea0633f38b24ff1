"""Checkpoints of several ranks: written by some number of gloo processes, read by another number."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from seer.core.errors import StorageError
from seer.engine import checkpoint_files as checkpoint
from seer.engine.checkpoint_policy import Checkpoints
from seer.engine.manifest import read_json
from seer.parallel.world import World
from tests.ranks import run_ranks

pytestmark = pytest.mark.slow
SHAPES = {"a": (5, 3), "b": (1, 4), "c": (8,), "d": (3, 2, 2, 2)}  # rows that divide by no number of ranks


def whole(name: str, plus: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(ord(name))
    return torch.randn(SHAPES[name], generator=generator) + plus


def sharded(tensors: dict, world: World) -> dict:
    if world.size == 1:
        return tensors
    mesh = init_device_mesh("cpu", (world.size,))
    return {name: distribute_tensor(t, mesh, [Shard(0)]) for name, t in tensors.items()}


def save(world: World, statistics: int, folder: str, background: bool) -> None:
    weights = sharded({name: whole(name) for name in SHAPES}, world)
    momentum = sharded({name: whole(name, plus=1) for name in SHAPES}, world)
    group = world.rank * statistics // world.size
    state = {
        "task": {**weights, "bn.running_mean": torch.full((3,), float(group)), "queue.rows": whole("d", plus=9)},
        "optimizer": {
            "state": {i: {"momentum_buffer": t, "step": torch.tensor(7.0)} for i, t in enumerate(momentum.values())},
            "param_groups": [{"lr": 0.3, "params": [0, 1, 2, 3], "betas": (0.9, 0.99)}],
        },
    }
    checkpoints = Checkpoints(Path(folder), world, statistics=statistics, background=background)
    checkpoints.save(5, state, {"data": "abc"})
    checkpoints.wait()


def fail(world: World, what: str, folder: str) -> str:
    """One rank alone cannot write, or read, a state.json; returns what then happens on this one."""
    checkpoints = Checkpoints(Path(folder), world)

    def refuse_to_write(path: Path, value: object) -> None:
        raise OSError("the cable is loose")

    def refuse_to_read(path: Path) -> object:
        if path.parent.name == "step-00000006":
            raise StorageError("the cable is loose")
        return read_json(path)

    for step in (5, 6):
        if what == "write" and step == 6 and world.rank == 0:
            checkpoint.write_json = refuse_to_write
        checkpoints.save(step, {"task": {"w": whole("d")}, "more": {"step": step}}, {})
    if what == "read" and world.rank == 1:
        checkpoint.read_json = refuse_to_read
    try:
        checkpoints.wait()
        return str(checkpoints.load_newest()[0]["more"]["step"])
    except (StorageError, RuntimeError) as error:
        return str(error)


def load(world: World, statistics: int, folder: str) -> tuple[dict, list, int]:
    empty = sharded({name: torch.zeros(shape) for name, shape in SHAPES.items()}, world)
    like = {}
    if world.size > 1:
        like = {f"task/{name}": t for name, t in empty.items()}
        like |= {f"optimizer/state/{i}": t for i, t in enumerate(empty.values())}
    state, manifest = Checkpoints(Path(folder), world, statistics=statistics).load_newest(like)
    parts = {**state["task"], **{f"m{i}": v["momentum_buffer"] for i, v in state["optimizer"]["state"].items()}}
    assert all(isinstance(parts[name], DTensor) == (world.size > 1) for name in [*SHAPES, "m0", "m1", "m2", "m3"])
    full = {name: t.full_tensor() if isinstance(t, DTensor) else t for name, t in parts.items()}
    return full, state["optimizer"]["param_groups"], manifest["ranks"]


@pytest.fixture(scope="module")
def by_four(tmp_path_factory) -> Path:
    """Saved by four ranks, in the background, in two groups that share batch statistics."""
    folder = tmp_path_factory.mktemp("four") / "run"
    run_ranks(save, 4, 2, str(folder), True)
    return folder


@pytest.mark.parametrize(
    ("after", "statistics", "means"), [(4, 2, [0.0, 0.0, 1.0, 1.0]), (2, 1, [0.5, 0.5]), (1, 1, [0.5])]
)
def test_another_number_of_ranks_reads_the_same_bits_and_of_groups_the_mean_statistics(
    by_four, after, statistics, means
):
    loaded = run_ranks(load, after, statistics, str(by_four))
    for mean, (full, groups, ranks) in zip(means, loaded, strict=True):
        assert ranks == 4 and groups == [{"lr": 0.3, "params": [0, 1, 2, 3], "betas": (0.9, 0.99)}]
        assert all(full[name].equal(whole(name)) for name in SHAPES)
        assert all(full[f"m{i}"].equal(whole(name, plus=1)) for i, name in enumerate(SHAPES))
        assert full["queue.rows"].equal(whole("d", plus=9))
        assert full["bn.running_mean"].tolist() == [mean] * 3


def test_what_one_process_saved_is_read_into_the_shards_of_two(tmp_path):
    run_ranks(save, 1, 1, str(tmp_path / "run"), False)
    for full, _, ranks in run_ranks(load, 2, 1, str(tmp_path / "run")):
        assert ranks == 1 and all(full[name].equal(whole(name)) for name in SHAPES)


@pytest.mark.parametrize(("what", "words"), [("write", "step 6 "), ("read", "5")])
def test_where_one_rank_alone_fails_all_find_the_same(tmp_path, what, words):
    for text in run_ranks(fail, 2, what, str(tmp_path / "run")):
        assert words in text and ("the cable is loose" in text) == (what == "write")


def test_a_replicated_tensor_is_written_once_and_the_ranks_share_the_work(by_four):
    files = sorted((by_four / "step-00000005").glob("*.safetensors"))
    held = []
    for file in files:
        with safe_open(file, "pt") as opened:
            held.append(set(opened.keys()))
    assert len(files) == 4 and sum("task/queue.rows" in keys for keys in held) == 1
    assert sum("task/c" in keys for keys in held) == 4  # eight rows, two on each
    assert sorted(k for keys in held for k in keys if "running" in k) == [
        f"statistics-0000{g}/task/bn.running_mean" for g in (0, 1)
    ]
