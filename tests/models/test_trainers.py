"""Checkpoints as other trainers write them give their backbone bit for bit, and tell what was chosen."""

import argparse
from collections import OrderedDict, defaultdict
from pathlib import Path, PosixPath

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet

from seer.core.errors import RequestError
from seer.models.pretrained import load_backbone, load_with_origin
from tests.messages import naming, says
from tests.models import foreign_files as foreign


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "w.pth"


@pytest.fixture
def told(caplog):
    caplog.set_level("INFO", logger="seer")
    return lambda: caplog.text


def under(prefix: str, state: dict) -> dict:
    return {prefix + key: value for key, value in state.items()}


def other(state: dict) -> dict:
    """Other numbers of the same shapes: what must not be taken."""
    return {key: value + 1 for key, value in state.items()}


def gives(loaded: nn.Module, wanted: dict) -> bool:
    found = loaded.state_dict()
    return found.keys() == wanted.keys() and all(torch.equal(found[key], value) for key, value in wanted.items())


HEAD = {"fc.weight": torch.ones(10, 40), "fc.bias": torch.ones(10)}


@pytest.mark.parametrize("library", foreign.LIBRARIES)
@pytest.mark.parametrize(
    "prefix",
    ["backbone.", "model.", "encoder_q.", "module.encoder_q.", "student.backbone.", "student.module.backbone.", "teacher.",
     "net.model.backbone.", "nobody_knows.this.", "model._orig_mod.", "encoder.module."],
)  # fmt: skip
def test_a_prefix_in_front_of_any_librarys_names_is_found(path, library, prefix):
    beside = {"queue": torch.zeros(3), "criterion.weight": torch.zeros(2)}
    torch.save({"state_dict": under(prefix, foreign.named(library)) | beside}, path)
    backbone, origin = load_with_origin(path)
    assert gives(backbone, foreign.weights())
    assert origin.left_out == len(beside) and origin.taken.startswith("state_dict > ")


def test_moco_takes_the_query_encoder_and_tells_of_the_other(path, told):
    names = foreign.named("torchvision")
    mlp = {"fc.0.weight": torch.ones(40, 40), "fc.2.weight": torch.ones(8, 40)}
    state = under("module.encoder_q.", names | mlp) | under("module.encoder_k.", other(names) | mlp)
    queue = {"module.queue": torch.zeros(8, 16), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    torch.save({"epoch": 200, "arch": "regnet_y_400mf", "state_dict": state | queue, "optimizer": {"state": {}}}, path)
    backbone, origin = load_with_origin(path)
    assert gives(backbone, foreign.weights())
    assert origin.taken == "state_dict > encoder_q.*" and origin.others == ("state_dict > encoder_k.*",)
    assert origin.left_out == len(names) + 4 + 2
    assert says(told(), "encoder_q.*", "encoder_k.*", origin.left_out)


def test_dino_takes_the_student_whichever_comes_first(path):
    names = foreign.named("torchvision")
    student = under("module.backbone.", names) | {"module.head.mlp.0.weight": torch.ones(2, 2)}
    teacher = under("backbone.", other(names)) | {"head.mlp.0.weight": torch.ones(2, 2)}
    for order in (("student", "teacher"), ("teacher", "student")):
        both = {"student": student, "teacher": teacher}
        torch.save({key: both[key] for key in order} | {"epoch": 3, "dino_loss": {"center": torch.zeros(1, 2)}}, path)
        backbone, origin = load_with_origin(path)
        assert gives(backbone, foreign.weights()) and origin.others == ("teacher > backbone.*",)


def test_a_running_average_is_taken_where_it_is_alone(path):
    torch.save({"teacher": under("backbone.", foreign.named("timm"))}, path)
    assert gives(load_backbone(path), foreign.weights())


def test_between_two_that_nothing_tells_apart_nobody_guesses(path):
    names = foreign.named("torchvision")
    torch.save(under("left.", names) | under("right.", other(names)), path)
    with pytest.raises(RequestError, match=naming(path, "left.*", "right.*", "alone")):
        load_backbone(path)


def test_a_network_that_was_registered_twice_is_one(path):
    names = foreign.named("torchvision")
    torch.save(under("left.", names) | under("right.", names), path)
    backbone, origin = load_with_origin(path)
    assert gives(backbone, foreign.weights()) and not origin.others


def test_a_scrap_with_a_blocks_name_is_no_rival(path):
    names = foreign.named("torchvision")
    torch.save(under("odd_name.", names) | {"backbone.layer1.0.conv1.weight": torch.zeros(1)}, path)
    assert gives(load_backbone(path), foreign.weights())


def test_children_in_a_sequential_are_known_by_their_number(path):
    names = foreign.named("torchvision")
    children = {"stem": "0", "trunk_output": "1"}
    numbered = {f"backbone.{children[k.partition('.')[0]]}.{k.partition('.')[2]}": v for k, v in names.items()}
    torch.save({"state_dict": numbered | {"projection_head.layers.0.weight": torch.ones(2, 2)}}, path)
    assert gives(load_backbone(path), foreign.weights())

    torch.manual_seed(0)
    model = resnet.ResNet(resnet.Bottleneck, [1, 2, 1, 1]).eval()
    torch.save(under("backbone.", nn.Sequential(*list(model.children())[:-1]).state_dict()), path)
    backbone = load_backbone(path)
    images = torch.rand(2, 3, 64, 64)
    model.fc = nn.Identity()
    with torch.no_grad():
        assert torch.equal(backbone(images), model(images))


def reference_script(names: dict) -> dict:
    """As torchvision's references/classification/train.py saves."""
    args = argparse.Namespace(model="regnet_y_400mf", lr=0.5, output_dir=PosixPath("out"), opt="sgd", epochs=90)
    schedule = {"_schedulers": [{"milestones": [5]}], "last_epoch": 3, "base_lrs": [0.5], "_last_lr": [np.float64(0.5)]}
    ema = {"n_averaged": torch.tensor(3)} | under("module.", other(names | HEAD))
    return {"model": names | HEAD, "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.5}]},
            "lr_scheduler": schedule, "epoch": 3, "args": args, "model_ema": ema, "scaler": {"scale": 65536.0}}  # fmt: skip


def timms_script(names: dict) -> dict:
    """As timm's train.py saves."""
    args = argparse.Namespace(model="regnety_004", data_dir=PosixPath("/data"), mean=[0.5] * 3, device="cuda:0")
    saved = OrderedDict(names)
    saved._metadata = OrderedDict()
    return {"epoch": np.int64(12), "arch": "regnety_004", "state_dict": saved, "optimizer": {"state": {}}, "version": 2,
            "args": args, "amp_scaler": {}, "state_dict_ema": other(names), "metric": np.float32(71.25)}  # fmt: skip


def lightning(names: dict) -> dict:
    """As a Trainer of Lightning saves."""
    callback = {
        "monitor": "val_loss",
        "best_model_score": torch.tensor(0.5),
        "best_k_models": {"a.ckpt": torch.tensor(0.5)},
    }
    loops = {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 3}, "current": {"ready": 3}}}}
    hyper = {
        "lr": np.float64(0.1),
        "root": PosixPath("/data"),
        "sizes": np.arange(3),
        "by": defaultdict(list, a=[1]),
        "k": {1, 2},
    }
    return {"epoch": 2, "global_step": 30, "pytorch-lightning_version": "2.5.0", "state_dict": under("backbone.", names | HEAD),
            "loops": loops, "callbacks": {"ModelCheckpoint{'monitor': None}": callback}, "optimizer_states": [{"state": {}}],
            "lr_schedulers": [], "hparams_name": "kwargs", "hyper_parameters": hyper}  # fmt: skip


