"""Which members belong to which image: against webdataset's own reading, against tarfile, and against the older rule."""

import io
import json
import logging
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seer.core.errors import RequestError, StorageError
from seer.data.loading.loader import Loader
from seer.data.loading.reader import Reader
from seer.data.order import plan
from seer.data.quarantine import read_exclude
from seer.data.shards.index import INDEX, INDEX_SUFFIX, KEEPS_ENDING, MARK, VERSION, VERSION_2, build_index, write_index
from seer.data.shards.names import COMPANIONS, IMAGE_ENDINGS, WITH_COMPANIONS, split
from seer.data.shards.open import open_shards
from seer.data.shards.shard import fingerprint
from seer.data.shards.writer import write_shards
from seer.data.transforms.one_view import OneView
from tests.data.image_files import encoded, jpeg, pixels, png, write_tar
from tests.messages import naming


def contents(source, **how) -> dict[str, dict[str, bytes]]:
    rows = [s.read(n, r) for n, s in enumerate(open_shards(source, **how)) for r in range(len(s))]
    assert [one.key for one in rows] == [key for s in open_shards(source, **how) for key in s.iter_keys()]
    assert [one.key for one in rows] == [s.key(r) for s in open_shards(source, **how) for r in range(len(s))]
    found = {one.key: one.fields for one in rows}
    assert len(found) == len(rows)  # keys name rows
    return found


def mask(seed: int) -> bytes:
    numbers = np.random.default_rng(seed).integers(0, 3, (24, 20), dtype=np.uint8)
    return encoded(numbers, "PNG")


@pytest.mark.parametrize("indexed", [False, True])
def test_samples_that_webdataset_wrote_are_those_that_it_reads(tmp_path, indexed):
    webdataset = pytest.importorskip("webdataset")
    path = tmp_path / "a.tar"
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for i in range(9):
            fields = {"jpg": jpeg(i), "seg.png": mask(i), "json": b'{"a": 1}', "txt": b"words", "cls": str(i).encode()}
            writer.write({"__key__": f"{i:03}", **{k: v for k, v in fields.items() if i % 3 or k != "cls"}})
    if indexed:
        write_index(build_index(path), Path(f"{path}{INDEX_SUFFIX}"))
    theirs = {
        one["__key__"]: {k: v for k, v in one.items() if not k.startswith("__")}
        for one in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
    }
    assert (
        contents(path) == theirs and len(theirs) == 9 and set(theirs["001"]) == {"jpg", "seg.png", "json", "txt", "cls"}
    )


def test_a_mask_between_the_members_of_its_image_neither_parts_them_nor_is_learned_from(tmp_path):
    members = [(f"{i}.{e}", mask(i) if "mask" in e else png(i) if e == "png" else b"1") for i in range(5)
               for e in ("cls", "json", "mask.png", "png", "txt")]  # fmt: skip
    found = contents(write_tar(tmp_path / "a.tar", members))
    assert len(found) == 5 and all(
        set(fields) == {"cls", "json", "mask.png", "png", "txt"} for fields in found.values()
    )
    assert all(found[str(i)]["png"] == png(i) and found[str(i)]["mask.png"] == mask(i) for i in range(5))
    (shard,) = open_shards(tmp_path / "a.tar")
    assert list(shard.iter_labels(range(5))) == [(str(i), b"1") for i in range(5)]


@pytest.mark.parametrize("ending", sorted(COMPANIONS))
def test_a_companion_without_its_image_is_told_and_is_no_row(tmp_path, ending, caplog):
    with caplog.at_level(logging.WARNING):
        found = contents(
            write_tar(tmp_path / "a.tar", [("a.jpg", jpeg(0)), (f"b.{ending}", png(1)), (f"c.{ending}", png(2))])
        )
    assert list(found) == ["a"]
    told = {r.getMessage() for r in caplog.records}
    (words,) = told
    assert all(word in words for word in (f"b.{ending}", "2 members", "data.image="))


