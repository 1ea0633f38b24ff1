"""Which image each row of a shard was, after `seer shard`: against the bytes of the images themselves."""

import json
import os
from pathlib import Path

from seer.data.quarantine import read_exclude
from seer.data.shards.open import open_shards
from seer.data.shards.original_names import NAMES_SUFFIX
from seer.data.shards.shard import image_of
from tests.data.image_files import jpeg, png, write_tar
from tests.program import seer


def origins(folder: Path) -> list[tuple[dict, bytes]]:
    """(what is told of each row, its image) of all shards of a folder."""
    found = []
    for number, shard in enumerate(open_shards(folder)):
        lines = Path(f"{shard.path}{NAMES_SUFFIX}").read_text(encoding="ascii").splitlines()
        assert len(lines) == len(shard)
        found += [(json.loads(line), image_of(shard.read(number, row))) for row, line in enumerate(lines)]
    return found


def test_each_row_is_told_by_source_row_and_whole_name_also_after_a_second_time(tmp_path, capfd):
    folder = tmp_path / "images"
    (folder / "d").mkdir(parents=True)
    made = {"a.JPG": jpeg(0), "a.png": png(1), "d/caf\u00e9 1.jpg": jpeg(2), os.fsdecode(b"d/\xe9.jpeg"): jpeg(3)}
    for name, data in made.items():
        (folder / name).write_bytes(data)
    tar = write_tar(
        tmp_path / "t.tar", [("x.cls", b"1"), ("x.JPEG", jpeg(4)), ("y.1.png", png(5)), ("y.1.jpg", jpeg(6))]
    )
    truth = {(str(folder), name): data for name, data in made.items()}
    truth |= {(str(tar), "x.JPEG"): jpeg(4), (str(tar), "y.1.png"): png(5), (str(tar), "y.1.jpg"): jpeg(6)}
    words = ("shard", "processes=2", "per_shard=3")
    ended = seer(capfd, *words, f"source={folder},{tar}", f"output={tmp_path / 'once'}")
    assert ended.status == 0 and ended.result["decoded"] is False, ended.words
    ended = seer(capfd, *words, f"source={tmp_path / 'once'}", f"output={tmp_path / 'twice'}", "seed=5", "holdout=2")
    assert ended.status == 0, ended.words
    for folders in (["once"], ["twice/train", "twice/test"]):
        rows = [one for name in folders for one in origins(tmp_path / name)]
        assert {(told["shard"], told["member"]): image for told, image in rows} == truth and len(rows) == 7
    for told, image in origins(tmp_path / "once"):
        (shard,) = open_shards(told["shard"])
        assert image_of(shard.read(0, told["row"])) == image
    lines = Path(f"{open_shards(tmp_path / 'once')[0].path}{NAMES_SUFFIX}").read_text()
    (tmp_path / "out.jsonl").write_text(lines)
    assert len(read_exclude(tmp_path / "out.jsonl", open_shards([folder, tar]))) == len(lines.splitlines())


def test_images_that_are_left_out_leave_no_line_and_strange_names_are_not_kept(tmp_path, capfd):
    write_tar(tmp_path / "x.tar", [(f"{i}.jpg", jpeg(i) if i != 2 else b"no image") for i in range(5)])
    words = ("shard", "processes=1", "shuffle=false")
    ended = seer(capfd, *words, f"source={tmp_path / 'x.tar'}", f"output={tmp_path / 'o'}", "quality=90")
    assert ended.status == 0 and [told["member"] for told, _ in origins(tmp_path / "o")] == [
        f"{i}.jpg" for i in (0, 1, 3, 4)
    ]
    (names,) = (tmp_path / "o").glob(f"*{NAMES_SUFFIX}")
    names.write_text("{}\n" * 4)
    ended = seer(capfd, *words, f"source={tmp_path / 'o'}", f"output={tmp_path / 'p'}")
    assert ended.status == 0 and str(names) in ended.words
    assert origins(tmp_path / "p")[0][0] == {
        "shard": str(names)[: -len(NAMES_SUFFIX)],
        "row": 0,
        "member": "00000-000000000.jpg",
    }
