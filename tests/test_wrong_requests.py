"""A wrong request ends in the first seconds with status 78 and one line that names the value and the remedy."""

from pathlib import Path

import pytest

from tests.data.image_files import jpeg
from tests.messages import says
from tests.program import ROOT, SMALL, Ended, seer

pytestmark = pytest.mark.slow


def refused(ended: Ended) -> str:
    assert ended.status == 78 and ended.result["exit"] == 78
    assert len(ended.words.strip().splitlines()) == 1, ended.words
    return ended.words


def test_an_unknown_key_is_answered_with_the_nearest_right_one(capfd) -> None:
    assert "'task.prototypes'" in refused(seer(capfd, "pretrain", "task.prototpyes=30"))
    assert "'batch'" in refused(seer(capfd, "pretrain", "bacth=30"))


def test_an_unknown_verb_is_answered_with_the_verbs(capfd) -> None:
    assert "pretrain" in refused(seer(capfd, "train"))


def test_no_source_is_told_with_what_a_source_is(capfd) -> None:
    assert "data.source=" in refused(seer(capfd, "pretrain", *SMALL))


def test_a_folder_without_images_is_told_and_leaves_no_run_folder(capfd, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    words = (f"data.source={tmp_path / 'empty'}", f"output={tmp_path / 'run'}")
    assert says(refused(seer(capfd, "pretrain", *SMALL, *words)), "images", tmp_path / "empty")
    assert not (tmp_path / "run").exists()


def test_a_source_that_does_not_exist_is_named(capfd, tmp_path: Path) -> None:
    words = (f"data.source={tmp_path / 'nowhere'}", f"output={tmp_path / 'run'}")
    assert "nowhere" in refused(seer(capfd, "pretrain", *SMALL, *words))


def test_images_of_the_probe_that_do_not_exist_or_have_no_labels_are_told_and_leave_no_run_folder(
    capfd, tmp_path: Path, images: Path
) -> None:
    words = (f"data.source={images}", f"output={tmp_path / 'run'}", f"eval.test={images}")
    assert "nowhere" in refused(seer(capfd, "pretrain", *SMALL, *words, f"eval.train={tmp_path / 'nowhere'}"))
    assert "no labels" in refused(seer(capfd, "pretrain", *SMALL, *words, f"eval.train={images}"))
    assert not (tmp_path / "run").exists()


def test_fewer_than_two_prototypes_are_refused(capfd, tmp_path: Path, images: Path) -> None:
    words = ("task.prototypes=1", f"data.source={images}", f"output={tmp_path / 'run'}")
    assert "prototypes=1" in refused(seer(capfd, "pretrain", *SMALL, *words))


def test_a_batch_smaller_than_the_ranks_is_refused(capfd, tmp_path: Path, images: Path, monkeypatch) -> None:
    from contextlib import contextmanager

    import torch

    from seer.parallel.world import World
    from seer.run import session

    @contextmanager
    def four_ranks(*_: object):
        yield World(0, 4, 0, torch.device("cpu"))

    monkeypatch.setattr(session, "open_world", four_ranks)
    words = ("batch=2", f"data.source={images}", f"output={tmp_path / 'run'}")
    text = refused(seer(capfd, "pretrain", *SMALL, *words))
    assert "batch=2" in text and "4 ranks" in text


def test_an_output_folder_of_another_run_is_refused_with_the_difference(capfd, tmp_path: Path, images: Path) -> None:
    words = (f"data.source={images}", f"output={tmp_path / 'run'}", "steps=1")
    assert seer(capfd, "pretrain", *SMALL, *words).status == 0
    text = refused(seer(capfd, "pretrain", *SMALL, *words, "seed=5"))
    assert "another run" in text and "seed: 0 -> 5" in text


def test_a_corrected_word_goes_on_in_the_folder_that_the_wrong_one_left(capfd, tmp_path: Path, images: Path) -> None:
    (tmp_path / "run").mkdir()
    for name, text in {"config.yaml": "seed: 5\nbatch: 3\n", "train.log": "wrong\n", "result.json": "{}"}.items():
        (tmp_path / "run" / name).write_text(text)
    (tmp_path / "run" / ".result.json.writing").touch()  # killed while it was written
    words = (f"data.source={images}", f"output={tmp_path / 'run'}", "steps=1")
    assert seer(capfd, "pretrain", *SMALL, *words).status == 0


def test_a_run_that_was_killed_before_its_config_was_written_starts_anew_in_its_folder(capfd, tmp_path, images) -> None:
    (tmp_path / "run").mkdir()
    for name in (".lock", ".config.yaml.writing"):
        (tmp_path / "run" / name).write_text("")
    words = (f"data.source={images}", f"output={tmp_path / 'run'}", "steps=1")
    assert seer(capfd, "pretrain", *SMALL, *words).status == 0


def test_an_output_folder_with_strange_files_is_refused(capfd, tmp_path: Path, images: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    text = refused(seer(capfd, "pretrain", *SMALL, f"data.source={images}", f"output={tmp_path}"))
    assert "not empty" in text and (tmp_path / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("batch=0", "batch=0"),
        ("batch=many", "batch='many'"),
        ("steps=abc", "'abc'"),
        ("task.epsilon=-1", "epsilon=-1"),
        ("task.temperature=nan", "nan"),
        ("schedule.peak=high", "'high'"),
        ("schedule.warmup=100", "warmup"),
        ("precision.dtype=fp8", "fp8"),
        ("precision=apex_o1", "precision=fp16"),
        ("augment.sizes=[16,32]", "[16, 32]"),
        ("augment.blur=2", "blur=2"),
        ("data.lanes=5", "5 lanes"),
        ("model=regnety_17gf", "regnety_16gf"),
        ("model._target_=os.mkdir", "os.mkdir"),
        ("groups=[{pattern: prototpyes}]", "prototpyes"),
        ("every.log=0", "every.log=0"),
    ],
)
def test_a_wrong_value_is_named(capfd, tmp_path: Path, images: Path, word: str, named: str) -> None:
    words = (f"data.source={images}", f"output={tmp_path / 'run'}", "steps=10", word)
    assert named in refused(seer(capfd, "pretrain", *SMALL, *words))


def test_a_run_with_other_lanes_is_told_which_words_go_on_with_it(capfd, tmp_path: Path, images: Path) -> None:
    words = (f"data.source={images}", f"output={tmp_path / 'run'}", "steps=1")
    assert seer(capfd, "pretrain", *SMALL, *words, "data.lanes=8").status == 0
    ended = seer(capfd, "pretrain", *SMALL, *words)
    assert ended.status == 78 and says(ended.words, "data.lanes as", "data.lanes=16")
    assert seer(capfd, "pretrain", *SMALL, *words, "data.lanes=8").status == 0


def test_a_source_behind_a_url_is_refused_and_no_launch_script_promises_one(capfd, tmp_path: Path) -> None:
    words = ("data.source=https://host/{000..009}.tar", f"output={tmp_path / 'run'}")
    assert "https://host" in refused(seer(capfd, "pretrain", *SMALL, *words)) and not (tmp_path / "run").exists()
    scripts = [p for p in (ROOT / "launch").iterdir() if "SOURCE=" in p.read_text()]
    assert len(scripts) == 3 and not any("URL" in p.read_text() for p in scripts)


@pytest.mark.parametrize("word", ["data.image=png", "data.fields={mask: jpg}"])
def test_a_source_whose_images_are_none_by_what_was_said_of_their_endings_has_none(capfd, tmp_path: Path, word) -> None:
    for i in range(20):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / f"{i}.jpg").write_bytes(jpeg(i))
    words = (f"data.source={tmp_path / 'images'}", f"output={tmp_path / 'run'}", word)
    ended = seer(capfd, "pretrain", *SMALL, *words)
    assert ended.status == 78 and "no images in" in ended.result["error"], ended.words
    assert not (tmp_path / "run").exists()
