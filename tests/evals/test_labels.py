"""Classes are matched by name wherever they come from: each class has a color of its own, which tells who is who."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from seer.core.errors import RequestError
from seer.data.shards.open import open_shards
from seer.data.shards.rewrite import Part, write_part
from seer.data.shards.shard import class_names
from seer.evals.features import LabelledImages
from seer.evals.knn import baselines
from seer.evals.labels import UNLABELLED, Labels, find, match
from seer.evals.probe import labelled
from tests.data.image_files import encoded, png, write_tar
from tests.messages import naming, says

COLORS = {"ant": (200, 30, 30), "bee": (30, 200, 30), "cat": (30, 30, 200), "dog": (200, 200, 30)}


def of_color(name: str, seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(-20, 20, (16, 16, 3))
    return encoded((np.array(COLORS[name]) + noise).clip(0, 255).astype(np.uint8), "PNG")


def folder(path, names, each=4):
    for n, name in enumerate(names):
        (path / name).mkdir(parents=True)
        for i in range(each):
            (path / name / f"{i}.png").write_bytes(of_color(name, 100 * n + i))
    return path


def sharded(path, names, each=4):
    """As `seer shard labels=folder` writes them: classes are numbered in the order of the names that are there."""
    folder(path / "loose", names, each)
    loose = open_shards(path / "loose")
    part = Part(loose, 0, len(loose[0]), classes=class_names(loose))
    write_part(part, path / "shards", processes=1, max_bad=0, progress=lambda n: None)
    assert json.loads((path / "shards/manifest.json").read_text())["classes"] == sorted(names)
    return path / "shards"


def packed(path, names, each=4):
    """A tar of the folder, without an index."""
    folder(path / "loose", names, each)
    files = sorted((path / "loose").rglob("*.png"))
    return write_tar(path / "x.tar", [(str(f.relative_to(path / "loose")), f.read_bytes()) for f in files])


def foreign(path, rows):
    """A stranger's tar: (class of the color, what `cls` says, or None for no such member)."""
    path.mkdir(parents=True, exist_ok=True)
    members = [
        (f"{i:03d}.{extension}", data)
        for i, (name, cls) in enumerate(rows)
        for extension, data in (("cls", cls), ("png", of_color(name, i)))
        if data is not None
    ]
    return write_tar(path / "x.tar", members)


def both(train, test, **how) -> tuple[LabelledImages, LabelledImages]:
    given = {"train": str(train), "test": str(test), "size": 16, "resize": None, "labels": "auto", "most": 0}
    given |= {"max_pixels": None, "max_bad_archives": 0}
    return labelled(SimpleNamespace(**given | how), 16)


def names_of(images: LabelledImages) -> list[str]:
    return [images.classes[label] for one in images.batches() for label in one.labels.tolist()]


@pytest.mark.parametrize("test", [folder, sharded, packed])
@pytest.mark.parametrize("train", [folder, sharded, packed])
@pytest.mark.parametrize("present", [("bee", "cat"), ("cat",), ("cat", "ant", "bee")])
def test_classes_are_matched_by_name_where_test_lacks_some_that_train_has(tmp_path, train, test, present, told):
    pair = both(train(tmp_path / "a", ["ant", "bee", "cat"]), test(tmp_path / "b", present))
    assert sorted(names_of(pair[1])) == [name for name in sorted(present) for _ in range(4)]
    assert baselines(*pair, k=3)["knn_colours"] == 1.0
    assert pair[0].classes == ["ant", "bee", "cat"] and not told.records


@pytest.mark.parametrize("test", [folder, sharded])
@pytest.mark.parametrize("train", [folder, sharded])
def test_a_class_that_train_lacks_is_named_and_counts_as_wrong(tmp_path, train, test, told):
    pair = both(train(tmp_path / "a", ["bee", "cat"]), test(tmp_path / "b", ["ant", "bee", "cat", "dog"]))
    assert baselines(*pair, k=3)["knn_colours"] == 0.5
    (record,) = told.records
    assert "ant, dog" in record.message and "8 images" in record.message
    assert len(pair[0].classes) == 2 and pair[1].classes == ["bee", "cat", "ant", "dog"]