def test_the_list_is_closed_and_folders_and_plain_names_are_no_part_of_it():
    whole = WITH_COMPANIONS.split
    assert whole("a/x.1.Mask.PNG") == ("a/x.1", "mask.png") and whole("x.left.jpg") == ("x.left", "jpg")
    for name in ("mask.png", "a/mask.png", "a.mask/x.png", "x.2021.png", "x.png", "a/.mask.png", "x", "a.b/x"):
        assert whole(name) == split(name)
    assert all("." in ending and ending == ending.lower() for ending in COMPANIONS)


@pytest.mark.parametrize(
    "order", [("a.jpg", "a.png", "b.jpg"), ("a.jpg", "b.jpg", "a.png"), ("a.png", "b.jpg", "a.jpg")]
)
@pytest.mark.parametrize("indexed", [False, True])
def test_two_images_of_one_name_are_two_rows_whose_keys_keep_the_ending(tmp_path, order, indexed):
    made = {"a.jpg": jpeg(0), "a.png": png(1), "b.jpg": jpeg(2)}
    path = write_tar(tmp_path / "a.tar", [(name, made[name]) for name in order])
    if indexed:
        write_index(build_index(path), Path(f"{path}{INDEX_SUFFIX}"))
    found = contents(path)
    assert found == {"a.jpg": {"jpg": jpeg(0)}, "a.png": {"png": png(1)}, "b": {"jpg": jpeg(2)}}
    folder = tmp_path / "f"
    folder.mkdir()
    for name, data in made.items():
        (folder / name).write_bytes(data)
    assert contents(folder) == found


def test_two_images_of_one_run_share_what_lies_beside_them_in_any_case_of_letters(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("a.JPG", jpeg(0)), ("a.cls", b"3"), ("a.jpg", jpeg(1)), ("a.webp", b"2")])
    found = contents(path)
    assert found == {
        "a.JPG": {"jpg": jpeg(0), "cls": b"3"},
        "a.jpg": {"cls": b"3", "jpg": jpeg(1)},
        "a.webp": {"cls": b"3", "webp": b"2"},
    }
    (shard,) = open_shards(path)
    assert list(shard.iter_labels([0, 2])) == [("a.JPG", b"3"), ("a.webp", b"3")]
    (tmp_path / "out.tsv").write_text(f"{path}\ta.jpg\n{path}\ta.webp\n")
    excluded = read_exclude(tmp_path / "out.tsv", [shard])
    assert [(0, row) in excluded for row in range(3)] == [False, True, True]


def test_names_that_agree_up_to_the_first_dot_stay_apart_and_are_told_once(tmp_path, caplog):
    members = [(f"{i}.{side}.jpg", jpeg(i)) for i in range(4) for side in ("left", "right")]
    with caplog.at_level(logging.WARNING):
        open_shards(write_tar(tmp_path / "a.tar", members))
    (told,) = [r.getMessage() for r in caplog.records]
    assert all(word in told for word in ("4 images", "0.left.jpg", "0.right.jpg", "data.image=", "data.fields="))
    assert len(contents(tmp_path / "a.tar")) == 8
    caplog.clear()
    joined = contents(tmp_path / "a.tar", image="left.jpg", fields={"right": "right.jpg"})
    assert joined == {str(i): {"jpg": jpeg(i), "right": jpeg(i)} for i in range(4)} and not caplog.records


