"""Heads on a frozen backbone that sees the same views each epoch learn from kept features what they learn without, and faster."""

import json
from pathlib import Path

import pytest
import torch

from seer.data import synthetic as sample
from seer.data.shards.writer import write_shards
from seer.models.bundle import read_heads
from seer.run import cached_features, session
from tests.program import seer

BASE = Path(__file__).resolve().parents[1] / "models" / "bundles_1" / "run"
WORDS = (
    "adapt", f"weights={BASE}", "heads=[classify,regress]", "augment.train=false", "batch=16", "every.log=1", "every.evaluate=0",
    "every.checkpoint=0", "log.tensorboard=false", "data.threads=0", "precision=fp32", "parallel.device=cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def labelled(tmp_path_factory) -> Path:
    """40 images: an epoch is no whole number of steps."""
    folder = tmp_path_factory.mktemp("labelled")
    made = ((key, {**fields, "value.json": fields["cls"]}) for key, fields in sample.samples(40, seed=3))
    write_shards(made, folder, total=40, per_shard=20, card={"classes": list(sample.SHAPE_CLASSES)})
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    heads = read_heads(run / "bundle")
    return {f"{name}.{key}": t for name, head in heads.items() for key, t in head.build().state_dict().items()}


@pytest.mark.slow
def test_weights_are_those_of_a_run_that_computes_features_each_time(labelled, tmp_path, capfd, monkeypatch):
    kept = seer(capfd, *WORDS, "steps=20", f"data.train={labelled}", f"output={tmp_path / 'kept'}")
    assert kept.status == 0 and "features of all 40 images are known" in kept.words, kept.words
    with monkeypatch.context() as patch:
        patch.setattr(session, "with_cached_features", lambda config, data, training, world: data)
        plain = seer(capfd, *WORDS, "steps=20", f"data.train={labelled}", f"output={tmp_path / 'plain'}")
    assert plain.status == 0 and "are known" not in plain.words
    a, b = weights(tmp_path / "kept"), weights(tmp_path / "plain")
    assert a.keys() == b.keys() and all((a[key] - b[key]).abs().max() <= 1e-4 for key in a)
    rows = [
        [
            json.loads(line)["loss"]
            for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()
            if "loss" in line
        ]
        for run in ("kept", "plain")
    ]
    assert rows[0] == pytest.approx(rows[1], abs=1e-5) and len(rows[0]) == 20


@pytest.mark.slow
def test_a_run_that_goes_on_fills_its_store_anew_and_ends_with_the_same_weights(labelled, tmp_path, capfd):
    words = (*WORDS, f"data.train={labelled}", "schedule=step_decay", "schedule.peak=0.01")
    for steps in (4, 12):
        assert seer(capfd, *words, f"steps={steps}", f"output={tmp_path / 'twice'}").status == 0
    assert seer(capfd, *words, "steps=12", f"output={tmp_path / 'once'}").status == 0
    a, b = weights(tmp_path / "twice"), weights(tmp_path / "once")
    assert all((a[key] - b[key]).abs().max() <= 1e-4 for key in a)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["augment.train=true"],
        ["surgery=none"],
        ["surgery=freeze_batch_norm"],
        ["heads.regress.stages=[stage1]"],
        ["accumulate=2"],
    ],
)
def test_features_that_move_or_are_not_all_that_is_read_are_not_kept(words, labelled, tmp_path, capfd):
    given = {word.partition("=")[0]: word for word in (*WORDS[1:], *words)}
    ended = seer(capfd, "adapt", *given.values(), "steps=6", f"data.train={labelled}", f"output={tmp_path / 'run'}")
    assert ended.status == 0 and "are known" not in ended.words and "features are kept" not in ended.words, ended.words


@pytest.mark.slow
def test_images_that_are_left_out_are_not_stood_in_for_by_the_same_ones_for_ever(labelled, tmp_path, capfd):
    (tmp_path / "out.txt").write_text(f"{labelled / 'shard-000000.tar'}\t00000003\n")
    words = (*WORDS, "steps=6", f"data.exclude={tmp_path / 'out.txt'}", f"data.train={labelled}")
    ended = seer(capfd, *words, f"output={tmp_path / 'run'}")
    assert ended.status == 0 and "are known" not in ended.words and "features are kept" not in ended.words


def test_a_store_beyond_the_limit_is_not_made(labelled, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(cached_features, "MOST_BYTES", 100)
    ended = seer(capfd, *WORDS, "steps=4", f"data.train={labelled}", f"output={tmp_path / 'run'}")
    assert ended.status == 0 and "are known" not in ended.words
