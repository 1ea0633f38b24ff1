"""Every recipe says at its top how it is run and what was seen; each that fits a CPU trains a few steps as it stands."""

import re
import shlex
from pathlib import Path

import pytest

from seer.cli import config
from seer.data import synthetic as sample
from seer.data.shards.writer import write_shards
from seer.run.config import RunConfig
from tests.program import seer

FOLDER = Path(__file__).resolve().parents[1] / "configs" / "recipe"
RECIPES = sorted(p.stem for p in FOLDER.glob("*.yaml") if p.stem != "none")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_opens_with_its_command_and_its_result(recipe: str) -> None:
    top = re.match(r"(?:#.*\n)+", (FOLDER / f"{recipe}.yaml").read_text(encoding="utf-8"))
    assert top, "no comment at the top"
    assert re.search(rf"seer (pretrain|adapt) recipe={recipe}", top[0])
    result = re.search(r"# Result[^:]*: (.+)", top[0])
    assert result and (re.search(r"\d", result[1]) or result[1].startswith("not run"))


def test_the_readme_lists_every_recipe() -> None:
    readme = (FOLDER.parents[1] / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(\w+)` \|", readme, re.M)) == RECIPES


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name.startswith("ablation_")])
def test_every_arm_of_an_ablation_composes_and_differs_from_the_others_in_what_it_says(recipe: str) -> None:
    text = (FOLDER / f"{recipe}.yaml").read_text(encoding="utf-8")
    arms = [shlex.split(line)[2:] for line in re.findall(r"^# (seer pretrain .+)$", text, re.M)]
    assert len(arms) >= 2
    read = [config.flat(config.read("pretrain", words)) for words in arms]
    for words, found in zip(arms, read, strict=True):
        own = {word.partition("=")[0] for word in words}
        differ = {key for key in found if found[key] != read[0].get(key)} | {key for key in read[0] if key not in found}
        assert all(any(key == one or key.startswith(f"{one}.") for one in own) for key in differ), differ
        assert found["steps"] == "600kimg" and found["seed"] == 0  # the same budget
        RunConfig.of({k: v for k, v in config.read("pretrain", words).items() if k != "replay"})
    assert len({str(sorted((k, str(v)) for k, v in one.items() if k != "output")) for one in read}) == len(arms)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["cifar", "sample"])
def test_a_recipe_for_a_cpu_trains_as_it_stands(recipe: str, tmp_path: Path, capfd) -> None:
    write_shards(sample.samples(256, seed=0), tmp_path / "pictures", total=256, per_shard=128)
    words = (f"data.source={tmp_path / 'pictures'}", f"output={tmp_path / 'run'}", "steps=3", "parallel.device=cpu")
    ended = seer(capfd, "pretrain", f"recipe={recipe}", *words)
    assert ended.status == 0, ended.words
    assert ended.result["steps"] == 3 and 0 < ended.result["loss"] < 10
    assert (tmp_path / "run" / "bundle" / "backbone.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [name for name in RECIPES if name.startswith("ablation_")])
def test_every_arm_of_an_ablation_takes_a_step(recipe: str, tmp_path: Path, capfd) -> None:
    write_shards(sample.samples(8, seed=0), tmp_path / "pictures", total=8, per_shard=8)
    text = (FOLDER / f"{recipe}.yaml").read_text(encoding="utf-8")
    for i, line in enumerate(re.findall(r"^# (seer pretrain .+)$", text, re.M)):
        arm = [w for w in shlex.split(line)[2:] if not w.startswith(("data.source=", "eval.", "probe=", "output="))]
        small = () if any(w.startswith("model") for w in arm) else ("model.widths=[8,8]", "model.group_widths=[8,8]")
        small = (*small, "model.depths=[1,1]") if small else ()
        words = (f"data.source={tmp_path / 'pictures'}", f"output={tmp_path / str(i)}", "steps=1", "batch=4")
        ended = seer(
            capfd, "pretrain", *arm, *small, *words, "every.evaluate=0", "data.threads=1", "parallel.device=cpu"
        )
        assert ended.status == 0 and ended.result["steps"] == 1 and 0 < ended.result["loss"] < 10, ended.words
