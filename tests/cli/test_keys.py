"""A wrong word for any key ends with 78 before there is a run folder, or is no wrong word; never with a traceback."""

import copy
from typing import Any

import pytest

from seer.cli import config
from seer.cli.verbs import SCHEMAS
from seer.core import schema
from seer.core.config import hint_of
from tests.program import SMALL, seer

TINY = [w for w in SMALL if not w.startswith("model=")] + ["model=regnety_tiny", "augment.sizes=[32,16]", "steps=1"]
NEEDS = {
    "pretrain": [],
    "plan": [],
    "shard": ["source=a", "output=b"],
    "evaluate": ["weights=w", "data.train=a", "data.test=b"],
    "export": ["weights=w", "to=all", "output=o"],
}
OTHERS = ("optim=adamw", "optim=sgd", "schedule=constant_halving", "schedule=cosine_restarts")
# Of each type, and what is no number, no length, no share: one of them is wrong for every key.
STRANGE = ("two", 1.5, -1, 0, [1], ["a"], {"a": 1}, True, None, [], [0.3, 0.4], [-1.0, 0.5], [0.0, 0.0, 0.0])


def keys() -> list[tuple[str, str]]:
    found = {}
    for other in ("", *OTHERS):
        for key in config.flat(config.read("pretrain", [*TINY, *[other][: bool(other)]])):
            found.setdefault(key, other)
    return [(key, other) for key, other in found.items() if key != "replay"]


def with_value(wanted: dict, key: str, value: object) -> dict:
    changed = copy.deepcopy(wanted)
    *path, last = key.split(".")
    place = changed
    for part in path:
        place = place[part]
    place[last] = copy.deepcopy(value)
    return changed


@pytest.mark.parametrize("verb", NEEDS)
def test_what_every_key_takes_is_known(verb):
    whole = config.read(verb, NEEDS[verb])
    for key, value in config.flat(whole).items():
        hint = hint_of(key, whole, SCHEMAS[verb])
        assert hint is not Any or value is not None, key
        assert schema.fits(hint, value), key


def test_every_key_of_a_schema_has_a_sentence():
    for kind in SCHEMAS.values():
        assert [key for key, words in schema.sentences(kind).items() if not words] == []


@pytest.mark.parametrize(
    ("recipe", "word", "value"),
    [
        ("swav_small", "schedule.peak=0.6@256", "0.6@256"),
        ("swav_small", "schedule.warmup=5%", "5%"),
        ("seer_regnety_10b", "parallel.remat=block", "block"),
        ("seer_regnety_10b", "groups=[]", []),
        ("cifar", "optim.foreach=true", True),
    ],
)
def test_a_recipe_that_sets_a_key_takes_no_kind_of_word_away(recipe, word, value):
    assert config.flat(config.read("pretrain", [f"recipe={recipe}", word]))[word.partition("=")[0]] == value


@pytest.mark.slow
@pytest.mark.parametrize(
    "word",
    [
        *("data.threads=two", "data.threads=1.5", "data.threads=-1", "data.lanes=two", "data.lanes=0", "data.lanes=5"),
        *("augment.aspect=[1]", "augment.scales=[0.3,0.4]", "augment.blur_sigma=[1]", "augment.std=[0,0,0]"),
        *("augment.mean=[0.5]", "augment.sizes=[a,b]", "task.hidden=[a]", "task.assign=[a,b]", "data.block=0"),
        *("data.prefetch_gb=-1", "data.prefetch_gb=0", "data.prefetch=0", "data.drawn=-1", "data.exclude=[nowhere]"),
        *("parallel.mode=dpp", "parallel.remat=blok", "parallel.remat=[stage9]", "parallel.remat=budget=much"),
        *(
            "parallel.batch_norm_group=3",
            "parallel.timeout_s=-1",
            "parallel.device=[cpu]",
            "every.log=0",
            "every.keep=0",
        ),
        *("every.checkpoint=often", "every.minutes=-1", "schedule.warmup=long", "schedule.peak=[1]", "optim.eps=-1"),
        *("optim.momentum=2", "eval.size=two", "precision.clip=two", "surgery.steps=[{a: 1}]", "surgery.steps=[1]"),
        *("groups=[{pattern: 5}]", "groups=[5]", "groups=[{pattern: head, lr_scale: fast}]", "batch=null", "seed=null"),
        *("groups=[{pattern: prototpyes}]", "groups=[{name: head}]", "weights=[a,b]", "model.widths=[a,b,c]"),
    ],
)
def test_a_wrong_word_is_refused_by_name_before_there_is_a_run_folder(word, capfd, tmp_path, images):
    source = "data=drawn" if word.startswith("parallel.mode") else f"data.source={images}"
    ended = seer(capfd, "pretrain", *TINY, source, f"output={tmp_path / 'run'}", word)
    assert ended.status == 78, ended.words
    named = (word.partition("=")[0].rsplit(".", 1)[-1].rstrip("s"), "rule", "_target_")
    assert any(name in ended.words for name in named) and "Traceback" not in ended.words, ended.words
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_no_value_of_any_key_is_a_defect_of_ours(capfd, tmp_path, monkeypatch, images):
    read, left = config.read, []
    for key, other in keys():
        base = read("pretrain", [*TINY, f"data.source={images}", *[other][: bool(other)]])
        for number, value in enumerate(STRANGE):
            full = with_value(base, key, value)
            run = tmp_path / f"{key}-{number}"
            if key != "output":
                full["output"] = str(run)
            elif isinstance(value, str):
                continue

            def asked(*_: object, base: dict = base, full: dict = full, key: str = key) -> dict:
                config._check_types("pretrain", base, full, [key])
                return copy.deepcopy(full)

            monkeypatch.setattr(config, "read", asked)
            ended = seer(capfd, "pretrain")
            if ended.status not in (0, 78) or (ended.status == 78 and run.exists()):
                left.append((key, value, ended.status, ended.result.get("error")))
    assert left == []