@pytest.mark.parametrize("indexed", [False, True])
def test_a_request_makes_masks_of_images_and_pairs_what_is_called_otherwise(tmp_path, indexed):
    path = write_tar(tmp_path / "a.tar", [m for i in range(6) for m in ((f"{i}.jpg", jpeg(i)), (f"{i}.png", mask(i)))])
    other = write_tar(tmp_path / "b.tar", [(f"s{i}.{e}", jpeg(i) if "input" in e else mask(i) if "depth" in e else b"x")
                                           for i in range(6) for e in ("input.jpg", "depth.png", "txt")])  # fmt: skip
    if indexed:
        for one in (path, other):
            write_index(build_index(one), Path(f"{one}{INDEX_SUFFIX}"))
    asked = {"fields": {"mask": "png"}}
    assert contents(path, **asked) == {str(i): {"jpg": jpeg(i), "mask.png": mask(i)} for i in range(6)}
    assert contents(other, image="input.jpg") == {
        f"s{i}": {"jpg": jpeg(i), "depth.png": mask(i), "txt": b"x"} for i in range(6)
    }
    assert len(contents(path)) == 12 and fingerprint(open_shards(path)) != fingerprint(open_shards(path, **asked))
    shards = open_shards(path, **asked)
    loader = Loader(
        Reader(shards, plan([6], seed=0, lanes=1), 0), OneView(20, train=False, resize=20, mask=True), batch=6
    )
    with_masks = next(stream := loader.batches(0))
    stream.close()
    places = loader.reader.plan.places(0, 6)
    for row, seen in zip(places.row.tolist(), with_masks.fields["mask"], strict=True):
        truth = np.asarray(Image.open(io.BytesIO(mask(row))))[2:22]
        np.testing.assert_array_equal(seen.numpy(), truth)
    assert not with_masks.skipped


def test_rows_are_still_checked_by_the_index_when_names_were_asked_about(tmp_path):
    path = write_tar(tmp_path / "a.tar", [m for i in range(3) for m in ((f"{i}.jpg", jpeg(i)), (f"{i}.png", mask(i)))])
    write_index(build_index(path), Path(f"{path}{INDEX_SUFFIX}"))
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    (shard,) = open_shards(path, fields={"mask": "png"})
    assert shard.read(0, 1).fields["mask.png"] == mask(1)
    with pytest.raises(ValueError, match=naming("checksum", 0)):
        shard.read(0, 0)


@pytest.mark.parametrize("wrong", [{"image": "mp4"}, {"image": "../x"}, {"fields": {"mask": 3}}, {"fields": {"mask": ""}},
                                   {"fields": {"a": "png", "b": "png"}}, {"image": "jpg", "fields": {"a": "jpg"}}])  # fmt: skip
def test_what_is_no_ending_is_refused(tmp_path, wrong):
    with pytest.raises(RequestError):
        open_shards(write_tar(tmp_path / "a.tar", [("a.jpg", jpeg(0))]), **wrong)


