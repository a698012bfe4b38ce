"""Losses that compare regions: a value for each class over all labelled pixels of the batch, averaged over present classes.

A class without a labelled pixel in the batch is left out; what is predicted of it is missing from the true classes and so is
punished there. Class weights have no part: each present class counts once, however small it is.

Axis legend: N batch, H height, W width, K classes, P all pixels of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unetfast.model.losses.labels import Labels, divide_or_zero, gather_true, mean_over_present, sum_by_class


def soft_dice(logits_NKHW: Tensor, labels: Labels) -> Tensor:
    """One minus the soft Dice of the softmax, averaged over the classes that are present in the batch's labels.

    Per class k, over all labelled pixels of the whole batch: 1 - 2 sum(p_k y_k) / (sum(p_k) + sum(y_k)), with p the
    probabilities and y the one-hot labels (plain sums in the denominator as in Drozdzal et al. 2016, The Importance of Skip
    Connections; Milletari et al. 2016 square them). The denominator of a present class is at least 1 and needs no smoothing.
    """
    overlap_K, num_pred_K, num_true_K = _count_overlap(logits_NKHW, labels)
    dice_K = divide_or_zero(2 * overlap_K, num_pred_K + num_true_K)
    return mean_over_present(1 - dice_K, num_true_K)


def tversky(logits_NKHW: Tensor, labels: Labels, *, alpha: float = 0.3, beta: float = 0.7) -> Tensor:
    """One minus the Tversky index of the softmax, averaged over the classes that are present in the batch's labels.

    Per class k, over all labelled pixels of the whole batch: TP / (TP + alpha FP + beta FN), with TP = sum(p_k y_k), FP =
    sum(p_k (1 - y_k)) and FN = sum((1 - p_k) y_k) (Salehi et al. 2017, "Tversky loss function for image segmentation using 3D
    fully convolutional deep networks"). At alpha = beta = 0.5 it is `soft_dice`, at 1 and 1 the soft IoU.

    Args:
        logits_NKHW: float32 or float64, (N, K, H, W).
        labels: of the same pixels.
        alpha: what false positives cost, at least 0.
        beta: what false negatives cost, at least 0; not both 0.
    """
    overlap_K, num_pred_K, num_true_K = _count_overlap(logits_NKHW, labels)
    false_positive_K, false_negative_K = num_pred_K - overlap_K, num_true_K - overlap_K
    index_K = divide_or_zero(overlap_K, overlap_K + alpha * false_positive_K + beta * false_negative_K)
    return mean_over_present(1 - index_K, num_true_K)


def _count_overlap(logits_NKHW: Tensor, labels: Labels) -> tuple[Tensor, Tensor, Tensor]:
    """Return sum(p_k y_k), sum(p_k) and sum(y_k) over all labelled pixels of the whole batch; each (K,)."""
    num_classes = logits_NKHW.shape[1]
    probs_NKHW = logits_NKHW.softmax(dim=1)
    valid_NHW = labels.valid_NHW.to(probs_NKHW.dtype)
    true_NHW = gather_true(probs_NKHW, labels) * valid_NHW
    overlap_K = sum_by_class(true_NHW, labels, num_classes)
    num_true_K = sum_by_class(valid_NHW, labels, num_classes)
    num_pred_K = (probs_NKHW * valid_NHW[:, None]).sum(dim=(0, 2, 3))
    overlap_K, num_pred_K, num_true_K = labels.total(torch.stack([overlap_K, num_pred_K, num_true_K])).unbind()
    return overlap_K, num_pred_K, num_true_K


def lovasz_softmax(logits_NKHW: Tensor, labels: Labels) -> Tensor:
    """Lovasz-softmax over the batch, averaged over the classes that are present in the batch's labels.

    The convex surrogate of one minus IoU (Berman et al. 2018, "The Lovasz-Softmax loss", algorithm 1; classes = "present").
    It sorts the errors of every class: for K classes that costs K sorts of all pixels. On a GPU absent classes are sorted too,
    since leaving them out would mean to wait for their count. A sum over the order of all pixels cannot be put together from
    parts: several processes each take their own part of the batch, and average what they find.
    """
    probs_NKHW = logits_NKHW.softmax(dim=1)
    num_classes = logits_NKHW.shape[1]
    num_true_K = sum_by_class(labels.valid_NHW.to(probs_NKHW.dtype), labels, num_classes)
    absent = _known_absent(num_true_K)
    losses = []
    # unbind, since the gradient of K single slices would be K tensors of the logits' size
    for k, probs_NHW in enumerate(probs_NKHW.unbind(dim=1)):
        if k in absent:
            losses.append(probs_NHW[:0].sum())  # 0, with a gradient of 0
            continue
        is_true_NHW = labels.id_NHW == k
        error_NHW = torch.where(is_true_NHW, 1 - probs_NHW, probs_NHW)
        share_P = _share_of_errors(error_NHW.detach().flatten(), is_true_NHW.flatten(), labels.valid_NHW.flatten())
        losses.append((error_NHW.flatten() * share_P).sum())
    return mean_over_present(torch.stack(losses), num_true_K)


def _known_absent(num_true_K: Tensor) -> frozenset[int]:
    """List the classes without a pixel where that needs no wait for a GPU; there, none."""
    if num_true_K.device.type != "cpu":
        return frozenset()
    return frozenset((num_true_K == 0).nonzero().flatten().tolist())


@torch.no_grad()
def _share_of_errors(error_P: Tensor, is_true_P: Tensor, valid_P: Tensor) -> Tensor:
    """Return by what each pixel's error is multiplied in the Lovasz extension of a class's Jaccard loss.

    With the errors in falling order it is the growth of 1 - I/U as one pixel after another is counted as wrong, I and U being
    intersection and union then: 1/U for a pixel of the class, I / (U (U - 1)) for another. In this form, rather than as a
    difference of neighbouring values, it stays exact in float32 over millions of pixels.

    Args:
        error_P: in [0, 1], (P,).
        is_true_P: pixels of the class, bool.
        valid_P: labelled pixels, bool; all others get 0.
    """
    order_P = torch.where(valid_P, error_P, -1).sort(descending=True, stable=True).indices
    sorted_true_P = is_true_P[order_P]
    num_true_so_far_P = sorted_true_P.cumsum(0)
    num_so_far_P = torch.arange(1, len(error_P) + 1, device=error_P.device)
    intersection_P = num_true_so_far_P[-1] - num_true_so_far_P
    union_P = (num_true_so_far_P[-1] + num_so_far_P - num_true_so_far_P).to(error_P.dtype)
    growth_P = torch.where(sorted_true_P, 1 / union_P, intersection_P / (union_P * (union_P - 1).clamp(min=1)))
    return torch.zeros_like(growth_P).scatter_(0, order_P, growth_P) * valid_P
