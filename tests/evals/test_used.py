"""Labels by every word, on real shards; what was used is counted by class, and test images that are train images are found."""

import json

import numpy as np
import pytest

from seer.core.errors import RequestError
from seer.data.shards.open import open_shards
from seer.evals.features import LabelledImages
from seer.evals.used import MOST_TOLD, overlap, sizes, tell_overlap, used
from tests.data.image_files import png, write_tar
from tests.evals.test_labels import both, folder, foreign, names_of, sharded
from tests.messages import naming


def spread(path, places):
    for n, place in enumerate(places):
        (path / place).parent.mkdir(parents=True, exist_ok=True)
        (path / f"{place}.png").write_bytes(png(n))
    return path


def of(source, labels="auto", **how) -> LabelledImages:
    return LabelledImages(open_shards(source), size=16, labels=labels, **how)


def read(*sides: LabelledImages) -> None:
    for side in sides:
        assert sum(len(one.labels) for one in side.batches(2)) == len(side) - len(side.broken)


@pytest.mark.parametrize("packed", [False, True])
def test_a_wrapper_and_folders_inside_a_class_make_no_classes(tmp_path, packed):
    """Each folder that directly holds images was a class: here `2019` and `2020`, with ants and bees in both."""
    source = spread(tmp_path / "x", ["all/ant/2019/1", "all/ant/2020/2", "all/bee/2019/3"])
    if packed:
        files = sorted(source.rglob("*.png"))
        source = write_tar(tmp_path / "x.tar", [(str(f.relative_to(source)), f.read_bytes()) for f in files])
    assert names_of(of(source)) == ["ant", "ant", "bee"]
    assert names_of(of(source, "folder:-1")) == ["2019", "2020", "2019"]
    assert names_of(of(source, "folder:2")) == ["ant", "ant", "bee"]


def test_some_images_take_the_folders_that_all_of_them_do(tmp_path):
    source = spread(tmp_path, ["ant/x/1", "ant/x/2", "ant/y/3", "ant/y/4", "bee/1"])
    assert of(source, most=2, like=of(source)).classes == ["ant", "bee"]
    with pytest.raises(RequestError, match=naming("ant", "labels=folder:1")):
        of(source, most=2)


def test_images_outside_of_class_folders_are_unlabelled_and_told(tmp_path, told):
    images = of(spread(tmp_path, ["ant/1", "bee/2", "3", "4"]))
    assert images.classes == ["ant", "bee"] and (len(images), images.unlabelled) == (2, 2)
    (record,) = told.records
    assert "2 of the 4" in record.message and "50.0%" in record.message


def test_classes_of_test_lie_where_those_of_train_are(tmp_path):
    train, test = spread(tmp_path / "a", ["ant/1", "bee/2"]), spread(tmp_path / "b", ["bee/drone/3", "bee/queen/4"])
    assert names_of(of(test, like=of(train))) == ["bee", "bee"]


