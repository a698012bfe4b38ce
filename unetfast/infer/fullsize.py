"""Logits brought to the size of the image they belong to, a few rows at a time.

Whole logits of 150 classes at 2100 x 2100 pixels take 2.6 GB; a stripe takes `STRIPE_BYTES`. Only what is read off a stripe
(the class with the largest logit, the probabilities) is kept.

Axis legend: K classes, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

STRIPE_BYTES = 64 * 2**20


def iter_stripes(
    logits_KHW: Tensor, size_hw: tuple[int, int], *, max_bytes: int = STRIPE_BYTES
) -> Iterator[tuple[int, Tensor]]:
    """Resize logits bilinearly (half-pixel centres, `align_corners=False`) and yield them in stripes of whole rows.

    The values are those of `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)` but for rounding, and do
    not depend on where the stripes are cut.

    Args:
        logits_KHW: any float dtype; computed in float32.
        size_hw: height and width to reach, pixels.
        max_bytes: size of a stripe to stay below; at least one row is yielded.

    Yields:
        (first row, float32 logits (K, rows, width)), from the top down; together `size_hw[0]` rows. Does not wait for the GPU.
    """
    num_classes, in_height, in_width = logits_KHW.shape
    height, width = size_hw
    rows = max(1, max_bytes // (4 * num_classes * max(width, in_width)))
    row_H = torch.arange(height, device=logits_KHW.device, dtype=torch.float64)
    place_H = ((row_H + 0.5) * (in_height / height) - 0.5).clamp(0, in_height - 1)
    upper_H = place_H.floor().to(torch.int64)
    lower_H = (upper_H + 1).clamp(max=in_height - 1)
    share_H = (place_H - upper_H).to(torch.float32)
    for top in range(0, height, rows):
        if height == in_height:
            stripe_KHW = logits_KHW[:, top : top + rows].to(torch.float32)
        else:
            part = slice(top, top + rows)
            upper_KHW = logits_KHW.index_select(1, upper_H[part]).to(torch.float32)
            lower_KHW = logits_KHW.index_select(1, lower_H[part]).to(torch.float32)
            stripe_KHW = torch.lerp(upper_KHW, lower_KHW, share_H[part][:, None])
        if width != in_width:
            stripe_1KHW = stripe_KHW[None].contiguous()
            stripe_KHW = F.interpolate(stripe_1KHW, size=(stripe_KHW.shape[1], width), mode="bilinear", align_corners=False)[0]
        yield top, stripe_KHW
