"""Words to config: typos answered with the nearest right key, real paths untouched, and YAML that lists every argument."""

import inspect
import json
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from seer.cli import config
from seer.cli.verbs import SCHEMAS
from seer.core import schema
from seer.core.build import PLACES, find
from seer.core.config import GIVEN
from seer.core.errors import RequestError
from seer.core.evaluations import PROBES
from seer.core.signature import MISSING, signature
from seer.models.zoo import names
from tests.messages import says

FOLDER = Path(config.folder())
TARGETS = sorted(p for p in FOLDER.rglob("*.yaml") if "_target_" in p.read_text())


def source(value: str) -> object:
    return config.read("shard", [f"source={value}", "output=o"])["source"]


def refused(*words: str, verb: str = "pretrain") -> str:
    with pytest.raises(RequestError) as caught:
        config.read(verb, words)
    assert caught.value.exit_status == 78
    return str(caught.value)


def nodes(path: Path) -> list[dict]:
    whole = yaml.safe_load(path.read_text())
    return whole.get("steps", [whole.get("node", whole)])


@pytest.mark.parametrize("path", TARGETS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_yaml_names_arguments_of_its_target_and_repeats_no_default_of_ours(path):
    for node in nodes(path):
        parameters = inspect.signature(find(path.parent.name, node["_target_"])).parameters
        given = set(GIVEN.get(path.parent.name, ("model",)))
        assert not any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values())
        mine = {name: value for name, value in node.items() if name != "_target_"}
        assert set(mine) <= set(parameters) - given
        if node["_target_"].startswith("torch."):  # what another library takes is stated whole: its defaults may change
            assert set(mine) == set(parameters) - given
        else:
            assert not [name for name, value in mine.items() if parameters[name].default == value]


@pytest.mark.parametrize("target", sorted({node["_target_"] for path in TARGETS for node in nodes(path)}))
def test_a_signature_read_from_the_source_is_the_one_that_is_called(target):
    group = next(group for group in PLACES if any(target.startswith(place) for place in PLACES[group]))
    called, read = inspect.signature(find(group, target)).parameters, signature(target)
    assert list(read.parameters) == list(called)
    for name, (_, default) in read.parameters.items():
        true = called[name].default
        if default is not MISSING and true is not None:
            assert default == (list(map(listed, true)) if isinstance(true, tuple | list) else true)
        elif default is MISSING:  # none, or none that a config could hold
            assert not isinstance(true, int | float | str | bool | list | tuple)


def listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def test_every_group_with_a_target_says_what_the_program_gives():
    assert set(PLACES) - {"surgery"} == set(GIVEN) and {p.parent.name for p in TARGETS} == set(PLACES)


def test_the_names_of_the_zoo_are_choices_of_the_model_and_no_files():
    assert config.choices_of("pretrain", "model") == ["regnety_32px", "regnety_tiny", *names()]
    assert config.read("pretrain", ["model=regnety_10b"])["model"] == {
        "_target_": "seer.models.zoo.build",
        "name": "regnety_10b",
        "stem_stride": 2,
    }
    assert "model" not in ConfigStore.instance().repo or ConfigStore.instance().repo["model"] == {}


@pytest.mark.parametrize("verb", ["pretrain", "shard", "evaluate", "export"])
def test_every_verb_says_what_it_needs(verb):
    if verb == "pretrain":
        assert config.read(verb, [])["data"]["source"] is None
    else:
        assert "needs" in refused(verb=verb) and "=…" in refused(verb=verb)


@pytest.mark.parametrize(("given", "lacks"), [("data.train", "data.test"), ("data.test", "data.train")])
def test_a_key_beside_one_that_is_given_is_still_needed(given, lacks):
    assert says(refused("weights=w", f"{given}=x", verb="evaluate"), "evaluate", "needs", f"{lacks}=…")


@pytest.mark.parametrize("recipe", sorted(p.stem for p in (FOLDER / "recipe").glob("*.yaml")))
def test_every_recipe_composes_and_its_keys_all_exist(recipe):
    verb = "pretrain" if recipe in config.choices_of("pretrain", "recipe") else "adapt"
    full = config.read(verb, [f"recipe={recipe}"])
    known = {*schema.sentences(SCHEMAS[verb]), "surgery.steps"}
    full["task"].pop("heads", None) if verb == "adapt" else None  # its keys are its user's own
    for group in PLACES:
        if "_target_" in full[group]:
            parameters = signature(full[group]["_target_"]).parameters
            known |= {f"{group}.{name}" for name in parameters} | {f"{group}._target_"}
    known |= {f"probe.{name}.{key}" for name, target in PROBES.items() for key in signature(target).parameters}
    assert set(config.flat(full)) <= known


