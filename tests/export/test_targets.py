"""Where a network cannot be exported to is one rule, which exports and the start of a run both ask."""

import pytest
from torch import nn

from seer.core.errors import RequestError
from seer.export import targets, to_huggingface, to_timm, to_torchvision
from seer.models.zoo import build
from tests.export.test_export import drawn, small
from tests.messages import says
from tests.program import SMALL, seer

EXPORTERS = {"torchvision": to_torchvision, "timm": to_timm, "huggingface": to_huggingface}
NETWORKS = {
    "everywhere": (lambda: build("regnety_400mf"), set()),
    "stem of stride 1": (lambda: build("regnety_200mf", stem_stride=1), {"torchvision", "timm", "huggingface"}),
    "no name": (small, {"timm", "huggingface"}),
    "a name that timm has not": (lambda: build("regnety_4gf_tv", device="meta"), {"timm"}),
    "ResNet": (lambda: build("resnet_50", device="meta"), {"huggingface"}),
}


@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_said_at_the_start_is_what_the_export_does(tmp_path, network):
    make, refused = NETWORKS[network]
    backbone = make()
    assert {target for target in EXPORTERS if targets.refusal(target, backbone)} == refused
    assert set(EXPORTERS) - set(targets.possible(backbone)) == refused and "safetensors" in targets.possible(backbone)
    told = targets.limits(backbone)
    assert (told is None) == (not refused)
    for target in refused:
        assert says(told, target, "safetensors")
        with pytest.raises(RequestError) as caught:
            EXPORTERS[target].export(backbone, {}, tmp_path / "out", drawn(0, 1))
        assert str(caught.value) == targets.refusal(target, backbone)
    assert not (tmp_path / "out").exists()


def test_of_a_network_that_tells_no_architecture_nothing_is_said():
    assert targets.limits(nn.Linear(1, 1)) is None and targets.possible(nn.Linear(1, 1)) == []


@pytest.mark.slow
def test_a_run_says_it_before_its_first_step(tmp_path, capfd):
    words = ("data.drawn=40", "data.drawn_test=0", "steps=1")
    for stride, line in ((1, True), (2, False)):
        run = tmp_path / str(stride)
        ended = seer(capfd, "pretrain", *SMALL, *words, f"model.stem_stride={stride}", f"output={run}")
        assert ended.status == 0, ended.words
        before = ended.words.partition("step 1/1")[0]
        assert says(before, "torchvision", "stem_stride=1", "exported") == line, ended.words
