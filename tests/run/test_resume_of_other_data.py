"""What is said where the data of a checkpoint has another fingerprint: no more than what was compared."""

from types import SimpleNamespace

import pytest

from seer.core.errors import RequestError
from seer.data.shards.open import open_shards
from seer.data.shards.shard import content_fingerprint, fingerprint
from seer.engine.clock import Clock
from seer.run import resume
from tests.data.image_files import jpeg, write_tar
from tests.messages import says


class Saved:
    """Checkpoints whose newest was made of other facts."""

    def __init__(self, manifest):
        self.manifest = {"step": 3, "batch": 4, "plan": "p", **manifest}

    def load_newest(self, tensors):
        return {}, self.manifest


def go_on(monkeypatch, manifest, facts):
    monkeypatch.setattr(resume, "sharded", lambda training: {})
    monkeypatch.setattr(resume, "parts", lambda training: {})
    training = SimpleNamespace(clock=Clock())
    return resume.resume(Saved(manifest), training, {"batch": 4, "plan": "p", **facts}, None, 0)


def test_data_of_another_name_goes_on_and_a_checkpoint_that_cannot_tell_names_both_remedies(monkeypatch):
    now = {"data": "new", "content": "c"}
    assert go_on(monkeypatch, {"data": "old", "content": "c"}, now) == 3
    with pytest.raises(RequestError) as changed:
        go_on(monkeypatch, {"data": "old", "content": "other"}, now)
    with pytest.raises(RequestError) as unknown:
        go_on(monkeypatch, {"data": "old"}, now)
    assert says(str(unknown.value), "name of the folder", "restore", "output=") and says(str(changed.value), "restore")
    assert "name of the folder" not in str(changed.value)
    with pytest.raises(RequestError):
        go_on(monkeypatch, {"data": "old"}, {"data": "new"})


@pytest.mark.parametrize("kind", ["folder", "tar", "list"])
def test_the_content_is_told_apart_from_the_name_and_the_fingerprint_stays(tmp_path, kind):
    (tmp_path / "a:b").mkdir()
    (tmp_path / "a:b" / "x.jpg").write_bytes(jpeg(0))
    write_tar(tmp_path / "a:b.tar", [("x.jpg", jpeg(0))])
    (tmp_path / "a:b.txt").write_text("a:b/x.jpg\n")
    source = tmp_path / {"folder": "a:b", "tar": "a:b.tar", "list": "a:b.txt"}[kind]
    before = open_shards(source)
    assert fingerprint(before) != content_fingerprint(before)
    prints = fingerprint(before), content_fingerprint(before)
    source.rename(tmp_path / f"c{source.suffix}")
    after = open_shards(tmp_path / f"c{source.suffix}")
    assert fingerprint(after) != prints[0] and content_fingerprint(after) == prints[1]
    if kind == "folder":
        (tmp_path / "c" / "x.jpg").rename(tmp_path / "c" / "y.jpg")
        assert content_fingerprint(open_shards(tmp_path / "c")) != prints[1]