SCRIPTS = [(reference_script, "torchvision"), (timms_script, "timm"), (lightning, "torchvision")]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(("script", "library"), SCRIPTS, ids=lambda value: getattr(value, "__name__", value))
def test_a_training_checkpoint_is_read_and_its_average_is_told(path, told, script, library, legacy):
    content = script(foreign.named(library))
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(Exception, match=r"(?i)weights.only|unsupported"):
        torch.load(path, weights_only=True)  # torch alone refuses it, or this test shows nothing
    backbone, origin = load_with_origin(path)
    assert gives(backbone, foreign.weights())
    averages = [key for key in content if key.endswith("_ema")]
    assert [place.split(" > ")[0] for place in origin.others] == averages
    assert all(says(told(), key) for key in averages)


def test_a_mapping_that_holds_itself_ends(path):
    content: dict = {"state_dict": under("backbone.", foreign.named("timm"))}
    content["again"] = content
    content["state_dict_of_it"] = {"up": content}
    torch.save(content, path)
    assert gives(load_backbone(path), foreign.weights())


def test_what_is_missing_behind_a_prefix_is_named_as_the_file_spells_it(path):
    names = under("module.encoder_q.", foreign.named("torchvision"))
    del names["module.encoder_q.stem.0.weight"]
    torch.save(names | {"module.encoder_q.trunk_output.block1.gate.weight": torch.ones(1)}, path)
    with pytest.raises(
        ValueError,
        match=naming("missing", "module.encoder_q.stem.0.weight", "encoder_q.trunk_output.block1.gate.weight"),
    ):
        load_backbone(path)


def test_no_backbone_at_all_names_what_is_there_and_both_families(path):
    torch.save({"model": {"blocks.0.attn.qkv.weight": torch.zeros(2, 2)}, "epoch": 3}, path)
    with pytest.raises(RequestError, match=naming("'model'", "'blocks.0.attn.qkv.weight'", "RegNetY", "ResNet")):
        load_backbone(path)


def test_what_timms_own_saver_wrote_is_read(path, tmp_path):
    timm = pytest.importorskip("timm")
    from timm.utils import CheckpointSaver, ModelEmaV3

    torch.manual_seed(0)
    model = timm.create_model("regnety_002", num_classes=7).eval()
    average = ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        for parameter in average.module.parameters():
            parameter.add_(1)
    args = argparse.Namespace(model="regnety_002", data_dir=PosixPath("/data"), lr=np.float64(0.1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    saver = CheckpointSaver(
        model, optimizer, args=args, model_ema=average, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path)
    )
    saver.save_checkpoint(3, metric=np.float64(71.5))
    backbone, origin = load_with_origin(tmp_path / "last.pth.tar")
    assert origin.library == "timm" and origin.others == ("state_dict_ema > *",)
    images = torch.rand(2, 3, 64, 64)
    model.reset_classifier(0)
    with torch.no_grad():
        wanted = model(images)
        assert (backbone(images) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_a_configuration_of_omegaconf_among_lightnings_hyper_parameters_stands_for_nothing(path):
    omegaconf = pytest.importorskip("omegaconf")
    hyper = omegaconf.OmegaConf.create({"lr": 0.1, "model": {"name": "x", "sizes": [1, 2], "deep": None, "on": True}})
    torch.save({"state_dict": under("model.", foreign.named("timm")), "hyper_parameters": {"config": hyper}}, path)
    assert gives(load_backbone(path), foreign.weights())


def test_a_dict_of_words_is_not_taken_for_a_list_of_files(path):
    torch.save({"name": "regnet", "license": "MIT"}, path)
    with pytest.raises(RequestError, match=naming("tensors", "'name'", "'license'")) as caught:
        load_backbone(path)
    assert "slice" not in str(caught.value)
