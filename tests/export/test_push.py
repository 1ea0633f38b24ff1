"""A push goes to a server that speaks the hub's protocol, over real sockets: what arrives, what is refused, what a cut leaves."""

import hashlib
import json
import logging
import re
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from seer.cli import config
from seer.core.config import flat
from seer.core.errors import RequestError, StorageError
from seer.core.log import log
from seer.export import push
from seer.models.bundle import write_bundle, write_safetensors
from seer.models.zoo import build
from tests.export.hub import TOKEN, served
from tests.messages import naming, says
from tests.program import seer

pytest.importorskip("huggingface_hub")


@pytest.fixture(params=["xet off", "xet as installed"])
def hub(request, monkeypatch):
    """hf_xet, which comes with huggingface_hub, speaks a protocol of its own that this server, like others, does not offer."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", request.param == "xet off")
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda s: None, time=lambda: 0.0))
    with served() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def files(tmp_path) -> list[Path]:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: other\n---\n\n# A backbone, 8 / 3, https://example.org/a/b/c\n")
    (folder / "config.json").write_text('{"widths": [8]}\n')
    torch.manual_seed(0)
    write_safetensors({"w": torch.randn(64, 64)}, folder / "model.safetensors")
    return sorted(folder.iterdir())


def test_what_arrives_is_what_lies_here_and_it_is_private(hub, files, monkeypatch, caplog):
    monkeypatch.setattr(log, "propagate", True)
    caplog.set_level(logging.INFO, logger="seer")
    found = push.push(push.destination("me/net", True), files)
    held = hub.repositories["me/net"]
    assert held["private"] is True
    assert {name: data for name, data in held["files"].items() if name != ".gitattributes"} == {
        file.name: file.read_bytes() for file in files
    }
    assert hashlib.sha256(files[2].read_bytes()).hexdigest() in hub.objects, "the weights went by LFS"
    assert found["repository"] == "me/net" and found["private"] is True and found["url"] == f"{hub.url}/me/net"
    assert found["files"] == [{"name": file.name, "bytes": file.stat().st_size} for file in files]
    assert says(caplog.messages[0], "private", hub.url, *(file.name for file in files))
    assert hub.asked[0] == "POST /api/repos/create"


def test_it_is_public_where_that_is_asked_for(hub, files):
    push.push(push.destination("me/net", False), files)
    assert hub.repositories["me/net"]["private"] is False


def test_a_token_that_is_not_taken_is_78(hub, files, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(RequestError, match=naming("me/net", 401, "HF_TOKEN")) as caught:
        push.push(push.destination("me/net", True), files)
    assert caught.value.exit_status == 78 and "hf_another" not in str(caught.value) and not hub.repositories


def test_without_a_token_nothing_is_asked(hub, files, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(RequestError, match=naming("me/net", "HF_TOKEN", "hf auth login")):
        push.destination("me/net", True)
    assert hub.asked == []


def test_a_repository_that_holds_anything_or_is_public_is_left_alone(hub, files):
    hub.repositories["me/net"] = {"private": True, "files": {"model.bin": b"theirs"}}
    with pytest.raises(RequestError, match=naming("me/net", "exists", 1, "another name")):
        push.push(push.destination("me/net", True), files)
    assert hub.repositories["me/net"]["files"] == {"model.bin": b"theirs"}
    hub.repositories["me/open"] = {"private": False, "files": {".gitattributes": b""}}
    with pytest.raises(RequestError, match=naming("me/open", "exists", "public")):
        push.push(push.destination("me/open", True), files)
    assert not hub.objects


def test_a_push_that_was_cut_off_is_74_and_goes_on_when_run_again(hub, files):
    hub.fault = "cut"
    with pytest.raises(StorageError, match=naming("me/net", hub.url, "run it again")) as caught:
        push.push(push.destination("me/net", True), files)
    assert caught.value.exit_status == 74 and set(hub.repositories["me/net"]["files"]) == {".gitattributes"}
    hub.fault = ""
    push.push(push.destination("me/net", True), files)
    assert len(hub.repositories["me/net"]["files"]) == 4


def test_no_network_and_a_server_without_room_are_74(hub, files, monkeypatch):
    hub.fault = "full"
    with pytest.raises(StorageError, match=naming("me/net", 507)):
        push.push(push.destination("me/net", True), files)
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(StorageError, match=naming("me/net", "not reached")):
            push.push(push.destination("me/net", True), files)


@pytest.mark.parametrize("name", ["net", "me/", "me/net/x", "https://hub/me", "../net", "me/net name"])
def test_what_is_no_repository_is_refused_before_anything_is_asked(hub, name):
    with pytest.raises(RequestError, match=naming("push=", "USER/NAME")):
        push.destination(name, True)
    assert hub.asked == []


@pytest.mark.parametrize(
    "words",
    ["images lie in /data/photos/a", "~/photos/a", r"C:\Users\me", "on {host}.example.org", "from runs/photos here"],
)
def test_what_names_a_place_of_this_machine_does_not_leave(hub, files, monkeypatch, words):
    monkeypatch.setattr(socket, "gethostname", lambda: "trainer7.cluster")
    files[0].write_text(files[0].read_text() + words.format(host="trainer7"))
    with pytest.raises(RequestError, match=naming("README.md", 6, "nothing was pushed")):
        push.push(push.destination("me/net", True), files, ["runs/photos"])
    assert hub.asked == [] and hub.repositories == {}


def test_the_header_of_weights_is_searched_too_and_their_numbers_are_not(hub, files):
    push.check(files, [])
    write_safetensors({"w": torch.zeros(1)}, files[2], {"from": "/home/me/run"})
    with pytest.raises(RequestError, match=naming("model.safetensors", "/home/me/run")):
        push.check(files, [])


def whole_recipe() -> dict[str, object]:
    """Every setting of a run, its paths set, as runs keep it."""
    words = ["data.source=/data/photos", "output=/home/me/run", "weights=../w.pth", "data.exclude=skipped.jsonl"]
    words += [
        "eval.train=labelled/train",
        "eval.test=labelled/test",
        "eval.labels=labels.csv",
        "data.fields={mask: masks/}",
        "batch=96",
    ]
    return flat(dict(config.read("pretrain", words)))


def test_a_recipe_leaves_without_its_paths_and_with_all_else():
    recipe = whole_recipe()
    kept = json.loads(push.without_paths(json.dumps(recipe)))
    gone = set(recipe) - set(kept)
    assert gone == {
        *(
            "data.source",
            "output",
            "weights",
            "data.exclude",
            "eval.train",
            "eval.test",
            "eval.labels",
            "data.fields.mask",
        ),
    }
    assert kept["batch"] == 96 and kept["task._target_"] == recipe["task._target_"]
    assert push.without_paths("a text") == "a text" and push.without_paths(None) is None


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    card = {
        "recipe": json.dumps(whole_recipe()),
        "licence": "CC BY-NC 4.0",
        "metrics": {"knn_top1": 0.5},
        "input_size": 64,
    }
    return write_bundle(tmp_path_factory.mktemp("w") / "bundle", build("regnety_200mf"), card=card)


@pytest.mark.slow
def test_an_export_is_pushed_with_its_licence_and_without_paths(capfd, hub, bundle, tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "photo.jpg").write_bytes(b"an image that lies there")
    words = ["export", f"weights={bundle}", "to=huggingface", f"output={tmp_path / 'hf'}", "pictures=2", "push=me/net"]
    ended = seer(capfd, *words)
    assert ended.status == 0, ended.words
    held = hub.repositories["me/net"]["files"]
    assert sorted(held) == [
        ".gitattributes",
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    card = held["README.md"].decode()
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "other" and head["license_name"] == "cc-by-nc-4.0" and "CC BY-NC 4.0" in card
    assert "batch: 96" in card and "knn_top1" in card
    sent = b"".join([*hub.received, *held.values()])
    for word in (
        str(tmp_path),
        str(bundle),
        "/data/photos",
        "/home/me",
        "labels.csv",
        "photo.jpg",
        TOKEN,
    ):
        assert word.encode() not in sent, word
    texts = "".join(data.decode() for name, data in held.items() if name != "model.safetensors")
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", texts)
    assert ended.result["push"]["private"] is True and says(ended.words, "leaves this machine", "model.safetensors")
    again = seer(capfd, *words)
    assert again.status == 78 and again.result["file"] == str(tmp_path / "hf" / "model.safetensors")


@pytest.mark.slow
def test_without_a_network_all_but_the_push_works(capfd, hub, bundle, tmp_path, monkeypatch):
    pytest.importorskip("transformers")

    def cut(*_):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", cut)
    words = ["export", f"weights={bundle}", "to=huggingface", "pictures=2"]
    assert seer(capfd, *words, f"output={tmp_path / 'a'}").status == 0
    ended = seer(capfd, *words, f"output={tmp_path / 'b'}", "push=me/net")
    assert ended.status == 74 and ended.result["file"] == str(tmp_path / "b" / "model.safetensors")
    assert hub.asked == [] and (tmp_path / "b" / "model.safetensors").is_file()


def test_a_push_is_typed_and_never_read_from_a_file(capfd, hub, bundle, tmp_path):
    from seer.cli import export

    (tmp_path / "mine.yaml").write_text("push: me/net\nbatch: 8\n")
    for verb, words in (
        ("pretrain", [f"recipe={tmp_path / 'mine.yaml'}", "data.source=x"]),
        ("adapt", [f"recipe={tmp_path / 'mine.yaml'}", "weights=w", "data.train=x"]),
        (
            "export",
            [f"recipe={tmp_path / 'mine.yaml'}", f"weights={bundle}", "to=huggingface", f"output={tmp_path / 'o'}"],
        ),
    ):
        assert seer(capfd, verb, *words).status == 78
    settings = config.read("export", [f"weights={bundle}", "to=huggingface", f"output={tmp_path / 'o'}", "push=me/net"])
    assert settings["push"] == "me/net" and "push" in settings.typed
    settings.typed = frozenset()  # as a file would leave it
    with pytest.raises(RequestError, match=naming("push=me/net", "command line")):
        export.run(settings, [])
    assert hub.asked == [] and not (tmp_path / "o").exists()


def test_words_that_go_with_no_push_are_refused(capfd, bundle, tmp_path):
    words = ["export", f"weights={bundle}", f"output={tmp_path / 'o'}"]
    ended = seer(capfd, *words, "to=safetensors", "push=me/net")
    assert ended.status == 78 and says(ended.words, "push=me/net", "to=huggingface")
    ended = seer(capfd, *words, "to=huggingface", "private=false")
    assert ended.status == 78 and says(ended.words, "private=false", "push=")