def test_no_class_in_common_is_refused_with_names_of_both(tmp_path):
    with pytest.raises(RequestError, match=naming("ant, bee", "cat, dog")):
        both(sharded(tmp_path / "a", ["cat", "dog"]), folder(tmp_path / "b", ["ant", "bee"]))


ROWS = [("ant", None), ("cat", b"7"), ("ant", b"3"), ("bee", None), ("cat", b"7\n"), ("ant", b"03")]


@pytest.mark.parametrize("how", ["auto", "member"])
def test_labels_are_looked_for_in_all_samples_and_those_without_are_left_out_and_told_once(tmp_path, how, told):
    """Whether the first sample has a `cls` decided it for all: without one, the folders became classes in silence."""
    pair = both(foreign(tmp_path / "a/x", ROWS), foreign(tmp_path / "b", [*ROWS[1:3], *ROWS[4:]]), labels=how)
    assert names_of(pair[0]) == ["7", "3", "7", "3"] and pair[0].classes == ["3", "7"]
    assert (len(pair[0]), pair[0].unlabelled, len(pair[1]), pair[1].unlabelled) == (4, 2, 4, 0)
    assert baselines(*pair, k=2)["knn_colours"] == 1.0
    (record,) = told.records
    assert "2 of the 6" in record.message and "33.3%" in record.message


def test_only_the_images_that_are_used_are_looked_at(tmp_path):
    shards = open_shards(foreign(tmp_path, ROWS))
    with pytest.raises(RequestError, match=naming("x.tar", "labels=")):
        LabelledImages(shards, size=16, most=2)  # rows 0 and 3, which have none
    few = LabelledImages(shards, size=16, most=3)  # rows 0, 2, 4
    assert (names_of(few), few.unlabelled) == (["3", "7"], 1)


def test_folder_names_are_the_classes_where_they_are_asked_for_though_there_are_members(tmp_path):
    rows = [
        (f"{name}/{i}.{e}", d) for i, name in enumerate(("bee", "ant")) for e, d in (("png", png(i)), ("cls", b"0"))
    ]
    shards = open_shards(write_tar(tmp_path / "x.tar", rows))
    assert names_of(LabelledImages(shards, size=16, labels="folder")) == ["bee", "ant"]
    assert names_of(LabelledImages(shards, size=16)) == ["0", "0"]


def test_numbers_that_nothing_names_are_their_own_names(tmp_path):
    rows = [("ant", b"5"), ("bee", b"900000000000"), ("cat", b"6")] * 3
    pair = both(foreign(tmp_path / "a", rows), foreign(tmp_path / "b", rows[1:3]))
    assert pair[0].classes == ["5", "6", "900000000000"] and names_of(pair[1]) == ["900000000000", "6"]
    assert baselines(*pair, k=3)["knn_colours"] == 1.0


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("named", [folder, sharded])
def test_numbers_on_one_side_and_names_on_the_other_are_refused_with_the_remedy(tmp_path, named, turned):
    sides = [named(tmp_path / "a", ["ant", "bee"]), foreign(tmp_path / "b", [("ant", b"0"), ("bee", b"1")])]
    with pytest.raises(RequestError, match=r"ant.*labels=folder"):
        both(*(reversed(sides) if turned else sides))


def test_shards_whose_manifest_is_gone_have_numbers_alone(tmp_path):
    train, test = (sharded(tmp_path / name, ["ant", "bee"]) for name in "ab")
    (test / "manifest.json").unlink()
    with pytest.raises(RequestError, match=naming("cls", "labels=folder")):
        both(train, test)


def test_some_shards_with_names_and_some_without_are_refused(tmp_path):
    train = [str(sharded(tmp_path / "a", ["ant", "bee"])), str(foreign(tmp_path / "b", [("ant", b"0")]))]
    with pytest.raises(RequestError, match=naming("shard-000000.tar", "manifest", "ant", "0 in `cls`")):
        LabelledImages(open_shards(train), size=16)


