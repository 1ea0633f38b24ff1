"""Archives that cannot be read, among others that can: refused with the remedy, or passed over by number and named."""

import gzip
import json
from pathlib import Path

import pytest

from seer.core.errors import RequestError
from seer.data.shards.bad_archives import BadArchives
from seer.data.shards.open import open_shards
from seer.data.shards.shard import fingerprint
from seer.data.shards.tar import TarError
from tests.data.image_files import jpeg, png, write_tar
from tests.data.test_ground_and_limits import large
from tests.messages import naming, says
from tests.program import SMALL, seer


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Three sound archives, and four that are not: empty, cut, compressed, without an image."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for i in range(6):
        write_tar(folder / f"{i}.tar", [(f"{i}-{n}.jpg", jpeg(10 * i + n)) for n in range(8)])
    (folder / "1.tar").write_bytes(b"")
    (folder / "2.tar").write_bytes((folder / "2.tar").read_bytes()[:5000])
    (folder / "4.tar").write_bytes(gzip.compress((folder / "4.tar").read_bytes()))
    write_tar(folder / "6.tar", [("notes.txt", b"x")])
    return folder


BAD = {"1.tar": "no end mark", "2.tar": "cut inside", "4.tar": "gzip", "6.tar": "no images"}


def test_so_many_are_passed_over_as_were_asked_for_and_the_rest_is_read(tars, caplog):
    bad = BadArchives(4)
    shards = open_shards(tars, bad=bad)
    assert [shard.path.name for shard in shards] == ["0.tar", "3.tar", "5.tar"]
    assert {Path(path).name: BAD[Path(path).name] in why for path, why in bad.found.items()} == dict.fromkeys(BAD, True)
    assert fingerprint(shards) == fingerprint(open_shards([tars / "0.tar", tars / "3.tar", tars / "5.tar"]))
    assert all(sum(f"{name} is passed over" in r.getMessage() for r in caplog.records) == 1 for name in BAD)


def test_one_more_than_that_ends_it_with_all_names_and_the_remedy(tars):
    with pytest.raises(TarError, match=naming("1.tar", "no end mark", "max_bad_archives=1")):
        open_shards(tars, bad=BadArchives(0, "max_bad_archives"))
    with pytest.raises(RequestError, match=naming("4.tar", "1.tar", "2.tar", "gunzip", "data.max_bad_archives=3")):
        open_shards(tars, bad=BadArchives(2, "data.max_bad_archives"))
    with pytest.raises(TarError) as unasked:  # of a verb that has no such word
        open_shards(tars)
    assert "max_bad_archives" not in str(unasked.value)
    with pytest.raises(TarError) as alone:
        open_shards(tars / "1.tar", bad=BadArchives(0, "max_bad_archives"))
    assert "max_bad_archives" not in str(alone.value) and "1.tar: no end mark" in str(alone.value)
    with pytest.raises(TarError, match=naming("none of 2", "1.tar")):
        open_shards([tars / "1.tar", tars / "2.tar"], bad=BadArchives(5))


def test_a_folder_without_images_is_never_passed_over(tars, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RequestError, match=naming("empty", "jpg")):
        open_shards([tars / "0.tar", tmp_path / "empty"], bad=BadArchives(9))


def test_shard_and_its_indexes_name_them_in_their_results(tars, tmp_path, capfd):
    words = ("shard", f"source={tars}", "processes=2")
    for more, count in (((), 24), (("index_only=true",), 24)):
        output = tmp_path / f"o{len(more)}"
        ended = seer(capfd, *words, *more, f"output={output}", "max_bad_archives=3")
        assert ended.status in (65, 78) and says(ended.result["error"], "max_bad_archives=4")
        ended = seer(capfd, *words, *more, f"output={output}", "max_bad_archives=4")
        assert ended.status == 0 and ended.result["pictures"] == count, ended.words
        assert {Path(path).name for path in ended.result["bad_archives"]} == set(BAD)
    assert len(json.loads((tmp_path / "o1" / "manifest.json").read_text())["shards"]) == 3
    assert sum(map(len, open_shards(tmp_path / "o1"))) == 24
    ended = seer(capfd, *words, "index_only=true", f"output={tmp_path / 'o1'}", "max_bad_archives=4")
    assert ended.status == 0 and set(map(Path, ended.result["bad_archives"])) == {tars / name for name in BAD}


