"""Help tells every key of every verb and of every choice with its meaning, as these words would have it, in no time."""

import json
import re

import pytest
import yaml
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_store import ConfigStore

import seer
from seer.cli import config, help
from seer.cli.main import VERBS, main
from tests.messages import says
from tests.program import processor_s, slowness

CHOICES = [
    (verb, group, choice)
    for verb in VERBS
    for group in config.groups_of(verb)
    if verb != "plan"
    for choice in config.choices_of(verb, group)
    if (group, choice) != ("precision", "apex_o1")
    and not (group == "model" and choice.startswith(("regnety_1", "regnety_6")))
]


def shown(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 0
    out, err = capfd.readouterr()
    assert err == ""
    return out


def entries(text: str) -> dict[str, str]:
    """Returns {key=value: meaning} of a help."""
    found: dict[str, str] = {}
    last = ""
    for line in text.splitlines():
        if row := re.match(r"  ([a-z0-9_.]+=.*)$", line):
            last, _, said = row[1].partition("  ") if "  " in row[1] else (row[1], "", "")
            if " " in last and not last.split("=")[1].startswith(("[", "{")):  # a long word and a short meaning
                last, _, said = row[1].partition(" ")
            found[last.strip()] = said.strip()
        elif line.startswith(" " * help.INDENT) and last:
            found[last.strip()] += line.strip()
        else:
            last = ""
    return found


@pytest.mark.parametrize(("verb", "group", "choice"), CHOICES)
def test_every_key_of_every_choice_is_in_the_help_with_its_value_and_its_meaning(verb, group, choice):
    words = [f"{group}={choice}"]
    told = entries(help.of_verb(verb, "", words))
    for key, value in config.flat(config.read(verb, words, whole=False)).items():
        assert told.get(f"{key}={help.shown(value)}"), key


@pytest.mark.parametrize("verb", VERBS)
def test_of_every_verb_every_key_and_every_group_is_told(capfd, verb):
    told = entries(shown(capfd, verb, "--help"))
    keys = config.flat(config.read(verb, [], whole=False))
    assert len(keys) > (90 if verb in ("pretrain", "plan") else 5)
    assert {word.partition("=")[0] for word in told} == {*keys, *config.groups_of(verb)}
    assert all(told.values())


def test_a_recipe_and_other_words_change_what_the_help_shows(capfd):
    told = entries(shown(capfd, "pretrain", "recipe=cifar", "task.epsilon=0.03", "--help"))
    assert {"output=runs/cifar", "model=regnety_32px", "task=swav_small", "task.epsilon=0.03", "batch=128"} <= set(told)
    assert main(["pretrain", "/data/x", "--batch", "9", "--help", "data", "recipe=cifar"]) == 0
    told = entries(capfd.readouterr().out)
    assert {"data=images", "data.source=/data/x"} <= set(told) and "batch=9" not in told
    text = shown(capfd, "pretrain", "--help")
    places = [
        text.index(f"  {key}=") for key in ("data.source", "output", "recipe", "model", "steps", "batch", "every.log")
    ]
    assert places == sorted(places)


def test_usage_and_the_answer_to_other_programs_verbs_name_every_choice_that_a_verb_is_about(capfd):
    choices = "|".join(config.choices_of("evaluate", "eval"))
    assert f"eval={choices} " in shown(capfd, "evaluate", "--help")
    assert main(["linear_probe"]) == 78 and f"eval={choices} " in capfd.readouterr().err


def test_a_group_alone_is_told_with_what_its_choices_are(capfd):
    text = shown(capfd, "pretrain", "--help", "task")
    assert says(text, "task=swav_seer", "16,000", "task.prototypes=3000") and "data.threads" not in text
    assert set(entries(shown(capfd, "pretrain", "--help", "every.log"))) == {"every.log=10"}
    assert main(["pretrain", "--help", "tsak"]) == 78
    assert says(json.loads(capfd.readouterr().out)["error"], "tsak", "'task'")


@pytest.mark.parametrize(
    "words", [["help", "shard"], ["--help", "shard"], ["shard", "help"], ["shard", "-h"], ["shard", "--help"]]
)
def test_help_of_a_verb_may_be_asked_for_in_any_order(capfd, words):
    assert shown(capfd, *words) == shown(capfd, "shard", "--help") and "per_shard=10000" in shown(capfd, *words)


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_help_of_all_goes_to_standard_output_with_an_example(capfd, words):
    text = shown(capfd, *words)
    assert says(text, *VERBS, "seer pretrain recipe=sample", "--version")


@pytest.mark.parametrize("words", [["--version"], ["-V"], ["-v"], ["version"], ["pretrain", "--version"]])
def test_the_version_is_told(capfd, words):
    assert shown(capfd, *words).split() == ["seer", seer.__version__]


def test_wrong_words_beside_help_are_told_and_no_word_at_all_is_a_wrong_request(capfd):
    assert main(["pretrain", "recipe=nothing", "--help"]) == 78 and main([]) == 78
    assert main(["help", "pretrian"]) == 78
    assert says(capfd.readouterr().out, "'pretrain'")


def test_a_config_is_printed_whole(capfd):
    printed = yaml.safe_load(shown(capfd, "pretrain", "recipe=cifar", "batch=64", "--print-config"))
    assert printed == config.read("pretrain", ["recipe=cifar", "batch=64"])


def test_composing_leaves_hydras_own_choices_out_and_as_they_were(monkeypatch):
    loaded: list[str] = []
    load = ConfigRepository.load_config

    def noted(self, config_path):
        loaded.append(config_path)
        return load(self, config_path)

    monkeypatch.setattr(ConfigRepository, "load_config", noted)
    config._of_choices.cache_clear()  # else the process composed it before
    own = ConfigStore.instance().repo["hydra"]["config.yaml"].node
    before = list(own.defaults)
    config.read("pretrain", ["data.source=x"])
    assert "pretrain" in loaded and [one for one in loaded if one.startswith("hydra/")] == ["hydra/config"]
    assert before and list(own.defaults) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "limit_s"),
    [
        ([*words.split()], limit_s)
        for limit_s, lines in {
            0.3: ("--help", "--version", "help"),
            0.45: ("pretrain --help",),  # 0.29 on an idle machine
            1.0: ("pretrain lr=0.1", "evaluate wieghts=x", "export x=1", "shard sorce=1", "plan gpsu=1",
                  "export to=onyx weights=a output=b", "trian", "pretrain recipe=./nowhere.yaml"),
        }.items()
        for words in lines
    ],
)  # fmt: skip
def test_help_and_a_wrong_word_of_any_verb_cost_little_processor_time(words, limit_s):
    code = "import sys; from seer.cli.main import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    seconds = []
    for _ in range(3):  # the least of them: a busy machine adds, and takes nothing away
        said, used = processor_s(code, *words)
        assert said[-1] == "False"
        seconds.append(used)
    assert min(seconds) < limit_s or min(seconds) < limit_s * slowness()
