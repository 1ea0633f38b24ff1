"""Makes ResNet-50 and ResNeXt-101 32x8d, which the papers compare with, of torchvision's networks.

Surprising:
- The names of the tensors are torchvision's, `layer3.0.conv2.weight`; timm, SwAV's program and VISSL use the same ones, so
  nothing is renamed on the way in or out.
- The stem halves the image twice (a 7 x 7 convolution of stride 2 and a pooling): `stem_stride` has no meaning here.
- Importing torchvision's models costs 1.4 s, so this file is imported when a ResNet is asked for, not before.
- SwAV's ResNet-50w2 and its like multiply every width by `widen`. torchvision has no such network: its `wide_resnet` widens
  the 3 x 3 convolutions alone, which is `width_per_group` here. An architecture says `widen` only where it is not 1.
- Old files lack the counters of batch norm (`num_batches_tracked`), which nothing reads while `momentum` is a number.

Sources: He et al. 2015 (1512.03385), Xie et al. 2016 (1611.05431), torchvision.models.resnet.
Legend: B images, C channels of the last stage, c channels, h w height and width of a feature map, H W of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet

STEM = 64  # channels that the first convolution makes
STAGES = ("layer1", "layer2", "layer3", "layer4")


class ResNet(resnet.ResNet):
    """Is a ResNet of bottleneck blocks without the classifier, [B, 3, H, W] -> [B, 2048 * widen].

    Freshly initialized as torchvision does it. Raises ValueError for numbers that make no network.

    depths           blocks of the four stages
    groups           of the 3 x 3 convolutions
    width_per_group  channels of a group in stage 1; they double from stage to stage
    widen            times the usual number of channels, everywhere
    in_channels      of an image
    """

    def __init__(
        self,
        depths: Sequence[int],
        groups: int = 1,
        width_per_group: int = 64,
        widen: int = 1,
        in_channels: int = 3,
        device: torch.device | str | None = None,
    ):
        if len(depths) != len(STAGES) or min(*depths, groups, width_per_group, widen) < 1:
            raise ValueError(
                f"depths={list(depths)}, groups={groups}, width_per_group={width_per_group}, widen={widen}: wanted four "
                "depths, all at least 1"
            )
        self.widen = widen  # torchvision's constructor calls `_make_layer`, which asks for it
        with torch.device(device) if device is not None else torch.device(torch.get_default_device()):
            super().__init__(resnet.Bottleneck, list(depths), 1, groups=groups, width_per_group=width_per_group)
            if widen > 1 or in_channels != 3:
                self.conv1 = nn.Conv2d(in_channels, STEM * widen, 7, 2, 3, bias=False)
                nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
            if widen > 1:
                self.bn1 = nn.BatchNorm2d(STEM * widen)
        self.in_channels = in_channels
        self.depths, self.width_per_group, self.feature_dim = tuple(depths), width_per_group, 2048 * widen
        del self.fc

    def _make_layer(self, block: Any, planes: int, *arguments: Any, **named: Any) -> nn.Sequential:
        """Returns a stage of `widen` times the channels; the first of them takes the stem's."""
        if planes == 64:
            self.inplanes = 64 * self.widen
        return super()._make_layer(block, planes * self.widen, *arguments, **named)

    @property
    def architecture(self) -> dict[str, Any]:
        """Returns the constructor's arguments except `device`, as plain JSON values, and whose they are."""
        return {
            "family": "resnet",
            "depths": list(self.depths),
            "groups": self.groups,
            "width_per_group": self.width_per_group,
            **({"widen": self.widen} if self.widen != 1 else {}),
            **({"in_channels": self.in_channels} if self.in_channels != 3 else {}),
        }

    def blocks(self) -> dict[str, nn.Module]:
        """Returns {"layer1.block0": its module, ...}, in the order of depth."""
        return {f"{s}.block{i}": block for s in STAGES for i, block in enumerate(getattr(self, s))}

    def init_weights(self) -> None:
        """Fills every parameter and buffer, as after `to_empty`: He's normal by the outputs, batch norm 1 and 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, C] for [B, 3, H, W], the last stage averaged over its positions."""
        return self.avgpool(self.forward_stages(x)[STAGES[-1]]).flatten(1)

    def forward_stages(self, x: Tensor) -> dict[str, Tensor]:
        """Returns {"stem", "layer1", …: [B, c, h, w]} for [B, 3, H, W], from fine to coarse."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = {"stem": x}
        for name in STAGES:
            x = getattr(self, name)(x)
            maps[name] = x
        return maps
