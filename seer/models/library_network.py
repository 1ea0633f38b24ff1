"""Makes a backbone of any network of timm's or torchvision's that has feature maps: `model=timm:NAME`, `model=torchvision:NAME`.

Only names that the library itself lists are built, without weights: nothing is downloaded, and no word and no bundle makes it
run anything else. Weights come from a file afterwards, in the library's own names (`own_names`).

Surprising:
- Stages are called stage1, stage2, …, one for each size of map from fine to coarse, since every network has names of its own. Of
  torchvision's each ends where the map last has its size; what stands behind the last map, pooling and classifier, is left out.
- Dropout and stochastic depth are set to 0: they draw from the global generator, and a run that goes on would draw otherwise.
- It has no method `blocks`, so recompute, FSDP and rates by stage find no parts in it (`parallel/blocks.py`).

Legend: B images, C features, c channels of a stage.
"""

from __future__ import annotations

import contextlib
import copy
import difflib
import io
import re
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from seer.core.errors import RequestError

LIBRARIES = ("timm", "torchvision")
NAME = re.compile(rf"(?P<library>{'|'.join(LIBRARIES)}):(?P<network>[A-Za-z0-9_]+)")
PROBE = 224  # side of the image by which torchvision's stages are found; on meta, so nothing is computed
# While torch.fx traces, every call of any module in any thread goes to its tracer. A run writes its bundle, for which the network
# is built on meta, in a thread beside training: so each network is traced once, when the run makes it. Numbers that its code makes
# on the way are attributes of the module that was traced, by names that the graphs hold; every other one of it needs them, too.
_TRACED: dict[tuple[str, int], tuple[tuple[Any, Any], list[int], dict[str, Tensor]]] = {}
_TRACING = threading.Lock()
DRAWING = re.compile(r"Dropout|StochasticDepth|DropPath|DropBlock")


class LibraryNetwork(nn.Module):
    """Is a network of another library without its classifier: [B, in_channels, H, W] -> [B, C].

    Raises RequestError for a library that is not installed, a name that it does not list, and a network without feature maps.
    """

    def __init__(self, library: str, network: str, in_channels: int = 3, device: torch.device | str | None = None):
        super().__init__()
        self.library, self.network, self.in_channels = library, network, in_channels
        made = _timm if library == "timm" else _torchvision
        with torch.device(device) if device is not None else torch.device(torch.get_default_device()):
            self.trunk, widths = made(network, in_channels)
        self.stage_names = tuple(f"stage{i}" for i in range(1, len(widths) + 1))
        self.feature_dim = widths[-1]
        self._check(widths)
        for module in self.modules():
            if DRAWING.match(type(module).__name__):
                for name in ("p", "drop_prob"):
                    if hasattr(module, name):
                        setattr(module, name, 0.0)

    def _check(self, widths: list[int]) -> None:
        """Raises RequestError for what would not come back from a file, and for maps that are laid out otherwise."""
        kept = self.state_dict().keys()
        if lost := [name for name, _ in self.named_buffers() if name not in kept]:
            raise RequestError(
                f"{self}: it holds {lost[0].removeprefix('trunk.')}, which its state leaves out, so a bundle could not bring it "
                "back; take a network of convolutions"
            )
        shapes = self.shapes_of((2, self.in_channels, PROBE, PROBE))
        if [shape[1] for shape in shapes] != widths or any(len(shape) != 4 for shape in shapes):
            raise RequestError(f"{self}: its maps are not laid out as [B, c, h, w]; take a network of convolutions")

    @torch.no_grad()
    def shapes_of(self, images: Sequence[int]) -> list[torch.Size]:
        """Returns the shapes of its maps of images [B, in_channels, H, W], without computing. Raises RequestError for sizes that
        it does not take."""
        state = {name: tensor.to("meta") for name, tensor in self.state_dict().items()}
        quiet = contextlib.redirect_stderr(io.StringIO())  # on which a traced graph prints its code before it raises
        try:
            with quiet:
                maps = functional_call(self.trunk, _below(state, "trunk."), (torch.zeros(*images, device="meta"),))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise RequestError(
                f"{self} does not take images of {images[2]} x {images[3]}: {str(error).splitlines()[0]}"
            ) from error
        return [one.shape for one in (maps.values() if isinstance(maps, Mapping) else maps)]

    def __str__(self) -> str:
        return f"model={self.library}:{self.network}"

    @property
    def architecture(self) -> dict[str, Any]:
        """Returns the constructor's arguments except `device`, as plain JSON values."""
        channels = {"in_channels": self.in_channels} if self.in_channels != 3 else {}
        return {"family": self.library, "network": self.network, **channels}

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, C] for [B, in_channels, H, W], the last map averaged over its positions."""
        return self.forward_stages(x)[self.stage_names[-1]].mean((2, 3))

    def forward_stages(self, x: Tensor) -> dict[str, Tensor]:
        """Returns {"stage1": [B, c, h, w], …} for [B, in_channels, H, W], from fine to coarse."""
        maps = self.trunk(x)
        return dict(zip(self.stage_names, maps.values() if isinstance(maps, Mapping) else maps, strict=True))

    def own_names(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Returns tensors of a state dict in the library's names under ours; others, like a classifier's, are left out.

        Raises RequestError for those that lack. timm's features take apart containers, so dots of its names are underscores here.
        """
        known = {_plain(key): value for key, value in state.items()}
        found = {key: known.get(_plain(key.removeprefix("trunk.").removeprefix("model."))) for key in self.state_dict()}
        counters = {key for key in found if key.endswith("num_batches_tracked")}
        if lacking := [key for key, value in found.items() if value is None and key not in counters]:
            raise RequestError(
                f"{self}: the weights lack {len(lacking)} of its {len(found)} tensors, the first of them "
                f"{lacking[0].removeprefix('trunk.')}; give a state dict of that network"
            )
        return {key: torch.tensor(0) if value is None else value for key, value in found.items()}


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _plain(name: str) -> str:
    return name.removeprefix("module.").replace("_", ".")