@pytest.mark.parametrize("kind", [folder, sharded])
def test_names_that_look_like_numbers_or_nothing_are_names(tmp_path, kind, told):
    from tests.evals import test_labels

    names = ["007", "1.0", "7", "Null", "cafe\u0301", "caf\u00e9", "tabby cat", "true"]
    colors = dict(zip(names, np.random.default_rng(0).integers(0, 255, (len(names), 3)).tolist(), strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_labels, "COLORS", colors)
        pair = both(kind(tmp_path / "a", names, 1), folder(tmp_path / "b", [*reversed(names)], 1))
    assert pair[0].classes == sorted(names) and sorted(names_of(pair[1])) == sorted(names)
    alike = [one.message for one in told.records if "look alike" in one.message]
    assert alike and all("cafe\\u0301" in message for message in alike)


def test_a_class_that_is_written_otherwise_in_test_is_told_as_such(tmp_path, told):
    train, test = spread(tmp_path / "a", ["Ant/1", "bee/2"]), spread(tmp_path / "b", ["ant/1", "bee/2"])
    assert of(test, like=of(train)).classes == ["Ant", "bee", "ant"]
    (record,) = told.records
    assert "'ant' is not 'Ant'" in record.message


@pytest.mark.parametrize("packed", [False, True])
def test_labels_from_a_table_are_those_of_its_rows(tmp_path, packed, told):
    source = spread(tmp_path / "x", ["a/1", "a/2", "b/1", "b/3", "4"])
    if packed:
        files = sorted(source.rglob("*.png"))
        source = write_tar(tmp_path / "x.tar", [(str(f.relative_to(source)), f.read_bytes()) for f in files])
    (tmp_path / "l.csv").write_text("file,label\na/1.png,true\nb/1.png,1.0\n2,true\n3.png,\nnone.png,ant\n")
    images = of(source, str(tmp_path / "l.csv"))
    assert dict(zip(open_shards(source)[0].keys(), images.labels.of[0].tolist(), strict=True)) == {
        "4": -1, "a/1": 1, "a/2": 1, "b/1": 0, "b/3": -1,
    }  # fmt: skip
    assert images.classes == ["1.0", "true"] and images.unlabelled == 2
    assert "2 of the 5" in told.text and "l.csv" in told.text


@pytest.mark.parametrize(
    ("rows", "facts"),
    [
        ("1.png,ant\n2.png,bee\n", ["1.png", "a/1", "b/1"]),
        ("x.png,ant\ny.png,bee\n", ["none of its 2", "x.png", "a/1"]),
    ],
)
def test_a_name_for_two_images_and_a_table_of_other_images_are_refused(tmp_path, rows, facts):
    source = spread(tmp_path / "x", ["a/1", "a/2", "b/1"])
    (tmp_path / "l.csv").write_text(rows)
    with pytest.raises(RequestError, match=naming("l.csv", *facts)):
        of(source, str(tmp_path / "l.csv"))


@pytest.mark.parametrize("loose", [False, True])
def test_labels_from_members_that_are_json_or_text(tmp_path, loose):
    members = []
    for i, name in enumerate(["ant", "bee", "007"]):
        data = json.dumps({"label": name, "number": i}).encode()
        members += [(f"{i}.png", png(i)), (f"{i}.json", data), (f"{i}.txt", name.encode() + b"\n")]
    source = tmp_path / "x"
    source.mkdir()
    for name, data in members if loose else ():
        (source / name).write_bytes(data)
    source = source if loose else write_tar(source / "x.tar", members)
    assert names_of(of(source, "json:label")) == names_of(of(source, "text:txt")) == ["ant", "bee", "007"]
    assert names_of(of(source, "json:number")) == ["0", "1", "2"]
    with pytest.raises(RequestError, match=naming("json", "color")):
        of(source, "json:color")


def test_text_in_cls_is_a_name_where_that_is_said(tmp_path):
    source = foreign(tmp_path, [("ant", b"ant"), ("bee", b"bee"), ("cat", None)])
    with pytest.raises(RequestError, match=naming("cls", "x.tar", "labels=text:cls")):
        of(source)
    assert names_of(of(source, "text:cls")) == ["ant", "bee"]


def test_a_member_that_is_no_name_is_refused_with_its_sample(tmp_path):
    source = write_tar(tmp_path / "x.tar", [("a.png", png(0)), ("a.json", b'{"label": [1]}')])
    with pytest.raises(RequestError, match=naming("x.tar", "json", "list")):
        of(source, "json:label")


def test_labels_of_train_and_of_test_may_be_told_apart(tmp_path):
    for part in ("a", "b"):
        spread(tmp_path / part, ["1", "2"])
        (tmp_path / f"{part}.csv").write_text("1.png,ant\n2.png,bee\n" if part == "a" else "1.png,bee\n2.png,ant\n")
    words = [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]
    assert names_of(both(tmp_path / "a", tmp_path / "b", labels=words)[1]) == ["bee", "ant"]
    with pytest.raises(RequestError, match="two"):
        both(tmp_path / "a", tmp_path / "b", labels=[*words, "auto"])


def test_test_images_that_are_train_images_are_counted_and_told_with_their_share(tmp_path, told):
    train = spread(tmp_path / "a", ["ant/1", "ant/2", "bee/3", "bee/4"])
    test = spread(tmp_path / "b", ["ant/x", "bee/y", "bee/z", "bee/other"])
    for name, same in (("ant/x", "bee/3"), ("bee/y", "ant/1"), ("bee/z", "ant/1")):
        (test / f"{name}.png").write_bytes((train / f"{same}.png").read_bytes())
    (test / "bee/other.png").write_bytes(png(99))
    pair = both(train, test)
    assert overlap(*pair) == {}  # none was read so far
    read(*pair)
    assert overlap(*pair) == {"overlap": 3, "overlap_share": 0.75} and not told.records
    tell_overlap(*pair)
    assert "3 of the 4" in told.text and "75.0%" in told.text
    same = both(train, train)
    read(*same)
    assert overlap(*same) == {"overlap": 4, "overlap_share": 1.0}
    none = both(train, spread(tmp_path / "c", ["ant/1", "bee/2"]))
    (tmp_path / "c/ant/1.png").write_bytes(png(50))
    (tmp_path / "c/bee/2.png").write_bytes(png(51))
    read(*none)
    told.clear()
    tell_overlap(*none)
    assert overlap(*none) == {"overlap": 0, "overlap_share": 0.0} and not told.records


def test_shards_of_one_folder_overlap_whatever_their_names(tmp_path):
    pair = both(sharded(tmp_path / "a", ["ant", "bee"]), tmp_path / "a/loose")
    read(*pair)
    assert overlap(*pair) == {"overlap": 8, "overlap_share": 1.0}


def test_counts_are_of_the_images_that_were_used(tmp_path):
    train = spread(tmp_path / "a", ["ant/1", "ant/2", "bee/3", "cat/4", "5"])
    (train / "cat/4.png").write_bytes(b"broken")
    (train / "ant/2.png").write_bytes(b"")
    test = spread(tmp_path / "b", ["bee/6", "dog/7"])  # the first is ant/1, the second was ant/2
    pair = both(train, test)
    read(*pair)
    found = used(*pair)
    assert found == {
        "classes": 2, "train": 2, "test": 2, "unlabelled": 1, "unreadable": 2, "overlap": 1, "overlap_share": 0.5,
        "per_class": {"train": {"ant": 1, "bee": 1}, "test": {"bee": 1, "dog": 1}},
    }  # fmt: skip


def test_of_very_many_classes_the_fewest_and_the_most_images_are_told():
    many = {str(n): n + 3 for n in range(MOST_TOLD + 1)}
    assert sizes(many) == {"class_sizes": [3, MOST_TOLD + 3]}
    assert sizes(train=many, test={"1": 1}) == {"class_sizes": {"train": [3, MOST_TOLD + 3], "test": [1, 1]}}
    assert sizes({"a": 1}) == {"per_class": {"a": 1}}