def test_shards_of_two_folders_on_one_side_are_joined_by_name(tmp_path):
    train = [str(sharded(tmp_path / "a", ["ant", "cat"])), str(sharded(tmp_path / "b", ["bee", "cat"]))]
    joined = LabelledImages(open_shards(train), size=16)
    test = LabelledImages(open_shards(folder(tmp_path / "c", ["ant", "bee", "cat"])), size=16, like=joined)
    assert joined.classes == ["ant", "bee", "cat"] and baselines(joined, test, k=3)["knn_colours"] == 1.0


def resharded(path, *sources):
    shards = open_shards([str(one) for one in sources])
    total = sum(map(len, shards))
    return write_part(Part(shards, 0, total), path, processes=1, max_bad=0, progress=lambda n: None)


def test_shards_of_shards_keep_the_names_of_the_classes_and_join_those_that_are_numbered_apart(tmp_path, told):
    one, other = sharded(tmp_path / "a", ["ant", "cat"]), sharded(tmp_path / "b", ["bee", "cat"])
    test = folder(tmp_path / "c", ["ant", "bee", "cat"])
    assert resharded(tmp_path / "same", one)["classes"] == ["ant", "cat"]
    assert sorted(names_of(both(one, tmp_path / "same")[1])) == ["ant"] * 4 + ["cat"] * 4
    assert resharded(tmp_path / "joined", one, other)["classes"] == ["ant", "bee", "cat"]
    for train in (tmp_path / "joined", test):
        assert baselines(*both(train, test), k=3)["knn_colours"] == 1.0
    assert baselines(*both(test, tmp_path / "joined"), k=3)["knn_colours"] == 1.0 and not told.records
    assert "classes" not in resharded(tmp_path / "mixed", one, foreign(tmp_path / "d", [("ant", b"0")]))
    assert len(told.records) == 1


def labels(names: list[str], named: bool) -> Labels:
    return Labels([np.arange(-1, len(names), dtype=np.int32)], names, named)


@pytest.mark.parametrize(
    ("folders", "numbers", "expected"),
    [
        (["0", "1", "2"], ["0", "2"], [-1, 0, 2]),
        (["00", "01", "02"], ["1"], [-1, 1]),
        (["0", "2"], ["0", "1"], None),  # the folder 2 is number 1 where `seer shard` numbers it
        (["0", "1", "10", "2", "3", "4", "5", "6", "7", "8", "9"], ["2"], None),
    ],
)
def test_folders_named_by_numbers_match_numbers_where_both_ways_to_number_them_agree(folders, numbers, expected):
    for train, test, wanted in (
        (labels(folders, True), labels(numbers, False), expected),
        (labels(numbers, False), labels(folders, True), None),
    ):
        if expected is None:
            with pytest.raises(RequestError):
                match(train, test)
        elif wanted is not None:
            assert match(train, test).of[0].tolist() == wanted
        else:
            found = match(train, test)
            for number, name in zip(found.of[0][1:].tolist(), folders, strict=True):
                assert int(found.names[number]) == int(name)
                assert number < len(numbers) or str(int(name)) not in numbers


def test_a_number_beyond_the_names_of_the_manifest_is_refused(tmp_path):
    shards = sharded(tmp_path, ["ant", "bee"])
    manifest = json.loads((shards / "manifest.json").read_text())
    (shards / "manifest.json").write_text(json.dumps({**manifest, "classes": ["ant"]}))
    with pytest.raises(RequestError, match=naming("`cls` is 1", "1 classes")):
        LabelledImages(open_shards(shards), size=16)


@pytest.mark.parametrize("classes", [None, "ant", ["ant", "ant"], ["ant", 3], {"ant": 0}])
def test_what_is_no_list_of_names_in_a_manifest_names_nothing(tmp_path, classes):
    shards = sharded(tmp_path, ["ant", "bee"])
    manifest = json.loads((shards / "manifest.json").read_text())
    (shards / "manifest.json").write_text(json.dumps({**manifest, "classes": classes}))
    assert LabelledImages(open_shards(shards), size=16).classes == ["0", "1"]