def older(path: Path) -> np.ndarray:
    """The index of a tar by the rule of earlier versions, from the places that tarfile finds."""
    records = []
    with tarfile.open(path) as archive:
        for member in archive.getmembers():
            if member.name.rpartition(".")[2] in IMAGE_ENDINGS:
                size = 512 + -(-member.size // 512) * 512
                records.append((member.offset, size, 0))
    return np.array([*records, (path.stat().st_size, 0, 0)], dtype=INDEX)


def test_an_index_of_earlier_versions_gives_the_rows_that_it_gave(tmp_path):
    path = write_tar(
        tmp_path / "a.tar", [m for i in range(4) for m in ((f"{i}.jpg", jpeg(i)), (f"{i}.mask.png", mask(i)))]
    )
    write_index(older(path), Path(f"{path}{INDEX_SUFFIX}"))
    found = contents(path, check_crc=False)
    assert found == {k: v for i in range(4) for k, v in ((f"{i}", {"jpg": jpeg(i)}), (f"{i}.mask", {"png": mask(i)}))}
    whole = {str(i): {"jpg": jpeg(i), "depth.png": mask(i)} for i in range(4)}
    assert contents(path, check_crc=False, fields={"depth": "mask.png"}) == whole
    Path(f"{path}{INDEX_SUFFIX}").unlink()
    assert contents(path) == {str(i): {"jpg": jpeg(i), "mask.png": mask(i)} for i in range(4)}


def test_indexes_of_plain_names_and_so_their_fingerprints_are_those_of_earlier_versions(tmp_path):
    path = write_tar(tmp_path / "a.tar", [(f"d/{i}.2.jpg", jpeg(i)) for i in range(4)])
    index = build_index(path)
    np.testing.assert_array_equal(index[["offset", "size"]], older(path)[["offset", "size"]])
    both = build_index(write_tar(tmp_path / "b.tar", [("a.jpg", jpeg(0)), ("a.png", png(0)), ("a.cls", b"1")]))
    assert (
        both[-1]["size"] == VERSION_2
        and (both["offset"][:2] & KEEPS_ENDING).all()
        and not (both["offset"][:2] & ~np.uint64(MARK)).any()
    )


def test_an_index_of_a_later_version_is_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", [("a.jpg", jpeg(0))])
    index = build_index(path)
    index[-1]["size"] = VERSION + 1
    write_index(index, Path(f"{path}{INDEX_SUFFIX}"))
    with pytest.raises(StorageError, match=naming("a.tar.index.npy", "delete", "seer shard")):
        open_shards(path)


def test_files_beside_a_loose_image_are_members_of_its_sample(tmp_path, caplog):
    for i in range(5):
        folder = tmp_path / f"c{i % 2}"
        folder.mkdir(exist_ok=True)
        for ending, data in {"jpg": jpeg(i), "txt": b"words", "json": b"{}", "mask.png": mask(i), "csv": b"no"}.items():
            (folder / f"{i}.{ending}").write_bytes(data)
        if i:
            (folder / f"{i}.cls").write_bytes(str(i).encode())
    (tmp_path / "README.md").write_text("x")
    found = contents(tmp_path)
    assert set(found) == {f"c{i % 2}/{i}" for i in range(5)}
    for i in range(5):
        expected = {"jpg": jpeg(i), "txt": b"words", "json": b"{}", "mask.png": mask(i), "cls": str(i).encode()}
        assert found[f"c{i % 2}/{i}"] == {k: v for k, v in expected.items() if i or k != "cls"}
    (shard,) = open_shards(tmp_path)
    assert [cls for _, cls in shard.iter_labels(range(5))] == [None, b"2", b"4", b"1", b"3"]
    assert not caplog.records
    (tmp_path / "lost.seg.png").write_bytes(mask(0))
    assert len(contents(tmp_path)) == 5
    assert "lost.seg.png" in caplog.text


def test_a_folder_of_images_alone_tries_no_other_file(tmp_path, monkeypatch):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
    (tmp_path / "notes.txt").write_text("of nobody")
    (shard,) = open_shards(tmp_path)
    opened = []
    monkeypatch.setattr(
        "seer.data.shards.folder.open_plain", lambda path: opened.append(path) or __import__("os").open(path, 0)
    )
    assert shard.read(0, 1).fields == {"jpg": jpeg(1)} and opened == [str(tmp_path / "1.jpg")]


def test_a_folder_has_masks_where_they_were_asked_for(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i))
        (tmp_path / f"{i}.png").write_bytes(mask(i))
    assert contents(tmp_path, fields={"mask": "png"}) == {
        str(i): {"jpg": jpeg(i), "mask.png": mask(i)} for i in range(3)
    }
    assert len(contents(tmp_path)) == 6


def test_companions_go_into_new_shards_and_are_read_back(tmp_path):
    samples = (
        (f"{i}", {"png": png(i), "mask.png": mask(i), "boxes.json": json.dumps([[0, 0, i, i]]).encode()})
        for i in range(4)
    )
    write_shards(samples, tmp_path, total=4, per_shard=2)
    found = contents(tmp_path)
    assert found == {
        str(i): {"boxes.json": f"[[0, 0, {i}, {i}]]".encode(), "mask.png": mask(i), "png": png(i)} for i in range(4)
    }
    assert pixels(0).shape == (24, 20, 3)
