"""torch.hub's door, as a stranger would use it: from the folder of the checkout, with and without weights."""

from pathlib import Path

import pytest
import torch

from seer.models import zoo
from seer.models.bundle import write_bundle
from tests.messages import naming
from tests.models import foreign_files as foreign

TOP = str(Path(__file__).parents[2])


@pytest.mark.parametrize("name", zoo.names())
def test_every_row_of_the_zoo_is_an_entry(name):
    with torch.device("meta"):
        model = torch.hub.load(TOP, name, source="local")
    assert zoo.name_of(model.architecture) == name


def test_an_entry_without_weights_is_freshly_initialised():
    torch.manual_seed(0)
    ours = zoo.build("regnety_200mf")
    torch.manual_seed(0)
    model = torch.hub.load(TOP, "regnety_200mf", source="local")
    assert torch.equal(model.stage4.block6.c.conv.weight, ours.stage4.block6.c.conv.weight)
    assert torch.hub.load(TOP, "regnety_200mf", source="local", stem_stride=1).stem_stride == 1


def test_an_entry_with_weights_is_what_the_bundle_holds(tmp_path):
    ours = zoo.build("regnety_200mf", stem_stride=1)
    write_bundle(tmp_path, ours, card={})
    for name in ("regnety_200mf", "backbone"):
        model = torch.hub.load(TOP, name, source="local", weights=str(tmp_path))
        assert not model.training and model.stem_stride == 1
        assert all(torch.equal(model.state_dict()[key], value) for key, value in ours.state_dict().items())


def test_an_entry_refuses_weights_of_another_shape_and_names_theirs(tmp_path):
    write_bundle(tmp_path / "b", zoo.build("regnety_200mf"), card={})
    with pytest.raises(ValueError, match=naming("regnety_200mf", "regnety_400mf", "'backbone'")):
        torch.hub.load(TOP, "regnety_400mf", source="local", weights=str(tmp_path / "b"))
    torch.save(foreign.named("timm"), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=naming("without a name", "regnety_200mf")):
        torch.hub.load(TOP, "regnety_200mf", source="local", weights=str(tmp_path / "w.pth"))
    assert torch.hub.load(TOP, "backbone", source="local", weights=str(tmp_path / "w.pth")).feature_dim == 40
