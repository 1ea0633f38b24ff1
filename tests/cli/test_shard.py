"""`seer shard`: any number of processes and kills gives the same bytes; what is lost is named; indexes for tars at hand."""

import hashlib
import io
import json
import os
import signal
import struct
import tarfile
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seer.core.errors import RequestError, StorageError
from seer.data.decode import decode, decode_mask, nearest
from seer.data.shards.index import build_index
from seer.data.shards.open import open_shards
from seer.data.shards.shard import image_of
from tests.data.image_files import encoded, jpeg, pixels, png, write_tar
from tests.data.test_ground_and_limits import large
from tests.messages import naming, says
from tests.program import alive, seer, start

N = 60


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loose")
    for i in range(N):
        (folder / f"c{i % 3}").mkdir(exist_ok=True)
        (folder / f"c{i % 3}" / f"{i:03d}.jpg").write_bytes(jpeg(i, 60 + i, 80))
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Hashes of all files but result.json, which holds seconds."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "result.json"
    }


def test_any_number_of_processes_writes_the_same_bytes_and_tarfile_finds_every_image(loose, tmp_path, capfd):
    for n in (1, 3):
        ended = seer(capfd, "shard", f"source={loose}", f"output={tmp_path / str(n)}", "per_shard=7", f"processes={n}")
        assert ended.status == 0 and ended.result["pictures"] == N and ended.result["skipped"] == 0, ended.words
    assert contents(tmp_path / "1") == contents(tmp_path / "3")
    found = []
    for path in sorted((tmp_path / "3").glob("*.tar")):
        with tarfile.open(path) as tar:
            found += [tar.extractfile(m).read() for m in tar]
    assert len(found) == N and set(found) == {p.read_bytes() for p in loose.rglob("*.jpg")}
    assert not [p for p in (tmp_path / "3").iterdir() if p.name.startswith(".")]


