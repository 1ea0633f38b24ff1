"""Probes while training: any of the evaluations, without a trace in what is learned; and the best checkpoint is kept."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from seer.core.errors import RequestError
from seer.core.secrets import cleaned
from seer.data import synthetic as sample
from seer.data.shards.open import open_shards
from seer.data.shards.shard import fingerprint
from seer.data.shards.writer import write_shards
from seer.engine.checkpoint_policy import Checkpoints
from seer.engine.retention import best_in, steps_in
from seer.run.weights import digest, state
from tests.program import SMALL, last_of_each, seer, start, wait

ALL = "probe=[knn,linear,lowshot,rankme,uniformity,alignment]"
TINY = [word for word in SMALL if not word.startswith(("model=", "every.evaluate", "batch="))] + [
    *("model=regnety_tiny", "augment.sizes=[32,16]", "augment.counts=[2,1]", "batch=8", "every.compare=0"),
    *(
        "probe.linear.iterations=5",
        "probe.lowshot.iterations=5",
        "probe.lowshot.draws=2",
        "probe.lowshot.parts=[1,0.5]",
    ),
]
PLAIN = [word for word in TINY if not word.startswith("probe.")]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for part, first in (("train", 0), ("test", 100)):
        write_shards(sample.samples(24, seed=1, first=first), folder / part, total=24, per_shard=12)
    return folder


def words(images: Path, run: Path) -> tuple[str, ...]:
    return (f"data.source={images / 'train'}", f"output={run}", "every.checkpoint=0")


def probed(images: Path) -> tuple[str, ...]:
    return (f"eval.train={images / 'train'}", f"eval.test={images / 'test'}")


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_what_is_learned_is_the_same_to_the_last_bit_with_probes_and_without(images, tmp_path, ranks):
    without = wait(start("pretrain", *PLAIN, *words(images, tmp_path / "a"), "steps=4", ranks=ranks))
    with_all = wait(
        start(
            "pretrain",
            *TINY,
            *probed(images),
            ALL,
            *words(images, tmp_path / "b"),
            "steps=4",
            "every.evaluate=2",
            ranks=ranks,
        )
    )
    assert (without.status, with_all.status) == (0, 0), with_all.words
    assert without.result["loss"] == with_all.result["loss"]
    for file in sorted((tmp_path / "a" / "checkpoints" / "step-00000004").glob("*.safetensors")):
        one, other = load_file(file), load_file(tmp_path / "b" / "checkpoints" / "step-00000004" / file.name)
        assert set(one) == set(other) and all((one[name] == other[name]).all() for name in one)
    rows = [json.loads(line) for line in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    measured = [row for row in rows if "linear_top1" in row]
    assert [row["images"] for row in measured] == [0, 16, 32]
    for row in measured:
        assert {"knn_top1", "rankme", "uniformity", "alignment", "lowshot_top1/1", "probe_share"} <= set(row)
    assert 0 < with_all.result["probe_share"] < 1 and "% of the run" in with_all.words
    assert with_all.result["linear_top1"] == measured[-1]["linear_top1"] and "probe_share" not in without.result


def test_probes_without_labels_need_no_test_images(images, tmp_path, capfd):
    given = (f"eval.train={images / 'train'}", "probe=[rankme,alignment]")
    ended = seer(capfd, "pretrain", *PLAIN, *given, *words(images, tmp_path / "run"), "steps=1", "every.evaluate=0")
    assert ended.status == 0, ended.words
    assert {"rankme", "alignment"} <= set(ended.result) and "knn_top1" not in ended.result


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (("probe=[knn,lineer]",), "linear"),
        (("probe=[knn,knn]",), "once"),
        (("probe=[head]",), "heads"),
        (("probe.share=0",), "probe.share=0"),
        (("probe=linear", "eval.k=3"), "probe.knn.k"),
        (("probe=linear", "probe.knn.k=3"), "probe=["),
        (("probe=linear", "probe.linear.penalty=much"), "probe.linear.penalty"),
        (("probe=linear", "probe.linear.k=3"), "probe.linear.k"),
        (("every.keep_best=linear",), "knn_top1"),
    ],
)
def test_a_wrong_word_for_a_probe_is_told(images, tmp_path, capfd, given, named):
    ended = seer(capfd, "pretrain", *PLAIN, *probed(images), *given, *words(images, tmp_path / "run"), "steps=1")
    assert ended.status == 78 and named in ended.words
    assert not (tmp_path / "run" / "checkpoints" / "last").exists()


@pytest.mark.parametrize("given", [("probe=[knn]",), ("every.keep_best=knn",)])
def test_a_probe_without_images_is_told_before_a_folder_is_made(images, tmp_path, capfd, given):
    ended = seer(capfd, "pretrain", *PLAIN, *given, *words(images, tmp_path / "run"), "steps=1")
    assert ended.status == 78 and "eval.train" in ended.words and not (tmp_path / "run").exists()


class Judge:
    """Says what a figure comes to at each evaluation: best after the second."""

    def __init__(self, values):
        self.values = iter(values)

    def run(self, task):
        return {"figure": next(self.values)}


def trained(images: Path, run: Path, values, steps: int, *more: str):
    from seer.cli import config
    from seer.run.config import RunConfig
    from seer.run.session import train

    given = (*PLAIN, *words(images, run), f"steps={steps}", "every.evaluate=1", "every.keep=1", *more)
    settings = config.read("pretrain", last_of_each((*given, *probed(images), "every.keep_best=figure")))
    settings.pop("replay")
    return train(RunConfig.of(settings), evaluators=[Judge(values)])


def test_the_best_checkpoint_outlives_newer_ones_and_is_named(images, tmp_path):
    run = tmp_path / "run"
    result = trained(images, run, [0.9, 0.2, 0.6, 0.4, 0.5, 0.1], 5)
    checkpoints = run / "checkpoints"
    assert steps_in(checkpoints) == [2, 5] and (checkpoints / "best").resolve().name == "step-00000002"
    assert {name: result["best"][name] for name in ("metric", "value", "step")} == {
        "metric": "figure",
        "value": 0.6,
        "step": 2,
    }
    assert Path(result["best"]["checkpoint"]) == (checkpoints / "step-00000002").resolve()
    for path in (f"{run}@best", str(checkpoints / "best")):
        found = state(path)
        assert (found.step, found.kind) == (2, "checkpoint")
    assert state(str(run)).step == 5
    # what a result is of
    assert result["weights_sha256"] == digest(state(str(run)).backbone)
    assert result["data_fingerprint"] == fingerprint(open_shards(str(images / "train"))) and result["seed"] == 0
    assert "commit" in result and result["command"] == shlex.join(cleaned(sys.argv))


def test_what_is_best_is_known_again_and_a_kill_before_the_link_is_mended(images, tmp_path):
    run = tmp_path / "run"
    trained(images, run, [0.9, 0.2, 0.6, 0.4], 3, "every.keep_steps=1")
    link = run / "checkpoints" / "best"
    link.unlink()  # killed between the checkpoint of the best step and the link
    link.symlink_to("step-00000001")
    result = trained(images, run, [0.6, 0.5], 5, "every.keep_steps=1")
    assert best_in(run / "checkpoints") == 2 and result["best"]["step"] == 2


def test_a_kill_between_the_evaluation_and_its_save_loses_nothing_of_the_best(images, tmp_path, monkeypatch):
    run, save = tmp_path / "run", Checkpoints.save

    def killed(self, step, *rest):
        if step == 2:
            raise MemoryError("killed")
        return save(self, step, *rest)

    monkeypatch.setattr(Checkpoints, "save", killed)
    with pytest.raises(MemoryError):
        trained(images, run, [0.9, 0.2, 0.6], 4)
    assert best_in(run / "checkpoints") == 1
    monkeypatch.setattr(Checkpoints, "save", save)
    result = trained(images, run, [0.6, 0.4, 0.5], 4)  # steps 2, 3 and 4, again and for the first time
    assert result["best"]["step"] == 2 and best_in(run / "checkpoints") == 2
    assert result["best"]["value"] == 0.6 and steps_in(run / "checkpoints") == [2, 4]


def test_a_best_checkpoint_that_is_gone_is_forgotten_and_told(images, tmp_path):
    run = tmp_path / "run"
    trained(images, run, [0.9, 0.2, 0.6, 0.4], 3)
    shutil.rmtree(run / "checkpoints" / "step-00000002")
    result = trained(images, run, [0.3, 0.2], 5)
    assert result["best"]["step"] == 4 and best_in(run / "checkpoints") == 4


def test_a_run_without_a_best_checkpoint_says_how_to_get_one(images, tmp_path):
    write = tmp_path / "run" / "checkpoints"
    write.mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("seed: 0\n")
    with pytest.raises(RequestError, match="keep_best"):
        state(f"{tmp_path / 'run'}@best")
