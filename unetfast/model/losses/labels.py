"""The true classes of a batch as losses need them, and the sums that several losses share.

Axis legend: N batch, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def alone(sums: Tensor) -> Tensor:
    """Sums over the whole batch where one process holds all of it: as they are."""
    return sums


@dataclass(frozen=True, slots=True)
class Labels:
    """The true classes of a batch, in the forms that losses need.

    Args:
        id_NHW: class ids or `ignore_index`, int64, (N, H, W).
        safe_NHW: `id_NHW` with 0 at ignored pixels, so that it can be used as an index.
        valid_NHW: which pixels are not ignored, bool.
        weight_NHW: weight of the true class, 0 at ignored pixels; of the dtype of the logits.
        class_weights_K: weight of each class, of the dtype of the logits, (K,).
        ignore_index: what marks an ignored pixel.
        total: from sums over this process's part of the batch to sums over the whole batch, with gradient. A mean is a
            quotient of sums, so every loss calls it once, before it divides, with all that it has summed; also where no
            pixel is labelled, since the other processes wait for it.
    """

    id_NHW: Tensor
    safe_NHW: Tensor
    valid_NHW: Tensor
    weight_NHW: Tensor
    class_weights_K: Tensor
    ignore_index: int
    total: Callable[[Tensor], Tensor] = alone


def gather_true(values_NKHW: Tensor, labels: Labels) -> Tensor:
    """Return each pixel's value of its true class, (N, H, W); that of class 0 at ignored pixels."""
    return values_NKHW.gather(1, labels.safe_NHW[:, None]).squeeze(1)


def sum_by_class(values_NHW: Tensor, labels: Labels, num_classes: int) -> Tensor:
    """Sum values over the pixels of each true class, (K,); ignored pixels count for class 0, so give them 0."""
    # bins per image first: fewer atomic additions meet in one place
    sums_NK = values_NHW.new_zeros(len(values_NHW), num_classes)
    return sums_NK.scatter_add(1, labels.safe_NHW.flatten(1), values_NHW.flatten(1)).sum(dim=0)


def divide_or_zero(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide where the denominator is above 0; else 0 (the numerators here are then 0 as well)."""
    return numerator / torch.where(denominator > 0, denominator, 1)


def mean_over_weights(loss_NHW: Tensor, labels: Labels) -> Tensor:
    """Average over labelled pixels by the weights of their true classes.

    Args:
        loss_NHW: each pixel's loss times its weight, (N, H, W).
        labels: of the same pixels.
    """
    loss_sum, weight_sum = labels.total(torch.stack([loss_NHW.sum(), labels.weight_NHW.sum()])).unbind()
    return divide_or_zero(loss_sum, weight_sum)


def mean_over_present(loss_K: Tensor, num_true_K: Tensor) -> Tensor:
    """Average over the classes that have a labelled pixel; 0 where none has.

    Args:
        loss_K: a value for each class, (K,).
        num_true_K: labelled pixels of each class, (K,), any dtype.
    """
    present_K = (num_true_K > 0).to(loss_K.dtype)
    return divide_or_zero((loss_K * present_K).sum(), present_K.sum())
