"""Fine-tuning: the published recipe number by number, and its switches, by `seer adapt` on drawn images."""

import inspect

import pytest

from seer.cli import config
from seer.core.build import find
from seer.data.transforms.multi_crop import MultiCrop
from seer.evals.features import short_side
from seer.run.config import PlateauConfig
from seer.run.schedule import Durations, schedule

IMAGENET = 1_281_167  # training images of ILSVRC-2012


@pytest.mark.parametrize(("recipe", "side", "short"), [("finetune", 224, 256), ("finetune_384", 384, 384)])
def test_the_recipe_is_the_article_s_number_by_number(recipe, side, short):
    found = config.read("adapt", [f"recipe={recipe}", "weights=w", "data.train=d"])
    assert found["steps"] == "35ep" and found["batch"] == 256 and found["surgery"]["steps"] == []
    optim = found["optim"]
    assert optim["_target_"] == "torch.optim.SGD" and (optim["momentum"], optim["weight_decay"]) == (0.9, 1e-4)
    assert not optim["nesterov"] and optim["dampening"] == 0
    lengths = Durations(found["steps"], found["batch"], IMAGENET)
    rate, _ = schedule(found["schedule"], PlateauConfig(), lengths)
    epoch = IMAGENET / 256
    assert lengths.total == pytest.approx(35 * epoch, abs=1)
    assert [rate(0), rate(int(30 * epoch) - 1)] == [0.0125, 0.0125]
    assert [rate(int(30 * epoch) + 2), rate(lengths.total - 1)] == pytest.approx([0.00125, 0.00125])
    large = inspect.signature(MultiCrop).parameters  # SwAV's views; `augment=swav` says no more than that
    view = found["augment"]
    for name in ("jitter", "brightness", "contrast", "saturation", "hue", "grayscale", "blur", "flip"):
        assert view[name] == large[name].default, name
    assert (view["hue"], view["jitter"], view["grayscale"], view["blur"]) == (0.2, 0.8, 0.2, 0.5)
    assert tuple(view["scale"]) == large["scales"].default[0] == (0.14, 1.0)
    assert tuple(view["blur_sigma"]) == (0.1, 2.0) and tuple(view["aspect"]) == (3 / 4, 4 / 3)
    assert view["size"] == side and view["train"]
    # judged on the center of the whole image
    judged = found["eval"]["size"] or view["size"]
    assert judged == side and (found["eval"]["resize"] or short_side(judged)) == short
    find("augment", view["_target_"])(**{k: v for k, v in view.items() if k != "_target_"})
