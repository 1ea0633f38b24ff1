"""Labels from a table of names, as spreadsheets, Kaggle and people write them."""

import csv

import pytest

from seer.core.errors import RequestError
from seer.data.label_table import read_table
from tests.messages import naming

ODD = [
    "007",
    "1.0",
    "true",
    "null",
    "NaN",
    "",
    " ant ",
    "cafe\u0301",
    "caf\u00e9",
    "1e3",
    "~",
    "0x10",
    "a,b;c",
    'say "hi"',
    "-0",
]


def table(path, text: str | bytes, name: str = "labels.csv"):
    file = path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(str(file))


def test_a_label_is_what_the_cell_holds_to_the_letter(tmp_path):
    with open(tmp_path / "odd.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([f"{number}.jpg", label] for number, label in enumerate(ODD))
    found = read_table(str(tmp_path / "odd.csv"))
    assert [found.labels[f"{number}.jpg"] for number in range(len(ODD))] == ODD


@pytest.mark.parametrize(
    "text",
    [
        "a.jpg,ant\nd/b.png,bee\n",
        "file,label\r\na.jpg,ant\r\nd/b.png,bee\r\n",
        "label,image\nant,a.jpg\nbee,d/b.png",
        "breed,image\nant,a.jpg\nbee,d/b.png",
        "width,class,filename\n1,ant,a.jpg\n2,bee,d/b.png\n",
        "id,file_name,label\n7,a.jpg,ant\n8,d/b.png,bee\n",
        "filepaths,labels,data set\na.jpg,ant,train\nd/b.png,bee,test\n",
        "fname,label,is_valid\na.jpg,ant,True\nd/b.png,bee,False\n",
        ",image_file,label\n0,a.jpg,ant\n1,d/b.png,bee\n",
        "a.jpg;ant\nd/b.png;bee\n",
        "a.jpg\tant\n\nd/b.png\tbee\n",
        '"a.jpg","ant"\n"d/b.png","bee"\n',
        "./a.jpg,ant\nd\\b.png,bee\n",
        "\ufefffile,label\na.jpg,ant\nd/b.png,bee\n",
        "file,label\na.jpg,ant\nd/b.png,bee\n".encode("utf-16"),
    ],
)
def test_the_usual_ways_to_write_a_table_are_read(tmp_path, text):
    found = table(tmp_path, text)
    assert found.labels == {"a.jpg": "ant", "d/b.png": "bee"}
    assert {place: found.labels[found.name_of(place) or ""] for place in ("/data/a", "/data/d/b")} == {
        "/data/a": "ant",
        "/data/d/b": "bee",
    }


def test_a_class_may_be_called_like_a_column(tmp_path):
    assert table(tmp_path, "a.jpg,image\nb.jpg,label\n").labels == {"a.jpg": "image", "b.jpg": "label"}
    with pytest.raises(RequestError, match=naming("3 columns", "a.jpg")):
        table(tmp_path, "a.jpg,image,label\n")


def test_a_first_row_of_unknown_words_is_kept_as_one_that_may_be_a_header(tmp_path):
    found = table(tmp_path, "bild,art\na.jpg,ant\n")
    assert found.header == "bild" and found.name_of("/x/a") == "a.jpg"


@pytest.mark.parametrize(
    ("written", "place", "found"),
    [
        ("1.jpg", "/data/train/ant/1", True),
        ("1", "/data/train/ant/1", True),
        ("ant/1.JPG", "/data/train/ant/1", True),
        ("train/ant/1.jpeg", "/data/train/ant/1", True),
        ("/data/train/ant/1.jpg", "/data/train/ant/1", True),
        ("t.tar/ant/1", "/data/t.tar/ant/1", True),
        ("1.jpg", "/data/ant/1.jpg", True),  # a key keeps its ending where two images have one name
        ("1.v2.jpg", "/data/1.v2", True),
        ("1.v2", "/data/1.v2", True),
        ("bee/1.jpg", "/data/train/ant/1", False),
        ("1.txt", "/data/1", False),
        ("11.jpg", "/data/1", False),
        ("cafe\u0301.jpg", "/data/caf\u00e9", True),
        ("caf\u00e9", "/data/d/cafe\u0301", True),
    ],
)
def test_a_name_means_the_image_whose_path_ends_so(tmp_path, written, place, found):
    assert (table(tmp_path, f"{written},ant\n").name_of(place) == written) is found


def test_of_two_names_for_one_image_the_longer_one_counts(tmp_path):
    found = table(tmp_path, "1.jpg,ant\nbee/1.jpg,bee\n")
    assert [found.name_of(place) for place in ("/d/bee/1", "/d/ant/1")] == ["bee/1.jpg", "1.jpg"]
    two = table(tmp_path, "1.jpg,ant\n1.png,bee\n")
    assert [two.name_of(place) for place in ("/d/1", "/d/1.png")] == [None, "1.png"]


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("", ["labels.csv"]),
        ("a.jpg\nb.jpg\n", ["labels.csv", "1 columns"]),
        ("a,b,c\n1,2,3\n", ["labels.csv", "3 columns", "a, b, c"]),
        ("a.jpg,ant\nb.jpg,bee\na.jpg,cat\n", ["line 3", "a.jpg", "cat", "ant", "line 1"]),
        ("file,label\na.jpg,ant\nb.jpg\n", ["line 3", "1 columns"]),
        (b"a.jpg,ant\nb.jpg,caf\xe9\n", ["line 2", "UTF-8"]),
        ('a.jpg,"ant\nb.jpg,bee\n', ["labels.csv", "line"]),
    ],
)
def test_what_is_no_table_is_refused_with_the_line(tmp_path, text, facts):
    with pytest.raises(RequestError, match=naming(*facts)):
        table(tmp_path, text)


def test_the_same_row_twice_says_the_same(tmp_path):
    assert table(tmp_path, "a.jpg,ant\na.jpg,ant\n").labels == {"a.jpg": "ant"}


def test_a_table_that_is_not_there_is_a_wrong_request(tmp_path):
    with pytest.raises(RequestError, match=naming("none.csv", "does not exist")):
        read_table(str(tmp_path / "none.csv"))
