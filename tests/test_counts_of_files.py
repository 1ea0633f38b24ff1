"""What was found, used and passed over is told in the same counts by every verb, from a folder and from a tar."""

import shutil

import pytest

from tests.data.image_files import jpeg
from tests.data.mixed_files import EXPECTED, in_folder, in_tar
from tests.messages import says
from tests.program import SMALL, losses, seer

pytestmark = pytest.mark.slow
TINY = (*SMALL, "batch=4", "data.lanes=2", "steps=1")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    place = tmp_path_factory.mktemp("mixed")
    return {"folder": in_folder(place / "d"), "tar": in_tar(place / "t.tar")}


def test_pretrain_shard_and_evaluate_tell_the_same_counts_of_a_folder_and_of_a_tar(sources, tmp_path, capfd):
    weights = tmp_path / "folder-run"
    for kind, source in sources.items():
        trained = seer(capfd, "pretrain", *TINY, f"data.source={source}", f"output={tmp_path / f'{kind}-run'}")
        assert trained.status == 0, trained.words
        assert trained.result["data"] == EXPECTED and "20 images used" in trained.words
        sharded = seer(capfd, "shard", f"source={source}", f"output={tmp_path / f'{kind}-shards'}")
        assert sharded.status == 0 and sharded.result["data"] == EXPECTED and sharded.result["pictures"] == 20
        pair = (f"data.train={source}", f"data.test={source}", "data.labels=folder", "data.size=32")
        judged = seer(capfd, "evaluate", "eval=knn", "eval.k=2", f"weights={weights}", *pair)
        assert judged.status == 0, judged.words
        counts = {
            name: {k: v for k, v in one.items() if k != "fingerprint"} for name, one in judged.result["data"].items()
        }
        assert counts == {"train": EXPECTED, "test": EXPECTED} and judged.result["train"] == 20


def test_a_run_that_began_with_four_endings_goes_on_with_the_images_it_had(tmp_path, capfd):
    """The fingerprint of a folder of jpg alone is that of earlier versions, which went on when a bmp lay there."""
    folder, run = tmp_path / "d", tmp_path / "run"
    for n in range(8):
        (folder / "in").mkdir(parents=True, exist_ok=True)
        (folder / "in" / f"{n}.jpg").write_bytes(jpeg(n, 40, 40))
    words = (
        "pretrain",
        *TINY,
        "steps=3",
        "every.checkpoint=1",
        "every.keep=5",
        f"data.source={folder}",
        f"output={run}",
    )
    whole = seer(capfd, *words)
    assert whole.status == 0 and whole.result["data"]["used"] == 8, whole.words
    before = losses(run)
    for step in (2, 3):
        shutil.rmtree(run / "checkpoints" / f"step-{step:08d}", ignore_errors=True)
    (run / "result.json").unlink()
    (folder / "in" / "0a.bmp").write_bytes(jpeg(9, 40, 40))
    again = seer(capfd, *words)
    assert again.status == 0 and losses(run) == before, again.words
    assert says(again.words, "goes on with the 8 images", "9") and again.result["data"]["used"] == 8
    new = seer(capfd, *words[:-1], f"output={tmp_path / 'new'}")
    assert new.result["data"]["used"] == 9
