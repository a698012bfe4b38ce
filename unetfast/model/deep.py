"""Deep supervision: the loss of a network that scores its lower levels too (Lee et al. 2015; Isensee et al. 2021, nnU-Net).

Axis legend: N batch, H height, W width, K classes.

An auxiliary logit at stride s stands for a cell of s x s pixels and is compared with the class of the cell's middle pixel: no
class is invented, as any averaging of ids would, and K x H x W logits are never enlarged, which for 150 classes would cost more
memory than the rest of the net. Where the image ends inside a cell, the nearest pixel of the image stands for the middle.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def full_size(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Pick the logits of the image's own size from what a network gave."""
    return outputs if isinstance(outputs, Tensor) else outputs[0]


def supervised_loss(loss: Loss, outputs: Tensor | tuple[Tensor, ...], mask_NHW: Tensor, weight: float) -> Tensor:
    """Compute the loss of logits, or of logits and auxiliary logits together.

    The sum of the losses, each times 1, `weight`, `weight / 2`, `weight / 4` and so on, divided by the sum of these factors:
    the figure, and with it clipping and weight decay, keeps the scale that it has without auxiliary heads.

    Args:
        loss: takes logits (N, K, h, w) and class ids (N, h, w) to a scalar.
        outputs: of a network: a tensor, or full-size logits followed by auxiliary ones, each level half as large as the one
            before or of the same size.
        mask_NHW: class ids or the ignored one, of any integer dtype.
        weight: of the first auxiliary logits; not used where there are none.

    Returns:
        A scalar in the dtype of `loss`'s result. Does not wait for the GPU.

    Raises:
        ValueError: auxiliary logits whose size does not come from halving (rounded up) the mask's.
    """
    if isinstance(outputs, Tensor):
        return loss(outputs, mask_NHW)
    total = loss(outputs[0], mask_NHW)
    factor_sum, factor = 1.0, weight
    for logits_NKHW in outputs[1:]:
        height, width = logits_NKHW.shape[-2:]
        total = total + factor * loss(logits_NKHW, shrink_mask(mask_NHW, height, width))
        factor_sum += factor
        factor /= 2
    return total / factor_sum


def shrink_mask(mask_NHW: Tensor, height: int, width: int) -> Tensor:
    """Take the class of the middle pixel of each cell of a mask.

    Args:
        mask_NHW: class ids, of any integer dtype.
        height: cells from top to bottom: the mask's height divided by a power of 2, rounded up.
        width: cells from left to right, likewise.

    Returns:
        (N, height, width), in the mask's dtype; uint16 becomes int32, which can be indexed on every device.

    Raises:
        ValueError: no power of 2 gives these sizes.
    """
    if tuple(mask_NHW.shape[-2:]) == (height, width):
        return mask_NHW
    if mask_NHW.dtype == torch.uint16:
        mask_NHW = mask_NHW.to(torch.int32)
    rows, columns = (
        _middles(full, cells, mask_NHW.device) for full, cells in zip(mask_NHW.shape[-2:], (height, width), strict=True)
    )
    return mask_NHW.index_select(1, rows).index_select(2, columns)


def _middles(full: int, cells: int, device: torch.device) -> Tensor:
    """Index of the middle pixel of each cell, within the image."""
    side = 1
    while -(-full // side) > cells:
        side *= 2
    if -(-full // side) != cells:
        raise ValueError(f"{cells} auxiliary logits for {full} pixels: no power of 2 divides the one into the other")
    return (torch.arange(cells, device=device) * side + side // 2).clamp(max=full - 1)