def _listed(library: str, network: str, names: list[str]) -> None:
    if network not in names:
        near = difflib.get_close_matches(str(network), names, n=1, cutoff=0.0)
        raise RequestError(
            f"model={library}:{network}: {library} lists no such network"
            + (f"; the nearest of its {len(names)} names is {near[0]!r}" if near else "")
        )


def _timm(network: str, in_channels: int) -> tuple[nn.Module, list[int]]:
    """Returns timm's features of a network, and the channels of each."""
    try:
        import timm
    except ImportError as error:
        raise RequestError(f"model=timm:{network}: {error}; pip install timm") from error
    _listed("timm", network, timm.list_models())
    try:
        made = timm.create_model(network, pretrained=False, features_only=True, in_chans=in_channels)
    except (RuntimeError, NotImplementedError, TypeError, AttributeError, AssertionError) as error:
        raise RequestError(f"model=timm:{network}: timm gives no feature maps of it ({error})") from error
    told: Any = made.feature_info
    if len(set(told.reduction())) < 2:
        raise RequestError(f"model=timm:{network}: its maps are all of one size; take a network of convolutions")
    return made, list(told.channels())


def _torchvision(network: str, in_channels: int) -> tuple[nn.Module, list[int]]:
    """Returns torchvision's network up to its last map as a graph that answers with the last map of each size."""
    from torchvision import models
    from torchvision.models.feature_extraction import DualGraphModule

    _listed("torchvision", network, models.list_models(module=models))
    made = _built(network)
    if in_channels != 3:
        _take_channels(made, in_channels)
    with _TRACING:
        known = _TRACED.get((network, in_channels))
        on_meta = next(made.parameters()).is_meta
        if known is None or (not on_meta and any(value.is_meta for value in known[2].values())):
            known = _TRACED[network, in_channels] = _traced(network, made, in_channels)
        graphs, widths, constants = known
    for name, value in constants.items():
        setattr(made, name, value)
    extractor = DualGraphModule(made, *copy.deepcopy(graphs), class_name=type(made).__name__)
    return extractor.train(made.training), list(widths)


def _traced(network: str, made: nn.Module, in_channels: int) -> tuple[tuple[Any, Any], list[int], dict[str, Tensor]]:
    """Returns the graphs of a network in training and in evaluation, the channels of its stages, and the numbers by name that the
    graphs look up in the module. Raises RequestError."""
    from torchvision.models.feature_extraction import create_feature_extractor

    stages = _stages(made, in_channels)
    if len(stages) < 2:
        raise RequestError(
            f"model=torchvision:{network}: it makes no maps of several sizes; take a network of convolutions"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that these are two graphs, as they are
        extractor = create_feature_extractor(made, {name: name for name in stages})
    constants = {name: value for name, value in vars(made).items() if name.startswith("_tensor_constant")}
    return (extractor.train_graph, extractor.eval_graph), list(stages.values()), constants


def _built(network: str) -> nn.Module:
    from torchvision import models

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of how two of them will be initialized one day
        device = torch.get_default_device()
        try:
            return models.get_model(network, weights=None)
        except NotImplementedError:  # its RegNets compute widths with tensors, which meta holds no values of
            with torch.device("cpu"):
                return models.get_model(network, weights=None).to(device)


def _take_channels(model: nn.Module, channels: int) -> None:
    """Gives a network another first convolution, in place."""
    name, conv = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3)
    above, _, last = name.rpartition(".")
    shape: dict[str, Any] = {"stride": conv.stride, "padding": conv.padding, "bias": conv.bias is not None}
    new = nn.Conv2d(channels, conv.out_channels, conv.kernel_size, **shape)  # type: ignore[arg-type]
    setattr(model.get_submodule(above), last, new)


@torch.no_grad()
def _stages(model: nn.Module, channels: int) -> dict[str, int]:
    """Returns the names of the modules whose output is the last of its size, from fine to coarse, and their channels."""
    twin, seen = copy.deepcopy(model).to("meta").eval(), list[tuple[str, torch.Size]]()
    for name, module in twin.named_modules():
        above = twin.get_submodule(name.rpartition(".")[0])
        inside = name.count(".") == 0 or (name.count(".") == 1 and isinstance(above, nn.Sequential | nn.ModuleList))
        pools = isinstance(module, nn.AdaptiveAvgPool2d | nn.AvgPool2d)
        if name and inside and not pools and not name.startswith("classifier"):
            module.register_forward_hook(lambda _, __, out, name=name: seen.append((name, _shape(out))))
    twin(torch.zeros(1, channels, PROBE, PROBE, device="meta"))
    last: dict[int, tuple[str, int]] = {}
    for name, shape in seen:
        if len(shape) == 4 and shape[2] == shape[3] > 1:
            last.pop(shape[2], None)
            last[shape[2]] = name, shape[1]
    return dict(last.values())


def _shape(output: Any) -> torch.Size:
    return output.shape if isinstance(output, Tensor) else torch.Size()