def test_the_manifest_holds_what_sha256sum_and_the_files_say(loose, tmp_path, capfd):
    seer(capfd, "shard", f"source={loose}", f"output={tmp_path}", "per_shard=20", "processes=1", "labels=folder")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["classes"] == ["c0", "c1", "c2"] and manifest["samples"] == N
    for entry in manifest["shards"]:
        data = (tmp_path / entry["name"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(data).hexdigest() and entry["bytes"] == len(data)
        np.testing.assert_array_equal(
            np.load(tmp_path / f"{entry['name']}.index.npy"), build_index(tmp_path / entry["name"])
        )
    rows = [(s.read(0, r)) for s in open_shards(tmp_path) for r in range(len(s))]
    assert {(image_of(s), s.fields["cls"]) for s in rows} == {
        (p.read_bytes(), p.parent.name[1:].encode()) for p in loose.rglob("*.jpg")
    }


@pytest.mark.slow
def test_a_killed_run_goes_on_without_redoing_finished_shards_to_the_same_bytes(tmp_path, capfd):
    source = tmp_path / "source"
    source.mkdir()
    for i in range(160):
        (source / f"{i:03d}.png").write_bytes(png(i, 400, 340))
    how = ("shard", f"source={source}", "per_shard=2", "max_side=300", "processes=2")
    run = tmp_path / "killed"
    process = start(*how, f"output={run}")
    end = time.monotonic() + 200
    journal = run / ".unfinished.jsonl"
    while time.monotonic() < end and not (journal.exists() and journal.read_text().count("\n") >= 5):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = {p.name: p.stat().st_mtime_ns for p in run.glob("shard-*.tar")}
    lines = journal.read_text().splitlines()
    assert 4 <= len(before) < 80 and not (run / "manifest.json").exists() and len(lines) >= 5
    ended = seer(capfd, *how, f"output={run}")
    assert ended.status == 0, ended.words
    kept = [json.loads(line)["name"] for line in lines[1:]]
    assert all((run / name).stat().st_mtime_ns == before[name] for name in kept)
    assert seer(capfd, *how, f"output={tmp_path / 'quiet'}").status == 0
    assert contents(run) == contents(tmp_path / "quiet")


def test_a_second_process_does_not_write_into_the_same_folder(loose, tmp_path, capfd, monkeypatch):
    import fcntl

    monkeypatch.setattr("seer.data.shards.journaled_pool.LOCK_S", 0.2)
    with open(tmp_path / ".unfinished.jsonl", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ended = seer(capfd, "shard", f"source={loose}", f"output={tmp_path}")
    assert ended.status == 78 and says(ended.result["error"], tmp_path, "another process")


def test_other_words_do_not_mix_into_an_unfinished_or_a_finished_folder(loose, tmp_path, capfd):
    words = ("shard", f"source={loose}", f"output={tmp_path}", "processes=1")
    (tmp_path / ".unfinished.jsonl").write_text('{"request": "another"}\n')
    ended = seer(capfd, *words)
    assert ended.status == 78 and says(ended.result["error"], tmp_path, "unfinished")
    (tmp_path / ".unfinished.jsonl").unlink()
    assert seer(capfd, *words).status == 0
    before = contents(tmp_path)
    again = seer(capfd, *words)  # the same words: it is done
    assert again.status == 0 and again.result["pictures"] == N and contents(tmp_path) == before
    ended = seer(capfd, *words, "seed=1")
    assert ended.status == 78 and says(ended.result["error"], tmp_path, "other shards")


@pytest.mark.parametrize("where", [".", "inside", "linked"])
@pytest.mark.parametrize("words", [(), ("holdout=1",)])
def test_shards_are_never_written_into_the_folder_they_are_read_from(tmp_path, capfd, where, words):
    source = tmp_path / "shards" / ("inside" if where == "inside" else ".")
    source.mkdir(parents=True)
    for n in range(3):
        write_tar(source / f"shard-{n:06d}.tar", [(f"{n}-{i}.jpg", jpeg(i)) for i in range(4)])
    output = tmp_path / ("link" if where == "linked" else "shards")
    (tmp_path / "link").symlink_to(tmp_path / "shards")
    before = contents(tmp_path)
    ended = seer(capfd, "shard", f"source={source}", f"output={output}", "per_shard=4", *words)
    assert ended.status == 78 and says(ended.result["error"], f"output={output}", f"source {source}", "index_only=true")
    assert contents(tmp_path) == before


def test_shards_are_not_written_inside_a_folder_of_the_source(tmp_path, capfd):
    (tmp_path / "a.jpg").write_bytes(jpeg(0))
    ended = seer(capfd, "shard", f"source={tmp_path}", f"output={tmp_path / 'o'}")
    assert (
        ended.status == 78
        and says(ended.result["error"], f"output={tmp_path / 'o'}", "source")
        and not (tmp_path / "o").exists()
    )


def test_a_tar_that_the_request_did_not_write_is_never_replaced(loose, tmp_path, capfd):
    write_tar(tmp_path / "shard-000001.tar", [("a.jpg", jpeg(0))])
    before = contents(tmp_path)
    ended = seer(capfd, "shard", f"source={loose}", f"output={tmp_path}", "per_shard=7")
    assert ended.status == 78 and says(ended.result["error"], tmp_path, "shard-000001.tar")
    assert contents(tmp_path) == before


def test_a_shard_that_a_kill_left_without_a_line_in_the_journal_is_written_again(loose, tmp_path, capfd):
    words = ("shard", f"source={loose}", "per_shard=7", "processes=1")
    assert seer(capfd, *words, f"output={tmp_path / 'whole'}").status == 0
    manifest = json.loads((tmp_path / "whole" / "manifest.json").read_text())
    run = tmp_path / "killed"
    run.mkdir()
    first = {"number": 0, **manifest["shards"][0], "skipped": []}
    lines = [json.dumps({"request": manifest["request"]}), json.dumps(first)]
    (run / ".unfinished.jsonl").write_text("\n".join([*lines, '{"number": 1, "na']))
    for name in ("shard-000000.tar", "shard-000001.tar"):
        for file in (name, f"{name}.index.npy", f"{name}.names.jsonl"):
            (run / file).write_bytes((tmp_path / "whole" / file).read_bytes())
    assert seer(capfd, *words, f"output={run}").status == 0
    assert contents(run) == contents(tmp_path / "whole")


def test_whoever_waits_for_the_lock_takes_what_its_owner_has_finished(loose, tmp_path, capfd, monkeypatch):
    import fcntl

    words = ("shard", f"source={loose}", f"output={tmp_path}", "per_shard=7", "processes=1")
    flock, owner = fcntl.flock, []

    def overtaken(file, how):
        monkeypatch.setattr(fcntl, "flock", flock)  # all of another process's run happens while this one waits
        owner.append(seer(capfd, *words))
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", overtaken)
    ended = seer(capfd, *words)
    assert owner[0].status == ended.status == 0 and ended.result["pictures"] == N, ended.words
    assert not (tmp_path / ".unfinished.jsonl").exists()


@pytest.mark.parametrize("harm", ["a shard gone", "a shard cut", "an index gone", "an index cut"])
def test_a_finished_run_is_not_called_done_when_its_files_are_not_there(loose, tmp_path, capfd, harm):
    words = ("shard", f"source={loose}", f"output={tmp_path}", "per_shard=7", "processes=1")
    assert seer(capfd, *words).status == 0
    path = tmp_path / ("shard-000003.tar" if "shard" in harm else "shard-000003.tar.index.npy")
    if "gone" in harm:
        path.unlink()
    else:
        os.truncate(path, 20)
    ended = seer(capfd, *words)
    assert ended.status == 74 and says(ended.result["error"], 1, 9, path)


def test_images_that_cannot_be_used_are_left_out_named_and_counted(loose, tmp_path, capfd):
    source = tmp_path / "source"
    source.mkdir()
    members = [(f"{i:02d}.jpg", jpeg(i) if i % 5 else jpeg(i)[:99]) for i in range(20)]
    write_tar(source / "x.tar", members)
    ended = seer(capfd, "shard", f"source={source}", f"output={tmp_path / 'o'}", "quality=80", "processes=1")
    assert ended.status == 0 and ended.result["pictures"] == 16 and ended.result["skipped"] == 4
    lost = [json.loads(line) for line in (tmp_path / "o" / "skipped.jsonl").read_text().splitlines()]
    assert sorted(one["member"] for one in lost) == ["00", "05", "10", "15"]
    assert {one["kind"] for one in lost} == {"truncated"} and sum(len(s) for s in open_shards(tmp_path / "o")) == 16


def test_too_many_images_that_cannot_be_used_end_it_with_exit_65(tmp_path, capfd):
    members = [(f"{i:03d}.jpg", jpeg(i) if i < 300 else b"x") for i in range(400)]
    write_tar(tmp_path / "x.tar", members)
    words = ("shard", f"source={tmp_path / 'x.tar'}", f"output={tmp_path / 'o'}", "quality=80", "processes=1")
    ended = seer(capfd, *words, "per_shard=400")
    assert ended.status == 65 and says(ended.result["error"], "100 of 400", "format 100")
    assert seer(capfd, *words, "per_shard=400", "max_bad=30%").status == 0


@pytest.mark.parametrize(
    ("words", "sides"),
    [
        (("max_side=64",), lambda h, w: max(h, w) <= 64),
        (("max_side=64", "quality=75"), lambda h, w: max(h, w) <= 64),
        (("quality=75",), lambda h, w: w == 80),
    ],
)
def test_images_are_stored_smaller_once_as_pillow_would(loose, tmp_path, capfd, words, sides):
    assert seer(capfd, "shard", f"source={loose}", f"output={tmp_path}", "shuffle=false", *words).status == 0
    (shard,) = open_shards(tmp_path)
    files = sorted(loose.rglob("*.jpg"))
    for row, path in enumerate(files):
        stored = decode(image_of(shard.read(0, row)))
        whole = Image.open(path)
        assert sides(*stored.shape[:2]) and abs(stored.shape[0] / stored.shape[1] - whole.height / whole.width) < 0.03
        expected = np.asarray(whole.resize((stored.shape[1], stored.shape[0]), Image.Resampling.LANCZOS))
        assert np.abs(stored.astype(int) - expected).mean() < 4
    assert sum(p.stat().st_size for p in tmp_path.glob("*.tar")) < sum(p.stat().st_size for p in files) + N * 1200


def test_small_enough_images_stay_as_they_are_to_the_byte(loose, tmp_path, capfd):
    assert seer(capfd, "shard", f"source={loose}", f"output={tmp_path}", "shuffle=false", "max_side=500").status == 0
    (shard,) = open_shards(tmp_path)
    kept = [image_of(shard.read(0, r)) for r in range(N)]
    assert kept == [p.read_bytes() for p in sorted(loose.rglob("*.jpg"))]


def test_a_png_becomes_a_jpeg_and_its_other_members_stay(tmp_path, capfd):
    write_tar(tmp_path / "x.tar", [("a.png", encoded(pixels(0, 90, 90), "PNG")), ("a.cls", b"7"), ("a.json", b"{}")])
    assert seer(capfd, "shard", f"source={tmp_path / 'x.tar'}", f"output={tmp_path / 'o'}", "quality=90").status == 0
    fields = open_shards(tmp_path / "o")[0].read(0, 0).fields
    assert sorted(fields) == ["cls", "jpg", "json"] and fields["cls"] == b"7" and fields["jpg"][:2] == b"\xff\xd8"


def test_masks_and_boxes_are_made_smaller_with_their_image_and_stay_where_it_stays(tmp_path, capfd):
    numbers = np.random.default_rng(0).integers(0, 9, (90, 80), dtype=np.uint8)
    depth = np.random.default_rng(1).integers(0, 65536, (90, 80), dtype=np.uint16)
    palette = Image.fromarray(numbers)
    palette.putpalette(list(range(27)))
    other = encoded(Image.fromarray(numbers[:45, :40]), "PNG")  # of another size: it is not told in pixels of the image
    members = {"mask.png": encoded(numbers, "PNG"), "seg.png": encoded(palette, "PNG"), "edge.png": other}
    members |= {"depth.png": encoded(depth, "PNG"), "boxes.json": b"[[8, 9, 80, 90, 3], [0, 0, 40, 45]]", "cls": b"1"}
    write_tar(tmp_path / "m.tar", [("a.jpg", jpeg(0, 90, 80)), *((f"a.{end}", data) for end, data in members.items())])
    words = ("shard", f"source={tmp_path}/m.tar", "processes=1")
    ended = seer(capfd, *words, f"output={tmp_path / 'o'}", "max_side=45")
    assert ended.status == 0 and ended.result["decoded"] is True, ended.words
    fields = open_shards(tmp_path / "o")[0].read(0, 0).fields
    assert decode(fields["jpg"]).shape == (45, 40, 3) and fields["edge.png"] == other and fields["cls"] == b"1"
    for ending, truth in (("mask.png", numbers), ("seg.png", numbers), ("depth.png", depth)):
        with Image.open(io.BytesIO(fields[ending])) as small:
            assert np.array_equal(np.asarray(small), truth[1::2, 1::2]), ending  # the nearest pixel of each two by two
            assert ending != "seg.png" or (small.mode, small.getpalette()[:27]) == ("P", list(range(27)))
    assert json.loads(fields["boxes.json"]) == [[4, 4.5, 40, 45, 3], [0, 0, 20, 22.5]]
    ended = seer(capfd, *words, f"output={tmp_path / 'p'}", "max_side=90", "quality=50")
    assert ended.status == 0, ended.words
    fields = open_shards(tmp_path / "p")[0].read(0, 0).fields
    assert {end: data for end, data in fields.items() if end != "jpg"} == members


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_masks_of_few_bits_keep_the_numbers_that_training_reads(bits):
    numbers = np.random.default_rng(0).integers(0, 1 << bits, (90, 80), dtype=np.uint8)
    data = png_of_bits(numbers, bits)
    assert np.array_equal(decode_mask(data), numbers)
    assert np.array_equal(decode_mask(nearest(data, (90, 80), (45, 40))), numbers[1::2, 1::2])


def png_of_bits(numbers: np.ndarray, bits: int) -> bytes:
    """A gray PNG of 1, 2 or 4 bits a pixel, which Pillow does not write."""
    shifts = np.arange(8 - bits, -1, -bits)
    rows = (numbers.reshape(len(numbers), -1, 8 // bits) << shifts).sum(axis=2).astype(np.uint8)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", numbers.shape[1], len(numbers), bits, 0, 0, 0, 0))]
    chunks += [(b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(data)) + k + data + struct.pack(">I", zlib.crc32(k + data)) for k, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_what_cannot_be_made_smaller_with_its_image_is_refused_or_left_out_by_name(tmp_path, capfd):
    write_tar(tmp_path / "p.tar", [("a.jpg", jpeg(0, 90, 80)), ("a.keypoints.json", b"[]")])
    write_tar(tmp_path / "b.tar", [("a.jpg", jpeg(0, 90, 80)), ("a.boxes.json", b"{}"), ("b.jpg", jpeg(1, 90, 80))])
    write_tar(tmp_path / "t.tar", [("a.jpg", jpeg(0, 90, 80)), ("a.tags.json", b"[]")])
    words = ("shard", "processes=1", "max_side=64")
    ended = seer(capfd, *words, f"output={tmp_path}/p", f"source={tmp_path}/p.tar")
    assert ended.status == 78 and says(ended.result["error"], "keypoints.json", "max_side=64", "p.tar")
    ended = seer(capfd, *words, f"output={tmp_path}/b", f"source={tmp_path}/b.tar")
    assert ended.status == 0 and (ended.result["pictures"], ended.result["skipped"]) == (1, 1)
    (line,) = (tmp_path / "b" / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["kind"] == "target" and says(json.loads(line)["reason"], "boxes.json")
    assert seer(capfd, *words, f"output={tmp_path / 'o'}", f"source={tmp_path}/t.tar").status == 0


def test_words_say_which_ending_is_the_image_and_which_its_mask(tmp_path, capfd):
    rows = [m for i in range(4) for m in ((f"{i}.jpg", jpeg(i)), (f"{i}.png", png(9)), (f"{i}.cls", b"1"))]
    write_tar(tmp_path / "x.tar", rows)
    words = ("shard", f"source={tmp_path / 'x.tar'}", "processes=1", "shuffle=false")
    ended = seer(capfd, *words, f"output={tmp_path / 'o'}", "fields={mask: png}")
    assert ended.status == 0 and ended.result["pictures"] == 4, ended.words
    fields = open_shards(tmp_path / "o")[0].read(0, 2).fields
    assert fields == {"jpg": jpeg(2), "mask.png": png(9), "cls": b"1"}
    assert seer(capfd, *words, f"output={tmp_path / 'q'}", "image=png").result["pictures"] == 4
    assert image_of(open_shards(tmp_path / "q")[0].read(0, 2)) == png(9)
    for wrong in ("fields={mask: 3}", "fields=png", "image=3", "fields.mask.x=png"):
        assert seer(capfd, *words, f"output={tmp_path / 'r'}", wrong).status == 78


def test_shards_go_on_where_one_of_them_would_be_empty(tmp_path, capfd):
    write_tar(tmp_path / "x.tar", [(f"{i}.jpg", jpeg(i) if i != 2 else b"no image") for i in range(5)])
    words = ("shard", f"source={tmp_path / 'x.tar'}", f"output={tmp_path / 'o'}", "quality=80", "processes=1")
    ended = seer(capfd, *words, "per_shard=1", "shuffle=false")
    assert ended.status == 0 and ended.result["pictures"] == 4 and ended.result["skipped"] == 1, ended.words
    assert ended.result["parts"]["all"]["shards"] == 4
    assert [s.path.name for s in open_shards(tmp_path / "o")] == [f"shard-00000{i}.tar" for i in (0, 1, 3, 4)]
    assert seer(capfd, *words, "per_shard=1", "shuffle=false").status == 0


def test_what_is_copied_is_decoded_where_asked_for_and_what_cannot_be_is_left_out(tmp_path, capfd):
    (tmp_path / "d").mkdir()
    whole = {f"{i}.jpg": jpeg(i, 200, 200) for i in range(4)} | {"p.png": encoded(pixels(7, 90, 90), "PNG")}
    cut, flipped = bytearray(jpeg(8, 200, 200)), bytearray(encoded(pixels(9, 90, 90), "PNG"))
    flipped[len(flipped) // 2] ^= 255
    bad = {
        "cut.jpg": bytes(cut[: len(cut) // 2]),
        "flipped.png": bytes(flipped),
        "text.jpg": b"no image",
        "none.png": b"",
    }
    for name, data in {**whole, **bad}.items():
        (tmp_path / "d" / name).write_bytes(data)
    words = ("shard", f"source={tmp_path / 'd'}", "processes=2", "per_shard=3")
    plain = seer(capfd, *words, f"output={tmp_path / 'a'}")
    assert plain.status == 0 and plain.result["pictures"] == 9 and plain.result["decoded"] is False
    assert says(plain.words, "check=true")
    ended = seer(capfd, *words, f"output={tmp_path / 'b'}", "check=true")
    assert ended.status == 0 and ended.result["decoded"] is True and "check=true" not in ended.words, ended.words
    assert (ended.result["pictures"], ended.result["skipped"]) == (5, 4)
    lost = [json.loads(line) for line in (tmp_path / "b" / "skipped.jsonl").read_text().splitlines()]
    kinds = {line["member"].rpartition("/")[2]: line["kind"] for line in lost}
    assert kinds == {
        "cut.jpg": "truncated",
        "flipped.png": kinds["flipped.png"],
        "text.jpg": "format",
        "none.png": "empty",
    }
    stored = {
        image_of(one)
        for n, s in enumerate(open_shards(tmp_path / "b"))
        for one in (s.read(n, r) for r in range(len(s)))
    }
    assert stored == set(whole.values())  # byte for byte
    again = seer(capfd, *words, f"output={tmp_path / 'a'}", "check=true")  # another request
    assert again.status == 78
    assert seer(capfd, *words, f"output={tmp_path / 'a'}").result["pictures"] == 9
    indexed = seer(
        capfd, "shard", f"source={tmp_path / 'a'}", f"output={tmp_path / 'i'}", "index_only=true", "check=true"
    )
    assert indexed.status == 78 and says(indexed.result["error"], "check")


def test_a_check_leaves_a_large_jpeg_in_as_training_does(tmp_path, capfd):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "large.jpg").write_bytes(large())
    (tmp_path / "d" / "large.png").write_bytes(encoded(pixels(1, 640, 960), "PNG"))
    (tmp_path / "d" / "small.jpg").write_bytes(jpeg(1))
    words = ("shard", f"source={tmp_path / 'd'}", f"output={tmp_path / 'o'}", "processes=1", "max_pixels=500000")
    ended = seer(capfd, *words, "check=true")
    assert (ended.result["pictures"], ended.result["skipped"]) == (2, 1), ended.words


def test_shards_of_no_image_at_all_are_bad_data(tmp_path, capfd):
    write_tar(tmp_path / "x.tar", [(f"{i}.jpg", b"no image") for i in range(5)])
    words = ("shard", f"source={tmp_path / 'x.tar'}", f"output={tmp_path / 'o'}", "quality=80", "processes=1")
    ended = seer(capfd, *words, "per_shard=2", "max_bad=100%")
    assert ended.status == 65 and says(ended.result["error"], "5 of 5", "format 5")


def test_a_file_that_cannot_be_read_is_left_out_and_a_folder_that_is_gone_stops(tmp_path, capfd, monkeypatch):
    import seer.data.shards.folder as folder

    for i in range(8):
        (tmp_path / "in" / f"{i // 4}").mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / f"{i // 4}" / f"{i}.jpg").write_bytes(jpeg(i))
    whole = folder.open_plain

    def failing(path):
        if str(path).endswith("/5.jpg"):
            raise PermissionError(13, "Permission denied")
        return whole(path)

    monkeypatch.setattr(folder, "open_plain", failing)
    words = ("shard", f"source={tmp_path / 'in'}", "per_shard=2", "processes=1")
    ended = seer(capfd, *words, f"output={tmp_path / 'o'}")
    assert ended.status == 0 and ended.result["pictures"] == 7 and ended.result["skipped"] == 1, ended.words
    lost = json.loads((tmp_path / "o" / "skipped.jsonl").read_text())
    assert lost["member"] == "1/5.jpg" and lost["kind"] == "unreadable" and "Permission denied" in lost["reason"]

    def gone(path):
        if (tmp_path / "in" / "1").exists():
            (tmp_path / "in" / "1").rename(tmp_path / "elsewhere")
        return whole(path)

    monkeypatch.setattr(folder, "open_plain", gone)
    ended = seer(capfd, *words, f"output={tmp_path / 'p'}")
    assert ended.status == 74 and "No such file" in ended.result["error"]
    (tmp_path / "elsewhere").rename(tmp_path / "in" / "1")
    monkeypatch.undo()
    ended = seer(capfd, *words, f"output={tmp_path / 'p'}")
    assert ended.status == 0 and ended.result["pictures"] == 8 and ended.result["skipped"] == 0


def test_images_that_were_too_many_to_lose_are_tried_again(tmp_path, capfd, monkeypatch):
    import seer.data.shards.folder as folder

    (tmp_path / "in").mkdir()
    for i in range(120):
        (tmp_path / "in" / f"{i:03d}.jpg").write_bytes(b"picture")
    whole = folder.open_plain
    words = ("shard", f"source={tmp_path / 'in'}", f"output={tmp_path / 'o'}", "processes=1")
    monkeypatch.setattr(folder, "open_plain", lambda path: whole(f"{path}.not.there"))
    ended = seer(capfd, *words)
    assert ended.status == 65 and says(ended.result["error"], "120 of 120", "unreadable 120")
    monkeypatch.undo()
    assert seer(capfd, *words).result["pictures"] == 120


def test_progress_is_told_in_lines_where_there_is_no_terminal(loose, tmp_path, capfd, monkeypatch):
    import seer.cli.shard as shard

    assert shard.EVERY_S == 30
    monkeypatch.setattr(shard, "EVERY_S", 0)
    words = ("shard", f"source={loose}", "per_shard=7", "processes=1")
    ended = seer(capfd, *words, f"output={tmp_path / 'o'}")
    lines = [line for line in ended.words.splitlines() if line.startswith("shards all: ")]
    assert lines[0].startswith(f"shards all: 0 of {N} images, 0.0/s, none yet")
    assert lines[-1].startswith(f"shards all: {N} of {N} images, ") and lines[-1].endswith("/s, 0 min left")
    (tmp_path / "o" / "manifest.json").rename(tmp_path / "manifest.json")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    done = [{"number": n, **entry, "skipped": []} for n, entry in enumerate(manifest["shards"][:4])]
    journal = [{"request": manifest["request"]}, *done]
    (tmp_path / "o" / ".unfinished.jsonl").write_text("".join(json.dumps(row) + "\n" for row in journal))
    ended = seer(capfd, *words, f"output={tmp_path / 'o'}")
    first = next(line for line in ended.words.splitlines() if line.startswith("shards all: "))
    assert first.startswith(f"shards all: {sum(one['count'] for one in done)} of {N} images")


def test_a_list_of_images_becomes_shards(loose, tmp_path, capfd):
    paths = sorted(loose.rglob("*.jpg"))
    (tmp_path / "list.txt").write_text("".join(f"{p}\n" for p in paths[::2]))
    words = ("shard", "per_shard=20", "processes=1", "labels=folder")
    ended = seer(capfd, *words, f"source={tmp_path / 'list.txt'}", f"output={tmp_path / 'a'}")
    assert ended.status == 0 and ended.result["pictures"] == 30 and ended.result["classes"] == ["c0", "c1", "c2"]
    ended = seer(capfd, *words, f"source={','.join(map(str, paths[::2]))}", f"output={tmp_path / 'b'}")
    assert ended.status == 0 and ended.result["pictures"] == 30, ended.words
    stored = [
        {image_of(s.read(0, r)) for s in open_shards(tmp_path / name) for r in range(len(s))} for name in ("a", "b")
    ]
    assert stored[0] == stored[1] == {p.read_bytes() for p in paths[::2]}
    ended = seer(capfd, "shard", f"source={tmp_path / 'list.txt'}", f"output={tmp_path / 'c'}", "index_only=true")
    assert ended.status == 78 and says(ended.result["error"], "index_only=true", "tars")


def test_index_only_makes_indexes_beside_the_tars_and_copies_nothing(tmp_path, capfd):
    for n in range(3):
        write_tar(tmp_path / f"s{n}.tar", [(f"{n}-{i}.jpg", jpeg(i)) for i in range(4)])
    tars = {p.name: p.read_bytes() for p in tmp_path.glob("*.tar")}
    words = ("shard", f"source={tmp_path}", f"output={tmp_path}", "index_only=true")
    ended = seer(capfd, *words)
    assert ended.status == 0 and ended.result["pictures"] == 12, ended.words
    assert {p.name for p in tmp_path.iterdir()} == {
        *tars, *(f"{t}.index.npy" for t in tars), "manifest.json", "result.json",
    }  # fmt: skip
    assert {p.name: p.read_bytes() for p in tmp_path.glob("*.tar")} == tars
    by_manifest = [s.identity for s in open_shards(tmp_path)]
    assert seer(capfd, *words).status == 0
    (tmp_path / "manifest.json").unlink()
    assert [s.identity for s in open_shards(tmp_path)] == by_manifest


def two_folders(root: Path) -> dict[Path, bytes]:
    for folder in ("a/deep", "b/deep"):
        (root / folder).mkdir(parents=True)
        for n in range(2):
            write_tar(root / folder / f"{n}.tar", [(f"{folder[0]}{n}{i}.jpg", jpeg(i)) for i in range(4)])
    return {p: p.read_bytes() for p in sorted(root.rglob("*.tar"))}


def test_indexes_may_lie_in_another_folder_which_then_is_the_source(tmp_path, capfd, monkeypatch):
    tars, indexes = two_folders(tmp_path / "tars"), tmp_path / "indexes"
    words = ("shard", f"source={tmp_path / 'tars'}", f"output={indexes}", "index_only=true")
    ended = seer(capfd, *words)
    assert ended.status == 0 and ended.result["pictures"] == 16, ended.words
    assert {p: p.read_bytes() for p in (tmp_path / "tars").rglob("*") if p.is_file()} == tars
    assert seer(capfd, *words).status == 0
    monkeypatch.chdir(tmp_path)
    for source in (indexes, "indexes"):
        shards = open_shards(source)
        assert [s.path for s in shards] == list(tars)
        assert [s.read(n, 0).key for n, s in enumerate(shards)] == ["a00", "a10", "b00", "b10"]
    monkeypatch.setattr("seer.data.shards.tar_shard.read_index", None)
    monkeypatch.setattr("seer.data.shards.tar_shard.build_index", None)
    assert len(open_shards(indexes)) == 4  # by the manifest alone
    monkeypatch.undo()
    (indexes / "a/deep/0.tar.index.npy").unlink()
    ended = seer(capfd, *words)
    assert ended.status == 74 and says(ended.result["error"], "0.tar.index.npy", "No such file"), ended.words
    next(iter(tars)).unlink()
    with pytest.raises(StorageError, match=naming("a/deep/0.tar", "No such file")):
        open_shards(indexes)


def test_what_lies_beside_indexes_of_tars_elsewhere_is_read_or_refused_but_never_passed_over(tmp_path, capfd):
    tars, indexes = two_folders(tmp_path / "tars"), tmp_path / "indexes"
    assert seer(capfd, "shard", f"source={tmp_path / 'tars'}", f"output={indexes}", "index_only=true").status == 0
    more = write_tar(indexes / "more.tar", [("m.jpg", jpeg(0))])
    assert [s.path for s in open_shards(indexes)] == [more, *tars]
    more.rename(tmp_path / "more.tar")
    (indexes / "loose.jpg").write_bytes(jpeg(0))
    with pytest.raises(RequestError, match=naming("manifest.json", "tars", "loose.jpg")):
        open_shards(indexes)


def test_a_full_disk_is_a_failure_of_storage(loose, tmp_path, capfd, monkeypatch):
    import seer.data.shards.journaled_pool as pieces

    class Full:
        def __getattr__(self, name):
            return getattr(os, name)

        def fsync(self, file):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(pieces, "os", Full())
    ended = seer(capfd, "shard", f"source={loose}", f"output={tmp_path}", "processes=1")
    assert ended.status == 74 and says(ended.result["error"], ".unfinished.jsonl", "No space left")


def test_the_manifest_above_nested_folders_of_tars_is_what_opens_them(tmp_path, capfd, monkeypatch):
    tars = two_folders(tmp_path)
    ended = seer(capfd, "shard", f"source={tmp_path}", f"output={tmp_path}", "index_only=true")
    assert ended.status == 0 and all(Path(f"{p}.index.npy").exists() for p in tars), ended.words
    expected = [s.identity for p in tars for s in open_shards(p)]
    monkeypatch.setattr("seer.data.shards.tar_shard.read_index", None)
    monkeypatch.setattr("seer.data.shards.tar_shard.build_index", None)
    monkeypatch.chdir(tmp_path)
    for source in (tmp_path, "."):
        assert [s.identity for s in open_shards(source)] == expected


def test_an_index_that_cannot_be_written_is_a_failure_of_storage_with_a_remedy(tmp_path, capfd):
    write_tar(tmp_path / "s.tar", [("a.jpg", jpeg(0))])
    (tmp_path / "s.tar.index.npy" / "in the way").mkdir(parents=True)
    words = ("shard", f"source={tmp_path / 's.tar'}", "index_only=true")
    ended = seer(capfd, *words, f"output={tmp_path}")
    assert ended.status == 74 and says(ended.result["error"], "s.tar.index.npy", "Is a directory", "output=")
    assert not list(tmp_path.glob(".*writing"))
    assert seer(capfd, *words, f"output={tmp_path / 'indexes'}").status == 0
    for output in ("s.tar", "s.tar/inside"):
        ended = seer(capfd, *words, f"output={tmp_path / output}")
        assert ended.status == 78 and says(ended.result["error"], tmp_path / output), ended.words


def test_a_manifest_of_other_tars_is_not_replaced_and_its_remedy_deletes_no_tar(tmp_path, capfd):
    write_tar(tmp_path / "s.tar", [("a.jpg", jpeg(0))])
    words = ("shard", f"source={tmp_path}", f"output={tmp_path}", "index_only=true")
    assert seer(capfd, *words).status == 0
    write_tar(tmp_path / "t.tar", [("b.jpg", jpeg(0))])
    ended = seer(capfd, *words)
    assert ended.status == 78 and ended.result["error"].endswith(
        f"delete {tmp_path / 'manifest.json'} to index them anew"
    )
    (tmp_path / "manifest.json").unlink()
    assert seer(capfd, *words).result["pictures"] == 2


def test_index_only_replaces_a_stale_index_and_names_a_damaged_tar(tmp_path, capfd):
    path = write_tar(tmp_path / "s.tar", [("a.jpg", jpeg(0))])
    np.save(f"{path}.index.npy", build_index(write_tar(tmp_path / "old", [("b.jpg", jpeg(1) * 40)])))
    words = ("shard", f"source={path}", "index_only=true")
    stale = seer(capfd, *words, f"output={tmp_path}")
    assert stale.status == 0 and len(open_shards(path)[0]) == 1, stale.words
    os.truncate(path, 700)
    ended = seer(capfd, *words, f"output={tmp_path / 'b'}")
    assert ended.status == 65 and says(ended.result["error"], path, "byte 0")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("source=pipe:touch ran",), ("scheme", "'pipe'")),
        (("source=http://localhost/x.tar",), ("scheme", "'http'")),
        (("max_side=8",), ("max_side=8", 32)),
        (("quality=101",), ("quality=101", 1, 100)),
        (("quality=high",), ("quality='high'",)),
        (("processes=0",), ("processes=0", 1)),
        (("max_bad=lots",), ("max_bad=lots",)),
        (("index_only=true", "max_side=64"), ("index_only=true", "max_side")),
        (("index_only=true",), ("index_only=true", "tars")),
        (("holdout=60",), ("holdout=60", 60)),
    ],
)
def test_wrong_words_are_refused_before_anything_is_written(loose, tmp_path, capfd, words, complaint):
    given = [] if words[0].startswith("source") else [f"source={loose}"]
    ended = seer(capfd, "shard", *given, f"output={tmp_path / 'o'}", *words)
    assert ended.status == 78 and says(ended.result["error"], *complaint) and not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("share", "held"), [("20%", 12), ("0.5 %", None), ("100%", None), ("20", None), ("-5%", None), ("x%", None)]
)
def test_a_holdout_may_be_a_share_of_the_images(loose, tmp_path, capfd, share, held):
    ended = seer(capfd, "shard", f"source={loose}", f"output={tmp_path / 'o'}", f"holdout='{share}'", "processes=2")
    if held is None:
        assert ended.status == 78 and says(ended.result["error"], "holdout", N if share == "100%" else share)
    else:
        assert {name: part["pictures"] for name, part in ended.result["parts"].items()} == (
            {"test": held, "train": N - held} if held else {"all": N}
        )


def test_a_holdout_and_the_rest_share_no_image(loose, tmp_path, capfd):
    ended = seer(capfd, "shard", f"source={loose}", f"output={tmp_path}", "holdout=13", "labels=folder", "processes=2")
    assert ended.status == 0 and ended.result["parts"]["test"]["pictures"] == 13
    parts = [
        {image_of(s.read(0, r)) for s in open_shards(tmp_path / part) for r in range(len(s))}
        for part in ("test", "train")
    ]
    assert len(parts[0]) == 13 and len(parts[1]) == 47 and not parts[0] & parts[1]


def test_a_process_that_dies_is_told_with_the_remedy_and_the_run_can_go_on(loose, tmp_path, capfd, monkeypatch):
    import seer.data.shards.rewrite as resharding

    whole = resharding.write_shard
    monkeypatch.setattr(resharding, "write_shard", lambda *a: os.kill(os.getpid(), signal.SIGKILL))
    words = ("shard", f"source={loose}", f"output={tmp_path}", "processes=1")
    ended = seer(capfd, *words)
    assert ended.status == 74 and says(ended.result["error"], "process", "died")
    monkeypatch.setattr(resharding, "write_shard", whole)
    assert seer(capfd, *words).status == 0


@pytest.mark.slow
def test_a_child_whose_parent_was_killed_ends_by_itself(tmp_path):
    code = (
        "import os, time; from seer.data.shards import journaled_pool as pieces; from pathlib import Path\n"
        f"p = Path({str(tmp_path)!r})\n"
        "def work(n, tick):\n    (p / 'pid').write_text(str(os.getpid())); time.sleep(60); return {}\n"
        "with pieces.locked(p / 'j') as j:\n"
        "    pieces.run_pieces(work, 1, j, 'r', processes=1, progress=lambda n: None)\n"
    )
    import subprocess
    import sys

    parent = subprocess.Popen([sys.executable, "-c", code])
    end = time.monotonic() + 60
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < end
        time.sleep(0.02)
    child = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.wait()
    end = time.monotonic() + 20
    while alive(child):
        assert time.monotonic() < end, "the orphan lives on"
        time.sleep(0.05)
