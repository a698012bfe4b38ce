"""The convolutional part of torchvision's ResNets (He et al. 2016) as an encoder.

torchvision is imported when an encoder is built, and nowhere else. Nothing is ever downloaded: weights come from a file that
the user gives.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

RESNETS = ("resnet18", "resnet34", "resnet50")
STAGES = 5  # of a ResNet, each half as large as the one before: conv1, then layer1 to layer4
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # what torchvision's weights were trained with, of pixels in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)


class ResNetEncoder(nn.Module):
    """The stages of a ResNet; parameters have torchvision's names.

    Args:
        name: a name of `RESNETS`.
        depth: stages to take, 1 to 5: the last one's result is 1 / 2**depth as large as the image.
        dropout: probability of channel dropout of the last stage's result.

    Raises:
        ValueError: an unknown name, a depth out of range, or torchvision is not installed.
    """

    def __init__(self, name: str, *, depth: int, dropout: float = 0.0) -> None:
        super().__init__()
        if not 1 <= depth <= STAGES:
            raise ValueError(f"depth = {depth}: {name} has {STAGES} down-samplings, so depth must be from 1 to {STAGES}")
        net = _build_resnet(name)
        self.depth = depth
        self.conv1: nn.Module = net.conv1
        self.bn1: nn.Module = net.bn1
        self.relu: nn.Module = net.relu
        channels = [net.conv1.out_channels]
        for stage in range(1, depth):
            if stage == 1:
                self.maxpool: nn.Module = net.maxpool
            layer = cast(nn.Sequential, getattr(net, f"layer{stage}"))
            self.add_module(f"layer{stage}", layer)
            last: Any = layer[-1]
            channels.append((last.conv3 if hasattr(last, "conv3") else last.conv2).out_channels)
        self.dropout = nn.Dropout2d(dropout) if dropout > 0 else nn.Identity()
        self.channels = channels  # of each stage, finest first

    def forward(self, hidden_NCHW: Tensor) -> list[Tensor]:
        """Compute every stage's result from normalised RGB pixels; finest (half the size) first."""
        hidden_NCHW = self.relu(self.bn1(self.conv1(hidden_NCHW)))
        results = [hidden_NCHW]
        for stage in range(1, self.depth):
            if stage == 1:
                hidden_NCHW = self.maxpool(hidden_NCHW)
            hidden_NCHW = getattr(self, f"layer{stage}")(hidden_NCHW)
            results.append(hidden_NCHW)
        results[-1] = self.dropout(results[-1])
        return results


def _build_resnet(name: str) -> Any:
    if name not in RESNETS:
        raise ValueError(f"encoder = {name!r}: must be one of plain, {', '.join(RESNETS)}")
    try:
        resnet = importlib.import_module("torchvision.models.resnet")
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"encoder = {name!r} needs the torchvision of this torch: pip install 'unetfast[backbones]' ({reason})"
        ) from None
    build: Callable[..., nn.Module] = getattr(resnet, name)
    return build(weights=None)