@pytest.mark.parametrize(
    ("word", "key", "expected"),
    [
        ("batch=64", "batch", 64),
        ("optim.weight_decay=0", "optim.weight_decay", 0),
        ("augment.sizes=[64,32]", "augment.sizes", [64, 32]),
        ("every.log=5", "every.log", 5),
        ("every.log=1ep", "every.log", "1ep"),
        ("steps=3", "steps", 3),
        ("schedule.peak=0.6", "schedule.peak", 0.6),
        ("precision.clip=1", "precision.clip", 1),
        ("data.threads=3", "data.threads", 3),
        ("model=regnety_32gf", "model.name", "regnety_32gf"),
        ("log.tensorboard=false", "log.tensorboard", False),
        ("output=", "output", ""),
        ("data.source=pictures", "data.source", "pictures"),
    ],
)
def test_a_word_sets_its_key(word, key, expected):
    found = config.flat(config.read("pretrain", [word]))[key]
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("verb", "choices", "settings"),
    [
        ("pretrain", ["recipe=cifar"], ["batch=64", "schedule.peak='0.1@256'", "task.hidden=[64,32]", "weights=null"]),
        ("pretrain", ["optim=adamw"], ["groups=[{pattern: '^head', frozen_steps: 3}]", "data.fields={views/24: 3, x: a}"]),
        ("pretrain", [], ["output='a=b, c'", "parallel.remat='budget=8'", "seed=-1", "steps=10ep", "seed.deep=1"]),
        ("adapt", ["heads=[map,detect]"], ["task.heads.map={classes: [a, b]}", "task.heads.detect.classes=[1, x y]"]),
        ("evaluate", ["eval=knn"], ["weights=w", "data.train=[a,'b,c']", "data.test=???", "eval.k=1e3", "no.such.key=${seed}"]),
    ],
)  # fmt: skip
def test_what_words_set_is_what_hydra_composes_of_them(verb, choices, settings):
    composed, settings = config._compose(verb, choices, None), list(settings)
    GlobalHydra.instance().clear()
    with config._store(choices, None), initialize_config_dir(str(FOLDER), version_base="1.3"):
        whole = compose(verb, overrides=[*choices, *(f"++{word}" for word in settings)])
    GlobalHydra.instance().clear()
    expected = OmegaConf.to_container(whole, resolve=False, throw_on_missing=False)
    assert json.dumps(config._with(composed, settings)) == json.dumps(expected)  # in the same order
    assert config._compose(verb, choices, None) == composed  # which has stayed as it was


def test_a_choice_and_a_key_of_it_may_come_in_any_order():
    for words in (["optim=sgd", "optim.nesterov=true"], ["optim.nesterov=true", "optim=sgd"]):
        assert config.read("pretrain", words)["optim"]["nesterov"] is True


@pytest.mark.parametrize(
    ("word", "right"),
    [
        ("bacth=64", "batch"),
        ("data.sorce=x", "data.source"),
        ("optim.weight_deacy=0", "optim.weight_decay"),
        ("weight_decay=0", "optim.weight_decay"),
        ("optimizer.lr=1", "schedule.peak"),
        ("modle=regnety_400mf", "model"),
        ("task.prototype=16", "task.prototypes"),
        ("every.logs=1", "every.log"),
        ("optim.nesterov=true", "optim"),  # of sgd, not of lars
    ],
)
def test_an_unknown_key_names_the_nearest_right_one(word, right):
    said = refused(word)
    assert f"unknown key {word.partition('=')[0]!r}" in said and f"did you mean '{right}" in said


@pytest.mark.parametrize(
    "word",
    [
        "model=regnety_32",
        "optim=adam",
        "augment=SwAV",
        "recipe=nothing",
        "eval=",
        "model=../task/swav",
        "task=3",
        "optim={}",
        "optim=null",
    ],
)
def test_an_unknown_choice_lists_the_choices(word):
    said = refused(word)
    group, _, choice = word.partition("=")
    there = config.choices_of("pretrain", group)
    assert (
        f"{group}={choice}" in said.replace("''", "") and all(name in said for name in there) and "did you mean" in said
    )


@pytest.mark.parametrize(
    "word",
    [
        "batch=many", "batch=6.5", "batch=true", "batch=[1]", "seed=1.5", "optim.eps=fast", "optim.eps=[1]", "optim.eps=true",
        "task.batch_norm=1", "task.batch_norm=maybe", "augment.sizes=64", "augment.flip=half", "every.log=[1]",
        "every.log=1.5", "task.iterations=3.0", "parallel.channels_last=0", "every=5", "every={log: x, a: 1}", "groups=5",
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_refused_by_name(word):
    assert word.partition("=")[0] in refused(word)


@pytest.mark.parametrize(
    "word", ["optim.eps=nan", "optim.eps=inf", "augment.flip=-inf", "optim.eps=.nan", "precision.clip=nan"]
)
def test_numbers_that_are_none_are_refused(word):
    said = refused(word)
    assert word.partition("=")[0] in said


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("+batch=1", "never added"),
        ("++batch=1", "never added"),
        ("+new=1", "never added"),
        ("~batch=1", "never added or removed"),
        ("~task", "not understood"),
        ("batch", "not understood"),
        ("=5", "not understood"),
        ("", "not understood"),
        ("--multirun", "for x in"),
        ("optim@optim2=sgd", "packages"),
        ("optim@:_global_=sgd", "packages"),
        ("hydra.run.dir=x", "unknown key"),
        ("hydra/launcher=basic", "unknown key"),
        ("task._target_=os.system", "os.system"),
        ("optim._target_=seer.cli.export.run", "seer.cli.export.run"),
        ("surgery.steps=[{_target_: seer.data.shards.writer.write_manifest}]", "write_manifest"),
        ("groups=[{pattern: ^head\\.prototypes, frozen_steps: 1}]", "quotes"),
        ("eval=knn", "probe"),
    ],
)
def test_words_that_would_change_the_shape_of_the_config_are_refused(word, reason):
    assert reason in refused(word)


