"""Runs `seer adapt`: one or several heads on a backbone, by the same loop as `seer pretrain`.

Surprising: what the weights say of themselves needs no words. Without `model=` the network has their shape, and images are
made as they were for them: size, mean and std, channels, what lies under transparent ones.
"""

from pathlib import Path
from typing import Any

from seer.cli.config import Settings
from seer.core.errors import RequestError
from seer.run.config import RunConfig


def run(settings: Settings, output: list[Path]) -> dict[str, Any]:
    """Returns the result for the JSON line. Raises RequestError and what `train` raises."""
    if not settings["data"]["source"] and not settings["data"]["drawn"]:
        raise RequestError("adapt needs data.source=…: images with labels, masks or boxes")
    if not settings["task"]["heads"]:
        raise RequestError(
            "heads=[]: at least one head, of `seer adapt --help heads`, or of your own in task.heads={NAME: {kind: …}}"
        )
    if not settings["weights"] and any(
        str(step.get("_target_", "")).endswith(".freeze") for step in settings["surgery"]["steps"]
    ):
        raise RequestError(
            "weights=null with surgery=freeze: heads would learn on random features; give weights=, or surgery=none to train "
            "the backbone, too"
        )
    asked = RunConfig.of(_as_the_weights(settings) if settings["weights"] and not _of_a_library(settings) else settings)
    from seer.run.session import train

    return train(asked, output=output, numbered="output" not in settings.typed)


def _of_a_library(settings: Settings) -> bool:
    """Returns whether the network is named in another library, and its weights are in that library's file: it says nothing of images."""
    if "model" not in settings.chosen or ":" not in str(settings["model"].get("name", "")):
        return False
    from seer.run.weights import of_seer

    return not of_seer(settings["weights"])


def _as_the_weights(settings: Settings) -> dict[str, Any]:
    """Returns the settings with what the weights decide and no word does. Raises RequestError for weights that are not there."""
    from seer.core.config import filled
    from seer.run.weights import channels_of, state

    found = state(settings["weights"])
    backbone, card = found.backbone, found.card
    new: dict[str, Any] = {name: dict(node) if isinstance(node, dict) else node for name, node in settings.items()}
    if "model" not in settings.chosen:
        new["model"] = _model(backbone)
    wanted = {
        "augment.mean": list(card["mean"]),
        "augment.std": list(card["std"]),
        "augment.size": card["input_size"],
        "data.channels": channels_of(backbone),
        "data.ground": card.get("ground") or settings["data"]["ground"],
    }
    if new["augment"].get("_target_", "").endswith(".WholeImage"):
        del wanted[
            "augment.size"
        ]  # things are looked for at the size that shows them, whatever the backbone learned from
    for key, value in wanted.items():
        group, _, name = key.partition(".")
        if name in new[group] and not any(key == one or key.startswith(f"{one}.") for one in settings.said):
            new[group][name] = value
    return filled(new, RunConfig)


def _model(backbone: Any) -> dict[str, Any]:
    """Returns the config's node of a network: its name in the zoo, else its class and shape."""
    from seer.models.zoo import STRIDE, build, name_of

    shape = {key: value for key, value in backbone.architecture.items() if key not in ("family", "in_channels")}
    if name := name_of(backbone.architecture):
        stride = {STRIDE: shape[STRIDE]} if STRIDE in shape else {}
        return {"_target_": f"{build.__module__}.{build.__qualname__}", "name": name, **stride}
    return {"_target_": f"{type(backbone).__module__}.{type(backbone).__qualname__}", **shape}