@pytest.mark.slow
def test_a_run_passes_them_over_and_its_result_names_them(tars, tmp_path, capfd):
    words = ("pretrain", *SMALL, f"data.source={tars}", f"output={tmp_path / 'run'}", "steps=2", "batch=8")
    refused = seer(capfd, *words)
    assert refused.status == 65 and says(refused.result["error"], "data.max_bad_archives=")
    ended = seer(capfd, *words, "data.max_bad_archives=4")
    assert ended.status == 0, ended.words
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert {Path(path).name for path in result["bad_archives"]} == set(BAD)


@pytest.fixture
def run(tars, tmp_path, capfd) -> Path:
    ended = seer(capfd, "pretrain", *SMALL, f"data.source={tars / '0.tar'}", f"output={tmp_path / 'run'}", "steps=1")
    assert ended.status == 0, ended.words
    return tmp_path / "run"


def classes(tmp_path: Path, name: str) -> Path:
    """Returns a folder of two sound archives of classes 0 and 1, one that is empty, and in the first a large JPEG and PNG."""
    folder = tmp_path / name
    folder.mkdir()
    for i in range(2):
        members = [
            (f"{i}-{n}.{end}", data) for n in range(8) for end, data in (("cls", b"%d" % (n % 2)), ("png", png(n)))
        ]
        more = [("a.cls", b"0"), ("a.jpg", large()), ("b.cls", b"1"), ("b.png", png(3, 640, 960))]
        write_tar(folder / f"{i}.tar", members + more * (i == 0))
    (folder / "2.tar").write_bytes(b"")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["knn", "rankme"])
def test_an_evaluation_passes_over_bad_archives_and_large_images_as_a_run_does(run, tmp_path, capfd, kind):
    train, test = classes(tmp_path, "a"), classes(tmp_path, "b")
    sides = ["train", "test"] if kind == "knn" else ["train"]
    words = ("evaluate", f"eval={kind}", f"weights={run}", f"data.train={train}", "data.size=16")
    words += (f"data.test={test}",) if kind == "knn" else ()
    refused = seer(capfd, *words)
    assert refused.status == 65 and says(refused.result["error"], "2.tar", "data.max_bad_archives=1")
    if kind == "knn":  # of both together
        second = seer(capfd, *words, "data.max_bad_archives=1")
        assert second.status == 65 and says(second.result["error"], "data.max_bad_archives=2")
    ended = seer(capfd, *words, "data.max_bad_archives=2")
    assert ended.status == 0, ended.words
    bad = {str(folder / "2.tar") for folder in (train, test)[: len(sides)]}
    assert set(ended.result["bad_archives"]) == bad
    assert [ended.result[side] for side in sides] == [18] * len(sides) and "unreadable" not in ended.result
    ended = seer(capfd, *words, "data.max_bad_archives=2", "data.max_pixels=500000")
    assert [ended.result[side] for side in sides] == [17] * len(sides)  # the JPEG is decoded at a reduced scale
    assert ended.result["unreadable"] == len(sides)


@pytest.mark.slow
def test_the_probe_of_a_run_has_its_own_words_for_them(tars, tmp_path, capfd):
    images = classes(tmp_path, "a")
    words = ("pretrain", *SMALL, f"data.source={tars / '0.tar'}", f"output={tmp_path / 'run'}", "steps=1")
    words += (f"eval.train={images}", f"eval.test={images}", "eval.size=16", "eval.k=2")
    refused = seer(capfd, *words)
    assert refused.status == 65 and says(refused.result["error"], "2.tar", "eval.max_bad_archives=1")
    ended = seer(capfd, *words, "eval.max_bad_archives=1", "eval.max_pixels=500000")
    assert ended.status == 0, ended.words
    assert set(ended.result["bad_archives"]) == {str(images / "2.tar")} and ended.words.count("is passed over") == 1
    assert (ended.result["probe"]["train"], ended.result["probe"]["unreadable"]) == (17, 2)
    other = [word.replace("run", "run2") if word.startswith("output=") else word for word in words]
    ended = seer(capfd, *other, "eval.max_bad_archives=1", "data.max_pixels=500000")  # what nothing else says
    assert ended.result["probe"]["unreadable"] == 2
    assert seer(capfd, *words, "eval.max_pixels=3").status == 78
