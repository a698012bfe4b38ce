"""The weighted sum of losses that training takes.

Axis legend: N batch, H height, W width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from unetfast.model.losses.balance import check_class_weights
from unetfast.model.losses.labels import Labels, alone
from unetfast.model.losses.pixels import binary_cross_entropy, cross_entropy, focal
from unetfast.model.losses.regions import lovasz_softmax, soft_dice, tversky

PIXEL_WEIGHTED = ("cross_entropy", "bce", "focal")  # losses that class weights act on


class SegmentationLoss(nn.Module):
    """A weighted sum of losses, ignoring pixels of `ignore_index`.

    Args:
        num_classes: K.
        ignore_index: outside [0, num_classes).
        cross_entropy: weight of the cross-entropy.
        bce: weight of the binary cross-entropy, one-hot per class.
        dice: weight of the soft Dice loss.
        focal: weight of the focal loss.
        tversky: weight of the Tversky loss.
        lovasz: weight of the Lovasz-softmax.
        label_smoothing: share of the label that the cross-entropy spreads over all classes, in [0, 1).
        focal_gamma: exponent of the focal loss, at least 0; 0 makes it the cross-entropy.
        tversky_alpha: what false positives cost in the Tversky loss.
        tversky_beta: what false negatives cost there.
        class_weights: K numbers of at least 0, for cross-entropy, bce and focal; None weighs all classes with 1. Their common
            factor does not matter, since each mean is divided by the weights it used. Pixels of a class with weight 0 have
            no part in these three. Dice, Tversky and Lovasz count each class once, whatever the weights.
        total: from sums over this process's part of the batch to sums over the whole batch, with gradient, so that every
            process computes the loss of the whole (but for Lovasz); by default this process has it all.

    Raises:
        ValueError: a negative weight, nothing left to sum, class weights of the wrong number or with nothing to act on,
            smoothing with nothing to smooth, a parameter out of its range, or an `ignore_index` that names a real class.
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
        focal: float = 0.0,
        tversky: float = 0.0,
        lovasz: float = 0.0,
        label_smoothing: float = 0.0,
        focal_gamma: float = 2.0,
        tversky_alpha: float = 0.3,
        tversky_beta: float = 0.7,
        class_weights: Sequence[float] | None = None,
        total: Callable[[Tensor], Tensor] = alone,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes = {num_classes}: must be at least 1")
        if 0 <= ignore_index < num_classes:
            raise ValueError(f"ignore_index = {ignore_index} names one of the {num_classes} classes; take one outside of them")
        weights = {"cross_entropy": cross_entropy, "bce": bce, "dice": dice}
        weights |= {"focal": focal, "tversky": tversky, "lovasz": lovasz}
        self.weights = _check_weights(weights)
        _check_parameters(label_smoothing, focal_gamma, tversky_alpha, tversky_beta)
        if label_smoothing > 0 and "cross_entropy" not in self.weights:
            raise ValueError(f"label_smoothing = {label_smoothing} acts on cross_entropy alone, which has weight 0")
        if class_weights is not None:
            check_class_weights(class_weights, num_classes)
            if not set(self.weights) & set(PIXEL_WEIGHTED):
                raise ValueError(
                    "class_weights act on cross_entropy, bce and focal, and these have weight 0; "
                    "dice, tversky and lovasz count each class once"
                )
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.total = total
        self._losses = _bind_losses(label_smoothing, focal_gamma, tversky_alpha, tversky_beta)
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
            parts = [weight * self._losses[name](logits_NKHW, labels) for name, weight in self.weights.items()]
            return torch.stack(parts).sum()

    def _labels(self, mask_NHW: Tensor, dtype: torch.dtype) -> Labels:
        id_NHW = mask_NHW.to(torch.int64)
        valid_NHW = id_NHW != self.ignore_index
        safe_NHW = torch.where(valid_NHW, id_NHW, 0)
        class_weights_K = self.class_weights_K.to(dtype)
        weight_NHW = class_weights_K[safe_NHW] * valid_NHW
        return Labels(id_NHW, safe_NHW, valid_NHW, weight_NHW, class_weights_K, self.ignore_index, self.total)


def _bind_losses(
    label_smoothing: float, focal_gamma: float, tversky_alpha: float, tversky_beta: float
) -> dict[str, Callable[[Tensor, Labels], Tensor]]:
    """List every loss by the name of its weight, with its own parameters filled in."""
    return {
        "cross_entropy": partial(cross_entropy, smoothing=label_smoothing),
        "bce": binary_cross_entropy,
        "dice": soft_dice,
        "focal": partial(focal, gamma=focal_gamma),
        "tversky": partial(tversky, alpha=tversky_alpha, beta=tversky_beta),
        "lovasz": lovasz_softmax,
    }


def _check_weights(weights: dict[str, float]) -> dict[str, float]:
    """Return the weights above 0."""
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"{name} = {weight}: the weight of a loss must be at least 0")
    used = {name: weight for name, weight in weights.items() if weight > 0}
    if not used:
        *most, last = weights
        raise ValueError(f"every loss has weight 0: give {', '.join(most)} or {last} a weight")
    return used


def _check_parameters(label_smoothing: float, focal_gamma: float, tversky_alpha: float, tversky_beta: float) -> None:
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing = {label_smoothing}: must be at least 0 and below 1")
    if not 0 <= focal_gamma < math.inf:
        raise ValueError(f"focal_gamma = {focal_gamma}: must be at least 0")
    if not (0 <= tversky_alpha < math.inf and 0 <= tversky_beta < math.inf) or tversky_alpha == tversky_beta == 0:
        raise ValueError(
            f"tversky_alpha = {tversky_alpha}, tversky_beta = {tversky_beta}: both must be at least 0, and one of them above"
        )


def _check_shapes(logits_NKHW: Tensor, mask_NHW: Tensor, num_classes: int) -> None:
    if logits_NKHW.ndim != 4 or logits_NKHW.shape[1] != num_classes:
        raise ValueError(f"logits have shape {tuple(logits_NKHW.shape)}: must be (N, {num_classes}, H, W)")
    num, _, height, width = logits_NKHW.shape
    if tuple(mask_NHW.shape) != (num, height, width):
        raise ValueError(f"mask has shape {tuple(mask_NHW.shape)}: must be {(num, height, width)}, as the logits are")
    if mask_NHW.is_floating_point() or mask_NHW.is_complex() or mask_NHW.dtype == torch.bool:
        raise ValueError(f"mask is {mask_NHW.dtype}: must hold class ids as integers")
