"""What `import seer` gives: names of all layers, loaded when they are asked for; a backbone with what its images become."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

import seer
from seer.core.errors import RequestError
from seer.data.decode import Undecodable
from seer.data.shards.open import open_shards
from seer.evals.features import PlainImages, extract
from seer.models.bundle import write_bundle
from seer.models.pretrained import load_backbone
from seer.models.zoo import build
from seer.run.opened import open_run
from tests.data.image_files import encoded, jpeg, pixels
from tests.messages import naming
from tests.program import ROOT, SMALL
from tests.program import seer as program

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    torch.manual_seed(0)
    card = {"mean": list(MEAN), "std": list(STD), "input_size": 64, "ground": 255}
    return write_bundle(tmp_path_factory.mktemp("bundle"), build("regnety_200mf"), card=card)


def test_importing_it_loads_nothing_and_a_name_loads_its_own():
    code = (
        "import sys, seer; assert not {'torch', 'numpy', 'hydra', 'yaml'} & set(sys.modules), sorted(sys.modules);"
        "assert {'load', 'open', 'load_backbone', '__version__'} <= set(dir(seer));"
        "from seer.data import order, open_shards, write_shards, Plan, MultiCrop; assert order.Plan is Plan;"
        "assert open('/dev/null') and not hasattr(seer, 'pen')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)
    assert seer.load_backbone is load_backbone and seer.open is open_run


def test_a_name_that_there_is_not_is_told():
    with pytest.raises(AttributeError, match=naming("'laod'", "load_backbone")):
        seer.laod  # noqa: B018
    space: dict[str, object] = {}
    exec("from seer import *", space)
    assert space["load"] is seer.load and space.get("open", open) is open


def test_features_are_those_of_an_evaluation_to_the_last_bit(bundle, tmp_path):
    (tmp_path / "d").mkdir()
    for i in range(5):
        (tmp_path / "d" / f"{i}.jpg").write_bytes(jpeg(i, 90 + 20 * i, 120))
    backbone = seer.load(bundle)
    assert not backbone.training and backbone.preprocess.size == 64 and backbone.preprocess.pixels.ground == 255
    images = torch.stack([backbone.preprocess(path) for path in sorted((tmp_path / "d").iterdir())])
    truth, _ = extract(
        load_backbone(bundle), PlainImages(open_shards(tmp_path / "d"), size=64), mean=MEAN, std=STD, threads=1
    )
    with torch.no_grad():
        assert torch.equal(backbone(images.contiguous(memory_format=torch.channels_last)), truth)


def test_images_are_cut_and_normalized_as_torchvision_does(bundle):
    image = Image.fromarray(pixels(3, 150, 200))
    usual = v2.Compose(
        [v2.ToImage(), v2.Resize(73), v2.CenterCrop(64), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    )
    found = seer.load(bundle).preprocess(image)
    assert found.shape == (3, 64, 64) and (found - usual(image)).abs().mean() < 0.02  # a level is 0.013 to 0.02


def test_an_image_may_be_a_path_bytes_an_array_or_pillows(bundle, tmp_path):
    preprocess = seer.load(bundle).preprocess
    data = encoded(pixels(1, 100, 80), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    first = preprocess(data)
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), pixels(1, 100, 80), Image.open(io.BytesIO(data))):
        assert torch.equal(preprocess(image), first)
    with pytest.raises(Undecodable):
        preprocess(b"no image")
    for wrong in (None, 3, np.zeros((9, 9, 3)), np.zeros((9, 9), np.uint8), torch.zeros(3, 9, 9)):
        with pytest.raises(RequestError, match="an image is expected"):
            preprocess(wrong)
    with pytest.raises(FileNotFoundError):
        preprocess(tmp_path / "none.png")


@pytest.mark.slow
def test_a_run_is_loaded_and_opened_as_its_last_line_says(tmp_path, capfd):
    for i in range(16):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg(i, 60, 60))
    run = tmp_path / "my run"
    ended = program(capfd, "pretrain", *SMALL, f"data.source={tmp_path}", f"output={run}", "steps=1")
    assert ended.status == 0, ended.words
    (line,) = (one.split("Python: ")[1] for one in ended.words.splitlines() if "Python: " in one)
    space = {"IMAGE": tmp_path / "0.jpg"}
    exec(line, space)
    backbone = space["backbone"]
    assert backbone(space["x"][None]).shape == (1, backbone.feature_dim)  # type: ignore[operator, index, attr-defined]
    opened = seer.open(run)
    assert opened.step == 1 and len(opened.shards[0]) == 16 and opened.metrics
    trained = opened.task.modules()["backbone"].state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in backbone.state_dict().items())  # type: ignore[attr-defined]
