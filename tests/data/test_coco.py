"""Boxes of COCO's form: numbers by hand, what is left out and why, and what is no such file; real ones where they are at hand."""

import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from seer.core.errors import RequestError
from seer.data.coco import read_coco, read_things
from tests.messages import naming

SHARED = Path(__file__).parents[3] / "shared" / "data"


def content() -> dict:
    return {
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "images": [
            {"id": 1, "file_name": "a/1.jpg", "width": 100, "height": 50},
            {"id": 2, "file_name": "2.jpg"},
            {"id": 9, "file_name": "empty.jpg", "width": 10, "height": 10},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [10, 5, 20, 30]},
            {"id": 2, "image_id": 1, "category_id": 3, "bbox": [90, -5, 20, 30.5]},  # beyond two edges
            {"id": 3, "image_id": 1, "category_id": 3, "bbox": [5, 5, 0, 9]},
            {"id": 4, "image_id": 1, "category_id": 3, "bbox": [120, 5, 3, 9]},
            {"id": 5, "image_id": 2, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1},
            {"id": 6, "image_id": 2, "category_id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 0},
        ],
    }


def written(tmp_path: Path, what: object) -> str:
    path = tmp_path / "boxes.json"
    path.write_text(what if isinstance(what, str) else json.dumps(what), encoding="utf-8")
    return str(path)


def test_boxes_are_edges_in_pixels_with_classes_in_the_order_of_their_ids(tmp_path):
    found = read_coco(written(tmp_path, content()))
    assert found.names == ("cat", "dog")
    assert found.of["a/1.jpg"] == [[10, 5, 30, 35, 1], [90, 0, 100, 25.5, 0]]
    assert found.of["2.jpg"] == [[1, 2, 4, 6, 0]] and found.of["empty.jpg"] == []
    assert found.left_out == Counter({"of no area": 1, "outside their image": 1, "crowds": 1})
    assert "3 boxes of 2 classes on 3 images" in found.line() and "1 crowds" in found.line()


def test_an_image_is_found_by_any_end_of_its_path_and_an_unlisted_one_is_not(tmp_path):
    found = read_coco(written(tmp_path, content()))
    assert found.at("/data/train/a/1.jpg") == found.of["a/1.jpg"] == found.at("x.tar/a/1")
    assert found.at("/data/empty.jpg") == [] and found.at("/data/3.jpg") is None and found.at("/data/b/1.jpg") is None


def damaged(change) -> dict:
    made = content()
    change(made)
    return made


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("{", "no JSON"), ("[1]", "object"), ({"images": []}, "categories"),
        (damaged(lambda c: c["annotations"][0].update(image_id=5)), "image 5"),
        (damaged(lambda c: c["annotations"][0].update(category_id=1)), "category 1"),
        (damaged(lambda c: c["annotations"][0].update(bbox=[1, 2, 3])), "width"),
        (damaged(lambda c: c["annotations"][0].update(bbox=[1, 2, 3, float("nan")])), "width"),
        (damaged(lambda c: c["images"].append(dict(c["images"][0]))), "twice"),
        (damaged(lambda c: c["images"].append({"id": 77, "file_name": "2.jpg"})), "each once"),
        (damaged(lambda c: c["categories"].append({"id": 7, "name": "hen"})), "each id"),
        (damaged(lambda c: c["categories"][0].update(id="x")), "whole number"),
        (damaged(lambda c: c["images"][0].update(id=True)), "whole number"),
    ],
)  # fmt: skip
def test_what_is_not_of_that_form_is_refused(tmp_path, what, words):
    with pytest.raises(RequestError) as caught:
        read_coco(written(tmp_path, what))
    assert words in str(caught.value) and "boxes.json" in str(caught.value)


def test_a_file_that_is_not_there_is_a_wrong_request(tmp_path):
    with pytest.raises(RequestError, match=naming("labels=", "none.json")):
        read_coco(str(tmp_path / "none.json"))


@pytest.mark.parametrize(
    ("archive", "member", "left_out"),
    [
        ("bccd-train.tar", "bccd/train/annotations.json", {"of no area": 1}),
        ("coco-mini-train.tar", "coco-mini/annotations/instances_train2017.json", {"crowds": 8}),
    ],
)
def test_real_files_are_read(tmp_path, archive, member, left_out):
    if not (SHARED / archive).exists():
        pytest.skip("the folder of real images is not beside the checkout")
    with tarfile.open(SHARED / archive) as tar:
        data = tar.extractfile(member).read()
        names = [name.rpartition("/")[2] for name in tar.getnames() if name.endswith(".jpg")]
    found = read_coco(written(tmp_path, data.decode()))
    plain = json.loads(data)
    assert found.left_out == left_out and set(names) <= set(found.of)
    assert sum(map(len, found.of.values())) == len(plain["annotations"]) - sum(left_out.values())


def with_outlines() -> dict:
    made = content()
    square = [[10, 5, 30, 5, 30, 35, 10, 35]]
    made["annotations"][0].update(segmentation=square, area=600.0)
    made["annotations"][1]["segmentation"] = {"size": [50, 100], "counts": [4000, 500, 500]}
    made["annotations"][4]["segmentation"] = {"size": [9, 9], "counts": [0, 81]}
    made["annotations"].append(
        {"id": 7, "image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 4], "segmentation": [[1, 1, 5, 5]]}
    )
    small = {"size": [25, 50], "counts": [0, 1250]}
    made["annotations"].append({"id": 8, "image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 4], "segmentation": small})
    return made


def test_things_keep_their_outlines_their_boxes_as_they_are_and_crowds(tmp_path):
    found = read_things(written(tmp_path, with_outlines()))
    first, second = found.of["a/1.jpg"].things
    assert first.box == (10, 5, 30, 35) and first.label == 1 and first.area == 600 and len(first.outline) == 1
    assert second.box == (90, -5, 110, 25.5) and second.outline.mask().sum() == 500 and second.area == 610
    crowd, bare = found.of["2.jpg"].things
    assert crowd.crowd and not bare.crowd and bare.outline is None and found.of["2.jpg"].size is None
    assert found.left_out == Counter(
        {"of no area": 1, "outside their image": 1, "outlines of no area": 1, "masks of another size": 1}
    )
    assert "3 things and 1 crowds of 2 classes on 3 images" in found.line() and found.outlined


def test_of_other_classes_nothing_is_learned_and_numbers_are_those_of_the_head(tmp_path):
    found = read_things(written(tmp_path, with_outlines())).among(["bird", "dog"])
    assert found.names == ("bird", "dog") and [one.label for one in found.of["a/1.jpg"].things] == [1]
    assert found.of["2.jpg"].things == () and found.left_out["of other classes"] == 3
    with pytest.raises(RequestError, match="bird"):
        read_things(written(tmp_path, with_outlines())).among(["bird"])


def test_an_outline_that_is_none_names_its_annotation(tmp_path):
    made = with_outlines()
    made["annotations"][0]["segmentation"] = [[1, 2, 3]]
    with pytest.raises(RequestError, match=r"annotation 1.*segmentation"):
        read_things(written(tmp_path, made))
