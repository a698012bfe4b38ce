"""The graph that is exported: uint8 images of any size in, class ids of the same size out.

It is `predict` as pure tensor code: the antialiased resize to the net's size, the net (which normalises), the bilinear way
back, the class with the largest logit. The resize gives the very bytes of `unetfast.loader.plainresize`, that is of
torch's uint8 kernel, whose weights are integers: they are computed here from the image's size, and applied as two matrix
products over bytes, exact in float32 (and in TF32). So what differs between two runtimes is the rounding of the net alone.

Axis legend: N batch, C channels, K classes, H height, W width of the image; I and O are one axis before and after a resize.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_PRECISION_BITS = 22  # of a resize weight, in torch's kernel
BYTE = 256.0


class MaskNet(nn.Module):
    """A segmentation net with all that stands before and behind it.

    Args:
        net: uint8 images (N, 3, h, w) to logits (N, K, h, w), in evaluation mode.
        size_hw: height and width at which the net works, pixels.
        num_classes: K; past 256 the class ids are uint16.
    """

    def __init__(self, net: nn.Module, *, size_hw: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        self.net = net
        self.size_hw = size_hw
        self.dtype = torch.uint8 if num_classes <= 256 else torch.uint16

    def forward(self, image: Tensor) -> Tensor:
        """Predict masks.

        Args:
            image: RGB, uint8, (N, 3, H, W), any N, H and W from 1. The argument's name is that of the exported graph's input.

        Returns:
            Class ids, uint8 or uint16, (N, H, W).
        """
        height, width = image.shape[-2:]
        logits_NKHW = self.net(resize_bytes(image, self.size_hw)).to(torch.float32)
        pred_NHW = resize_logits(logits_NKHW, height, width).argmax(dim=1)
        return pred_NHW.to(self.dtype)


def resize_bytes(image_NCHW: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Resize with an antialiasing triangle filter, to the byte as torch's uint8 kernel does.

    Args:
        image_NCHW: uint8.
        size_hw: height and width to reach, pixels.

    Returns:
        uint8, (N, C, *size_hw). As in the kernel, the half-way image (resized along its rows) is rounded to bytes too.
    """
    height, width = image_NCHW.shape[-2:]
    image_NCHW = _apply(image_NCHW.to(torch.float32), *triangle_weights(width, size_hw[1]))
    image_NCWH = _apply(image_NCHW.transpose(-1, -2), *triangle_weights(height, size_hw[0]))
    return image_NCWH.transpose(-1, -2).to(torch.uint8)


def triangle_weights(num_in: int, num_out: int) -> tuple[Tensor, Tensor]:
    """Compute the weights of an antialiased linear resize along one axis, as integers.

    After `_compute_indices_min_size_weights_aa` and `_compute_index_ranges_int16_weights` of torch's
    aten/src/ATen/native/cpu/UpSampleKernel.cpp: a triangle over two output pixels (two input pixels where the image grows),
    cut at the border, normalised, and scaled by the largest power of two for which no weight exceeds 15 bits.

    Args:
        num_in: pixels before; may be symbolic.
        num_out: pixels after.

    Returns:
        Weights, whole numbers in float64, (O, I); and that power of two, float64, no axes.
    """
    count = torch.scalar_tensor(num_in, dtype=torch.float64)
    step = 1 / (num_out / count)  # in this order: its rounding is that of the kernel, which is given the inverse
    support = step.clamp(min=1.0)
    place_I = torch.arange(num_in, dtype=torch.float64)
    center_O = (torch.arange(num_out, dtype=torch.float64) + 0.5) * step
    first_O = (center_O - support + 0.5).trunc().clamp(min=0.0)
    end_O = torch.minimum((center_O + support + 0.5).trunc(), count)
    weight_OI = (1 - ((place_I - center_O[:, None] + 0.5) * (1 / support)).abs()).clamp(min=0.0)
    reached_OI = (place_I >= first_O[:, None]) & (place_I < end_O[:, None])
    weight_OI = torch.where(reached_OI, weight_OI, torch.zeros_like(weight_OI))
    weight_OI = weight_OI / weight_OI.sum(dim=1, keepdim=True)

    powers = 2.0 ** torch.arange(MAX_PRECISION_BITS + 1, dtype=torch.float64)
    num_bits = ((0.5 + weight_OI.max() * powers[1:]).trunc() < 2**15).sum()
    power = powers.index_select(0, num_bits[None])[0]
    return (weight_OI * power + 0.5).trunc(), power


def _apply(image_NCHI: Tensor, weight_OI: Tensor, power: Tensor) -> Tensor:
    """Resize the last axis of bytes held in float32; rounds half up.

    The weights are split into upper and lower byte, so that each product sums whole numbers below 2**24, which float32 holds
    exactly: always up to a reduction of 128, and past it for all but white images under a worst case of weights.
    """
    upper_OI = (weight_OI / BYTE).floor()
    lower_OI = weight_OI - upper_OI * BYTE
    upper_NCHO = torch.matmul(image_NCHI, upper_OI.to(torch.float32).T)
    lower_NCHO = torch.matmul(image_NCHI, lower_OI.to(torch.float32).T)
    sum_NCHO = upper_NCHO.to(torch.float64) * BYTE + lower_NCHO.to(torch.float64)
    return ((sum_NCHO + power / 2) / power).floor().clamp(max=255.0).to(torch.float32)


def resize_logits(logits_NKHW: Tensor, height: int, width: int) -> Tensor:
    """Resize logits bilinearly, in the steps of `unetfast.infer.fullsize.iter_stripes`: first the rows, then along them.

    Args:
        logits_NKHW: float32.
        height: to reach, pixels; may be symbolic.
        width: to reach, pixels; may be symbolic.

    Returns:
        float32, (N, K, height, width).
    """
    in_height = logits_NKHW.shape[2]
    row_H = torch.arange(height, dtype=torch.float64)
    per_row = in_height / torch.scalar_tensor(height, dtype=torch.float64)
    place_H = ((row_H + 0.5) * per_row - 0.5).clamp(0.0, float(in_height - 1))
    upper_H = place_H.floor().to(torch.int64)
    lower_H = (upper_H + 1).clamp(max=in_height - 1)
    share_H = (place_H - upper_H).to(torch.float32)
    upper_NKHW, lower_NKHW = logits_NKHW.index_select(2, upper_H), logits_NKHW.index_select(2, lower_H)
    tall_NKHW = torch.lerp(upper_NKHW, lower_NKHW, share_H[:, None])
    return F.interpolate(tall_NKHW, size=(height, width), mode="bilinear", align_corners=False)