@pytest.mark.parametrize("indexed", [True, False])
def test_labels_from_headers_are_those_of_the_whole_samples(tmp_path, indexed):
    shards = open_shards(sharded(tmp_path, ["ant", "bee"]) if indexed else foreign(tmp_path, ROWS))
    (shard,) = shards
    rows = [*range(len(shard))][::-2]
    whole = [shard.read(0, row) for row in rows]
    assert list(shard.iter_labels(rows)) == [(one.key, one.fields.get("cls")) for one in whole]
    found = find(shards, [(0, row) for row in rows], "auto")
    assert found.of[0][[row for row in range(len(shard)) if row not in rows]].tolist() == [UNLABELLED] * (
        len(shard) // 2
    )


@pytest.mark.parametrize("where", ["first header", "cls"])
def test_a_row_whose_bytes_are_damaged_is_left_out_and_told_and_the_others_keep_their_labels(tmp_path, where, told):
    shards = sharded(tmp_path, ["ant", "bee"])
    (path,) = shards.glob("*.tar")
    (shard,) = open_shards(shards)
    names = [shard.read(0, row).fields["cls"] for row in range(8)]
    data = bytearray(path.read_bytes())
    begin, size, _ = shard.index[3].item()
    at = begin if where == "first header" else data.index(b"cls", begin)  # the name in the header of the label
    at = at if where == "first header" else (at // 512 + 1) * 512
    assert at < begin + size
    data[at] ^= 0x40
    path.write_bytes(data)
    images = LabelledImages(open_shards(shards), size=16)
    expected = [["ant", "bee"][int(cls)] for row, cls in enumerate(names) if row != 3]
    assert names_of(images) == expected and "row 3 is left out" in told.text
    assert len(images) - len(images.broken) == 7


def test_unlabelled_and_broken_are_no_rows_of_the_figures(tmp_path):
    images = LabelledImages(open_shards(foreign(tmp_path, ROWS)), size=16)
    found = torch.cat([one.labels for one in images.batches(2)])
    assert len(found) == 4 and int(found.min()) >= 0


def test_folders_that_are_classes_themselves_name_nothing_and_the_one_above_them_is_told(tmp_path):
    folder(tmp_path / "set", ["ant", "bee"])
    with pytest.raises(RequestError, match=naming("no labels", "folder above", str(tmp_path / "set"))):
        LabelledImages(open_shards(f"{tmp_path}/set/*"), size=16, labels="folder")
    with pytest.raises(RequestError, match=naming("no labels", ".csv")):
        LabelledImages(open_shards(tmp_path / "set" / "ant"), size=16)
    assert names_of(LabelledImages(open_shards(tmp_path / "set"), size=16)) == ["ant"] * 4 + ["bee"] * 4


def test_a_loose_image_that_is_left_out_is_told_by_its_path(tmp_path, told):
    broken = folder(tmp_path / "set", ["ant", "bee"]) / "bee" / "2.png"
    broken.write_bytes(broken.read_bytes()[:60])
    images = LabelledImages(open_shards(tmp_path / "set"), size=16)
    assert names_of(images) == ["ant"] * 4 + ["bee"] * 3 and f"{broken} is left out" in told.text


def test_a_row_of_a_table_that_labels_an_image_of_train_and_another_of_test_is_told(tmp_path, told):
    train, test = (folder(tmp_path / part, ["ant", "bee"], 2) for part in ("train", "test"))
    short, whole = tmp_path / "short.csv", tmp_path / "whole.csv"
    rows = [f"{name}/{i}.png,{name}" for name in ("ant", "bee") for i in range(2)]
    short.write_text("\n".join(rows))
    whole.write_text("\n".join(f"{part}/{row}" for part in ("train", "test") for row in rows))
    for table, other, shared in ((short, test, True), (short, train, False), (whole, test, False)):
        told.clear()
        assert [len(images) for images in both(train, other, labels=str(table))] == [4, 4]
        assert says(told.text, "4 rows", "train", "test") is shared
