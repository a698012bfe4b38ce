"""Networks and training steps of other projects, beside ours: what their own loops do with a batch.

`r1` and `milesial` are our re-creations of what these projects state, in their own form: float32, eager. `smp` is the real
package (segmentation_models_pytorch), which trains as its examples do.

Axis legend: N batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = Callable[[], Tensor]

LEARNING_RATE = 1e-4  # R1's


class DoubleConv(nn.Module):
    """Twice convolution, batch norm and ReLU, as R1 and milesial/Pytorch-UNet have it."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )

    def forward(self, hidden_NCHW: Tensor) -> Tensor:
        return self.layers(hidden_NCHW)  # type: ignore[no-any-return]


class ClassicUNet(nn.Module):
    """The U-Net of R1 and of milesial/Pytorch-UNet: four levels, transposed convolutions, concatenated skips.

    Args:
        base_channels: of the topmost level.
        num_outputs: channels of the logits: 1 in R1 (one sigmoid), 2 in milesial's (a softmax).
    """

    def __init__(self, base_channels: int, num_outputs: int) -> None:
        super().__init__()
        widths = [base_channels * 2**level for level in range(5)]
        self.encoder = nn.ModuleList(DoubleConv(below, above) for below, above in zip([3, *widths], widths, strict=False))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(2 * width, width, 2, stride=2) for width in reversed(widths[:4]))
        self.decoder = nn.ModuleList(DoubleConv(2 * width, width) for width in reversed(widths[:4]))
        self.head = nn.Conv2d(base_channels, num_outputs, 1)

    def forward(self, hidden_NCHW: Tensor) -> Tensor:
        skips = []
        for level, block in enumerate(self.encoder):
            hidden_NCHW = block(F.max_pool2d(hidden_NCHW, 2) if level else hidden_NCHW)
            skips.append(hidden_NCHW)
        skips.pop()
        for up, block in zip(self.ups, self.decoder, strict=True):
            hidden_NCHW = block(torch.cat([skips.pop(), up(hidden_NCHW)], dim=1))
        return self.head(hidden_NCHW)  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class PeerStep:
    """A peer that is ready to train.

    Args:
        net: its network.
        step: one optimizer step on the resident batch; returns the loss, a scalar.
        score: logits of the resident batch in evaluation mode.
        facts: what the record should say of it.
    """

    net: nn.Module
    step: Step
    score: Step
    facts: dict[str, Any]


def build_r1(base_channels: int, image_NCHW: Tensor, mask_NHW: Tensor) -> PeerStep:
    """R1's loop on a CPU: float32, NCHW, one sigmoid, BCE with logits, Adam.

    Args:
        base_channels: of the topmost level; R1 has 64.
        image_NCHW: uint8; divided by 255 beforehand, as its transforms do.
        mask_NHW: uint8, classes 0 and 1.
    """
    net = ClassicUNet(base_channels, 1).to(image_NCHW.device).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    pixels_NCHW, target_NCHW = _divide(image_NCHW), mask_NHW[:, None].float()

    def step() -> Tensor:
        loss = F.binary_cross_entropy_with_logits(net(pixels_NCHW), target_NCHW)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss

    facts = {"what": "R1, our re-creation: float32, NCHW, BCE, Adam", "parameters": _count(net)}
    return PeerStep(net, step, lambda: net(pixels_NCHW), facts)


def build_milesial(base_channels: int, image_NCHW: Tensor, mask_NHW: Tensor) -> PeerStep:
    """The step of milesial/Pytorch-UNet as shipped: channels_last, float32 unless --amp is given, cross-entropy plus Dice,
    RMSprop with momentum 0.999, gradients clipped at norm 1; arguments as of `build_r1`.
    """
    net = ClassicUNet(base_channels, 2).to(image_NCHW.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.RMSprop(net.parameters(), lr=1e-5, weight_decay=1e-8, momentum=0.999, foreach=True)
    pixels_NCHW = _divide(image_NCHW).contiguous(memory_format=torch.channels_last)
    target_NHW = mask_NHW.long()

    def step() -> Tensor:
        logits_NKHW = net(pixels_NCHW)
        one_hot_NKHW = F.one_hot(target_NHW, 2).permute(0, 3, 1, 2).float()
        loss = F.cross_entropy(logits_NKHW, target_NHW) + _dice_loss(F.softmax(logits_NKHW, dim=1).float(), one_hot_NKHW)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        return loss

    what = "milesial/Pytorch-UNet, our re-creation: float32, channels_last, cross-entropy + Dice, RMSprop, clipping"
    return PeerStep(net, step, lambda: net(pixels_NCHW), {"what": what, "parameters": _count(net)})


def build_smp(_base_channels: int, image_NCHW: Tensor, mask_NHW: Tensor) -> PeerStep:
    """smp.Unet with the encoder that its README takes (ResNet-34, untrained), its DiceLoss, Adam; another, smaller network.

    Args:
        _base_channels: not looked at; its widths are its own.
        image_NCHW: as of `build_r1`.
        mask_NHW: likewise.
    """
    import segmentation_models_pytorch as smp

    net = smp.Unet("resnet34", encoder_weights=None, in_channels=3, classes=1).to(image_NCHW.device).train()
    dice = smp.losses.DiceLoss(smp.losses.BINARY_MODE, from_logits=True)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-4)
    pixels_NCHW, target_NCHW = _pad(_divide(image_NCHW)), _pad(mask_NHW[:, None].float())

    def step() -> Tensor:
        loss: Tensor = dice(net(pixels_NCHW), target_NCHW)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss

    what = f"segmentation_models_pytorch {smp.__version__}: Unet on ResNet-34, float32, Dice, Adam"
    return PeerStep(net, step, lambda: net(pixels_NCHW), {"what": what, "parameters": _count(net)})


PEERS: dict[str, Callable[[int, Tensor, Tensor], PeerStep]] = {"r1": build_r1, "milesial": build_milesial, "smp": build_smp}


def _divide(image_NCHW: Tensor) -> Tensor:
    return (image_NCHW.float() / 255).contiguous()


def _pad(values_NCHW: Tensor) -> Tensor:
    """Fill up to a multiple of 32, which smp wants."""
    height, width = values_NCHW.shape[-2:]
    return F.pad(values_NCHW, (0, -width % 32, 0, -height % 32))


def _dice_loss(probs_NKHW: Tensor, one_hot_NKHW: Tensor) -> Tensor:
    """1 - Dice over all pixels of the batch, averaged over classes."""
    overlap_K = 2 * (probs_NKHW * one_hot_NKHW).sum(dim=(0, 2, 3))
    total_K = probs_NKHW.sum(dim=(0, 2, 3)) + one_hot_NKHW.sum(dim=(0, 2, 3))
    return 1 - ((overlap_K + 1e-6) / (total_K + 1e-6)).mean()


def _count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())
