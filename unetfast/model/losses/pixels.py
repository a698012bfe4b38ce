"""Losses with a value for each pixel, averaged over labelled pixels with the weights of their true classes.

Axis legend: N batch, H height, W width, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unetfast.model.losses.labels import Labels, gather_true, mean_over_weights


def cross_entropy(logits_NKHW: Tensor, labels: Labels, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the softmax, averaged over labelled pixels with the weights of their true classes.

    The value of `torch.nn.functional.cross_entropy(reduction="mean")`, which divides by the sum of the weights; 0 rather than
    NaN where that sum is 0. Summed here, since torch's own sum in two dimensions is not deterministic on a GPU.

    Args:
        logits_NKHW: float32 or float64, (N, K, H, W).
        labels: of the same pixels.
        smoothing: share of the label that is spread over all K classes (Szegedy et al. 2015, "Rethinking the Inception
            Architecture", section 7), in [0, 1). As in torch, class k's part of the spread has the weight of class k. Unlike
            in torch, a pixel whose own class has weight 0 has no part at all.
    """
    loss_NHW = F.cross_entropy(
        logits_NKHW,
        labels.id_NHW,
        weight=labels.class_weights_K,
        ignore_index=labels.ignore_index,
        reduction="none",
        label_smoothing=smoothing,
    )
    if smoothing > 0:
        loss_NHW = torch.where(labels.weight_NHW > 0, loss_NHW, 0)
    return mean_over_weights(loss_NHW, labels)


def binary_cross_entropy(logits_NKHW: Tensor, labels: Labels) -> Tensor:
    """Binary cross-entropy of the sigmoid of each class against one-hot labels, averaged over classes and labelled pixels.

    The mean over pixels has the weights of their true classes, as in `cross_entropy`. With z the logits and t the true class,
    the sum over classes is sum_k softplus(z_k) - z_t, so no one-hot mask is needed.
    """
    num_classes = logits_NKHW.shape[1]
    true_NHW = gather_true(logits_NKHW, labels)
    loss_NHW = (F.softplus(logits_NKHW).sum(dim=1) - true_NHW) / num_classes
    return mean_over_weights(loss_NHW * labels.weight_NHW, labels)


def focal(logits_NKHW: Tensor, labels: Labels, *, gamma: float = 2.0) -> Tensor:
    """Focal loss of the softmax: cross-entropy times (1 - p)^gamma, p the probability of the true class.

    Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 5, with the softmax in place of the sigmoid. Their
    alpha is the class weights here; the mean is divided by these, as in `cross_entropy`, which this is at gamma 0.

    Args:
        logits_NKHW: float32 or float64, (N, K, H, W).
        labels: of the same pixels.
        gamma: at least 0; how much less pixels count that are right already.
    """
    loss_NHW = F.cross_entropy(logits_NKHW, labels.id_NHW, ignore_index=labels.ignore_index, reduction="none")
    # 1 - p without cancellation; at p = 1 a power below 1 has no derivative, so it ends just above 0
    rest_NHW = (-torch.expm1(-loss_NHW)).clamp(min=torch.finfo(loss_NHW.dtype).tiny)
    loss_NHW = rest_NHW**gamma * loss_NHW
    return mean_over_weights(loss_NHW * labels.weight_NHW, labels)
