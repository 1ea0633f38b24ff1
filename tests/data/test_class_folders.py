"""Which folder of a path names the class, for the layouts that people have."""

import pytest

from seer.data.class_folders import DIRECT, folder_in, level_of, name_at


def classes(*keys: str, known=()) -> list[str | None]:
    folders = [folder_in(key) for key in keys]
    level = level_of([folder for folder in dict.fromkeys(folders) if folder], known)
    return [name_at(folder, level) for folder in folders]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["ant/1", "bee/1"], ["ant", "bee"]),
        (["ant/1", "bee/deep/1", "bee/2"], ["ant", "bee", "bee"]),
        (["ant/2019/1", "ant/2020/1", "bee/2019/1"], ["ant", "ant", "bee"]),
        (["n1/images/1", "n2/images/1"], ["n1", "n2"]),
        (["photos/ant/1", "photos/bee/1"], ["ant", "bee"]),
        (["a/b/c/ant/1", "a/b/c/bee/x/1"], ["ant", "bee"]),
        (["train/ant/1", "val/ant/1", "val/bee/x/1"], ["ant", "ant", "bee"]),
        (["set/Train/ant/1", "set/Test/bee/1"], ["ant", "bee"]),
        (["train/1", "test/1"], ["train", "test"]),  # nothing below them names anything
        (["train/ant/1", "train/bee/1"], ["ant", "bee"]),
        (["ant/1"], ["ant"]),
        (["./ant/1", "./bee//x/1"], ["ant", "bee"]),
        (["1", "ant/2", "bee/3"], [None, "ant", "bee"]),
        (["Training_Set/ant/1", "Test_Set/ant/1", "Test_Set/bee/1"], ["ant", "ant", "bee"]),
        (["train2017/ant/1", "val2017/bee/1"], ["ant", "bee"]),
        (["Training Images/ant/1", "test-images/bee/1"], ["ant", "bee"]),
        (["fold1/ant/1", "fold_2/ant/1", "fold10/bee/1"], ["ant", "ant", "bee"]),
        (["trainer/ant/1", "tester/bee/1"], ["trainer", "tester"]),
        (["train/ant/1", "train/bee/1", "test/1"], ["ant", "bee", None]),  # of a contest: test images have no label
        (["set/train/ant/1", "set/test/1"], ["ant", None]),
        (["photos/ant/1", "photos/1"], ["photos", "photos"]),
        (["/d1/ant/1", "/d2/bee/1"], ["ant", "bee"]),  # of a list
        (["../d1/ant/1", "../d2/bee/1"], ["ant", "bee"]),
    ],
)
def test_a_class_is_the_first_folder_below_wrappers_and_parts_of_the_data(keys, expected):
    assert classes(*keys) == expected


@pytest.mark.parametrize(
    ("keys", "known", "expected"),
    [
        (
            ["ant/queen/1", "ant/worker/1"],
            ["ant", "bee"],
            ["ant", "ant"],
        ),  # one class alone, which looks like a wrapper
        (["animals/cat/1", "cars/vw/1"], ["cat", "dog", "vw"], ["cat", "vw"]),
        (["ant/queen/1", "bee/1"], ["queen"], ["queen", "bee"]),
        (["ant/x/1", "bee/y/1"], ["cow"], ["ant", "bee"]),
    ],
)
def test_known_names_say_which_folders_are_the_classes(keys, known, expected):
    assert classes(*keys, known=known) == expected


def test_the_folder_that_directly_holds_an_image_is_level_minus_one():
    assert [name_at(folder, DIRECT) for folder in ("a/b", "a", "", "/")] == ["b", "a", None, None]
    assert [name_at("a/b", level) for level in (0, 1, 2, -2, -3)] == ["a", "b", None, "a", None]
