"""Losses over logits and class ids: cross-entropy, binary cross-entropy, soft Dice, and their weighted sums.

Axis legend: N batch, H height, W width, K classes.

All are computed in float32, whatever the format of the logits. None builds a one-hot copy of the mask, which for 150 classes
would be as large as the logits: sums over the true class are gathered instead. Ignored pixels have no part in any value or
gradient, and a batch without a labelled pixel has loss 0 and gradient 0. Nothing here waits for the GPU.

A further loss (focal, Tversky, Lovasz) is one more function over `Labels`, entered in `LOSSES` and as a weight of
`SegmentationLoss`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Labels:
    """The true classes of a batch, in the forms that losses need.

    Args:
        id_NHW: class ids or `ignore_index`, int64, (N, H, W).
        safe_NHW: `id_NHW` with 0 at ignored pixels, so that it can be used as an index.
        valid_NHW: which pixels are not ignored, bool.
        weight_NHW: weight of the true class, 0 at ignored pixels; float32.
        class_weights_K: weight of each class, float32, (K,).
        ignore_index: what marks an ignored pixel.
    """

    id_NHW: Tensor
    safe_NHW: Tensor
    valid_NHW: Tensor
    weight_NHW: Tensor
    class_weights_K: Tensor
    ignore_index: int


def cross_entropy(logits_NKHW: Tensor, labels: Labels) -> Tensor:
    """Cross-entropy of the softmax, averaged over labelled pixels with the weights of their true classes.

    The value of `torch.nn.functional.cross_entropy(reduction="mean")`, which divides by the sum of the weights; 0 rather than
    NaN where that sum is 0. Summed here, since torch's own sum in two dimensions is not deterministic on a GPU.
    """
    loss_NHW = F.cross_entropy(
        logits_NKHW,
        labels.id_NHW,
        weight=labels.class_weights_K,
        ignore_index=labels.ignore_index,
        reduction="none",
    )
    return _divide_or_zero(loss_NHW.sum(), labels.weight_NHW.sum())


def binary_cross_entropy(logits_NKHW: Tensor, labels: Labels) -> Tensor:
    """Binary cross-entropy of the sigmoid of each class against one-hot labels, averaged over classes and labelled pixels.

    The mean over pixels has the weights of their true classes, as in `cross_entropy`. With z the logits and t the true class,
    the sum over classes is sum_k softplus(z_k) - z_t, so no one-hot mask is needed.
    """
    num_classes = logits_NKHW.shape[1]
    true_NHW = _gather_true(logits_NKHW, labels)
    loss_NHW = (F.softplus(logits_NKHW).sum(dim=1) - true_NHW) / num_classes
    return _divide_or_zero((loss_NHW * labels.weight_NHW).sum(), labels.weight_NHW.sum())


def soft_dice(logits_NKHW: Tensor, labels: Labels) -> Tensor:
    """One minus the soft Dice of the softmax, averaged over the classes that are present in the batch's labels.

    Per class k, over all labelled pixels of the whole batch: 1 - 2 sum(p_k y_k) / (sum(p_k) + sum(y_k)), with p the
    probabilities and y the one-hot labels (plain sums in the denominator as in Drozdzal et al. 2016, The Importance of Skip
    Connections; Milletari et al. 2016 square them). A class without a labelled pixel in the batch is left out; what is
    predicted of it is missing from the true classes and so is punished there. Hence the denominator is at least 1 and needs
    no smoothing. Class weights have no part: each present class counts once.
    """
    num_classes = logits_NKHW.shape[1]
    probs_NKHW = logits_NKHW.softmax(dim=1)
    valid_NHW = labels.valid_NHW.to(probs_NKHW.dtype)
    true_NHW = _gather_true(probs_NKHW, labels) * valid_NHW
    overlap_K = _sum_by_class(true_NHW, labels, num_classes)
    num_true_K = _sum_by_class(valid_NHW, labels, num_classes)
    num_pred_K = (probs_NKHW * valid_NHW[:, None]).sum(dim=(0, 2, 3))
    present_K = (num_true_K > 0).to(probs_NKHW.dtype)
    dice_K = _divide_or_zero(2 * overlap_K, num_pred_K + num_true_K)
    return _divide_or_zero(((1 - dice_K) * present_K).sum(), present_K.sum())


LOSSES: dict[str, Callable[[Tensor, Labels], Tensor]] = {
    "cross_entropy": cross_entropy,
    "bce": binary_cross_entropy,
    "dice": soft_dice,
}
PIXEL_WEIGHTED = ("cross_entropy", "bce")  # losses that class weights act on


class SegmentationLoss(nn.Module):
    """A weighted sum of `LOSSES`, ignoring pixels of `ignore_index`.

    Args:
        num_classes: K.
        ignore_index: outside [0, num_classes).
        cross_entropy: weight of the cross-entropy.
        bce: weight of the binary cross-entropy, one-hot per class.
        dice: weight of the soft Dice loss.
        class_weights: K numbers of at least 0, for cross-entropy and bce; None weighs all classes with 1. Their common
            factor does not matter, since each mean is divided by the weights it used. Pixels of a class with weight 0 have
            no part in these two.

    Raises:
        ValueError: a negative weight, nothing left to sum, class weights of the wrong number or with nothing to act on, or an
            `ignore_index` that names a real class.
    """

    class_weights_K: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        ignore_index: int,
        cross_entropy: float = 1.0,
        bce: float = 0.0,
        dice: float = 0.0,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes = {num_classes}: must be at least 1")
        if 0 <= ignore_index < num_classes:
            raise ValueError(f"ignore_index = {ignore_index} names one of the {num_classes} classes; take one outside of them")
        weights = {"cross_entropy": cross_entropy, "bce": bce, "dice": dice}
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name} = {weight}: the weight of a loss must be at least 0")
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        if not self.weights:
            raise ValueError("every loss has weight 0: give cross_entropy, bce or dice a weight")
        if class_weights is not None:
            _check_class_weights(class_weights, num_classes)
            if not set(self.weights) & set(PIXEL_WEIGHTED):
                raise ValueError(
                    "class_weights act on cross_entropy and bce, and both have weight 0; dice counts each class once"
                )
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        table = torch.ones(num_classes) if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights_K", table, persistent=False)

    def forward(self, logits_NKHW: Tensor, mask_NHW: Tensor) -> Tensor:
        """Compute the loss of a batch.

        Args:
            logits_NKHW: any float dtype, (N, num_classes, H, W).
            mask_NHW: class ids or `ignore_index`, uint8, uint16 or another integer dtype, (N, H, W), on the same device.
                Other values are an IndexError on the CPU and a device-side assertion on a GPU.

        Returns:
            Float32 scalar (float64 for float64 logits), at least 0; 0 with gradient 0 where every pixel is ignored. Does not
            wait for the GPU.

        Raises:
            ValueError: shapes that do not fit, or a mask that is not of integers.
        """
        _check_shapes(logits_NKHW, mask_NHW, self.num_classes)
        with torch.autocast(logits_NKHW.device.type, enabled=False):
            logits_NKHW = logits_NKHW.to(torch.promote_types(logits_NKHW.dtype, torch.float32))
            labels = self._labels(mask_NHW, logits_NKHW.dtype)
            parts = [weight * LOSSES[name](logits_NKHW, labels) for name, weight in self.weights.items()]
            return torch.stack(parts).sum()

    def _labels(self, mask_NHW: Tensor, dtype: torch.dtype) -> Labels:
        id_NHW = mask_NHW.to(torch.int64)
        valid_NHW = id_NHW != self.ignore_index
        safe_NHW = torch.where(valid_NHW, id_NHW, 0)
        class_weights_K = self.class_weights_K.to(dtype)
        weight_NHW = class_weights_K[safe_NHW] * valid_NHW
        return Labels(id_NHW, safe_NHW, valid_NHW, weight_NHW, class_weights_K, self.ignore_index)


def median_frequency_weights(class_pixels: Sequence[int]) -> list[float]:
    """Balance classes by median frequency: weight_k = median of frequencies / frequency of k.

    After Eigen and Fergus 2015 (Predicting Depth, Surface Normals and Semantic Labels), section 6.3.2. There a class's
    frequency is taken over the images that contain it; here over all labelled pixels of the split.

    Args:
        class_pixels: labelled pixels per class.

    Returns:
        One weight per class. A class without a pixel gets 1, the weight of the median class; it never occurs in the split that
        was counted, but may in another. The median is that of the classes with pixels.

    Raises:
        ValueError: a negative count, or no pixel at all.
    """
    if any(pixels < 0 for pixels in class_pixels):
        raise ValueError(f"class_pixels = {list(class_pixels)}: counts must be at least 0")
    present = [pixels for pixels in class_pixels if pixels > 0]
    if not present:
        raise ValueError("class_pixels: no class has a pixel, so there is no frequency to balance by")
    median = statistics.median(present)
    return [median / pixels if pixels > 0 else 1.0 for pixels in class_pixels]


def _gather_true(values_NKHW: Tensor, labels: Labels) -> Tensor:
    return values_NKHW.gather(1, labels.safe_NHW[:, None]).squeeze(1)


def _sum_by_class(values_NHW: Tensor, labels: Labels, num_classes: int) -> Tensor:
    # bins per image first: fewer atomic additions meet in one place
    sums_NK = values_NHW.new_zeros(len(values_NHW), num_classes)
    return sums_NK.scatter_add(1, labels.safe_NHW.flatten(1), values_NHW.flatten(1)).sum(dim=0)


def _divide_or_zero(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide where the denominator is above 0; else 0 (the numerators here are then 0 as well)."""
    return numerator / torch.where(denominator > 0, denominator, 1)


def _check_class_weights(class_weights: Sequence[float], num_classes: int) -> None:
    if len(class_weights) != num_classes:
        raise ValueError(f"class_weights has {len(class_weights)} numbers, there are {num_classes} classes")
    if not all(0 <= weight < math.inf for weight in class_weights) or not any(class_weights):
        raise ValueError(f"class_weights = {list(class_weights)}: must be at least 0, and one of them above")


def _check_shapes(logits_NKHW: Tensor, mask_NHW: Tensor, num_classes: int) -> None:
    if logits_NKHW.ndim != 4 or logits_NKHW.shape[1] != num_classes:
        raise ValueError(f"logits have shape {tuple(logits_NKHW.shape)}: must be (N, {num_classes}, H, W)")
    num, _, height, width = logits_NKHW.shape
    if tuple(mask_NHW.shape) != (num, height, width):
        raise ValueError(f"mask has shape {tuple(mask_NHW.shape)}: must be {(num, height, width)}, as the logits are")
    if mask_NHW.is_floating_point() or mask_NHW.is_complex() or mask_NHW.dtype == torch.bool:
        raise ValueError(f"mask is {mask_NHW.dtype}: must hold class ids as integers")