@pytest.mark.parametrize(
    "words",
    [
        ("data.source=t/000.tar", "data.source=t/001.tar"),  # what a shell makes of data.source=t/{000..001}.tar
        ("batch=8", "batch=8"),
        ("recipe=cifar", "seed=1", "recipe=sample"),
    ],
)
def test_a_key_given_twice_is_refused(words):
    said = refused(*words)
    assert words[-1].partition("=")[0] in said and "2" in said


def test_of_the_group_eval_a_verb_offers_what_it_can_run():
    assert config.choices_of("pretrain", "eval") == ["probe"]
    there = ["alignment", "head", "knn", "linear", "lowshot", "rankme", "suite", "uniformity"]
    assert config.choices_of("evaluate", "eval") == there
    assert "knn" in refused("eval=lowsho", verb="evaluate") and "'probe'" not in refused("eval=lowsho", verb="evaluate")


@pytest.mark.parametrize("separate", ["1,2", "[64,32],[32,16]"])
def test_sweeps_are_refused(separate):
    assert refused(f"batch={separate}")


PATHS = [
    "/plain/path.tar",
    "relative/path",
    "./here",
    "../up",
    "/d/{000000..000009}.tar",
    "/d/{train,test}-{00..03}.tar",
    "/d/2024 (1)/a",
    "/d/with space",
    " leading and trailing ",
    "/d/it's",
    "/d/'quoted' \"twice\"",
    "/d/back\\slash",
    "/d/ends in \\",
    "/d/both\\'",
    "\\\\server\\share",
    "/d/[0-9]*.tar",
    "/d/?.tar",
    "/d/a=b",
    "/d/100%",
    "/d/#1",
    "/d/a:b",
    "/d/a;b|c&d",
    "/d/$HOME/${oc.env:HOME}/$(id)",
    "/d/日本/ä",
    "https://host/x-{000..009}.tar?X-Sig=a%2Fb=&e=1&k=v+w",
    "s3://bucket/x.tar",
    "pipe:cat /x",
    "123",
    "1e5",
    "0x10",
    "true",
    "False",
    "None",
    "nan",
    "inf",
    "-",
    "-1",
    "(",
    "}",
    "@x",
    "!x",
]


@pytest.mark.parametrize("path", PATHS)
def test_odd_paths_reach_the_config_unchanged(path):
    found = config.read("shard", [f"source={path}", f"output={path}"])
    assert (found["source"], found["output"]) == (path, path)


@pytest.mark.parametrize(
    ("verb", "key"),
    [
        ("shard", "source"),
        ("evaluate", "weights"),
        ("evaluate", "data.train"),
        ("evaluate", "data.test"),
        ("pretrain", "eval.train"),
    ],
)
def test_every_path_word_of_every_verb_takes_odd_paths(verb, key):
    needed = {
        "shard": ["source=a", "output=o"],
        "evaluate": ["weights=w", "data.train=a", "data.test=b"],
        "pretrain": [],
    }
    words = [w for w in needed[verb] if not w.startswith(f"{key}=")]
    assert (
        config.flat(config.read(verb, [*words, f"{key}=/d/2024 (1)/{{00..09}}.tar"]))[key] == "/d/2024 (1)/{00..09}.tar"
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a.tar,b.tar", ["a.tar", "b.tar"]),
        ("/d/2024 (1)/a,b", ["/d/2024 (1)/a", "b"]),
        ("/d/{a,b}.tar,/e/c d.tar", ["/d/{a,b}.tar", "/e/c d.tar"]),
        ("1,2", ["1", "2"]),
        ("[a.tar,'b c.tar']", ["a.tar", "b c.tar"]),
        ("'one, with a comma.tar'", "one, with a comma.tar"),
    ],
)
def test_a_comma_makes_a_list_of_paths(value, expected):
    assert source(value) == expected


def test_the_config_is_made_of_plain_values_and_a_second_reading_is_not_stained_by_the_first():
    first = config.read("pretrain", ["batch=64", "optim=sgd"])
    second = config.read("pretrain", [])

    def plain(value):
        if isinstance(value, dict):
            return type(value) is dict and all(type(k) is str and plain(v) for k, v in value.items())
        return all(map(plain, value)) if type(value) is list else type(value) in (str, int, float, bool, type(None))

    assert plain(dict(first)) and second["batch"] == 256 and second["optim"]["_target_"] == "seer.optim.lars.LARS"


def test_flat_names_nested_keys_by_dots():
    assert config.flat({"a": {"b": 1, "c": {"d": [1, {"e": 2}]}}, "f": None}) == {
        "a.b": 1,
        "a.c.d": [1, {"e": 2}],
        "f": None,
    }
