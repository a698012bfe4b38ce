"""Metrics from one confusion matrix over a whole split.

Axis legend: N batch, H height, W width, K classes.

Batches are counted on the device and added up there; the sums are exact integers, so the numbers depend neither on batch
size nor on order. All metrics come from the final matrix, never from averages over images or batches.

`CONVENTION` says in one line what the means mean; it belongs next to every published number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

CONVENTION = (
    "one confusion matrix over all labelled pixels of the split; a class with neither true nor predicted pixels is absent: "
    "null, and left out of the means; a class that is predicted but has no true pixel counts as 0"
)


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """How well one class was found.

    Args:
        name: of the class.
        iou: intersection over union (Jaccard index), in [0, 1]; None for an absent class.
        dice: 2 * intersection / (true + predicted) (F1 score), in [0, 1]; None for an absent class.
        pixels: labelled pixels of the class.
    """

    name: str
    iou: float | None
    dice: float | None
    pixels: int


@dataclass(frozen=True, slots=True)
class SegmentationMetrics:
    """Metrics of a split, by `CONVENTION`.

    Args:
        mean_iou: mean of `classes[].iou` without absent classes, in [0, 1]; None where all are absent.
        mean_dice: the same of `classes[].dice`.
        pixel_accuracy: share of labelled pixels with the right class, in [0, 1]; None without labelled pixels.
        classes: one entry per class, in the order of class ids.
        num_absent: classes with neither true nor predicted pixels.
        num_only_predicted: classes with predicted pixels but no true one; they count as 0.
        num_pixels: labelled pixels, ignored ones left out.
        only_predicted_class: the class predicted at every labelled pixel, if there is one and there are several classes.
    """

    mean_iou: float | None
    mean_dice: float | None
    pixel_accuracy: float | None
    classes: list[ClassMetrics]
    num_absent: int
    num_only_predicted: int
    num_pixels: int
    only_predicted_class: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return all fields for JSON; undefined numbers are None (null)."""
        return asdict(self)

    def warnings(self) -> list[str]:
        """List the traps that these numbers have fallen into, one sentence each; empty if there is none."""
        if self.num_pixels == 0:
            return ["there is no labelled pixel: every mask is ignored throughout, so there are no metrics"]
        found = []
        true_names = [entry.name for entry in self.classes if entry.pixels > 0]
        if len(self.classes) > 1 and len(true_names) == 1:
            found.append(
                f"every labelled pixel is of class {true_names[0]!r}: the metrics say nothing about the other classes; "
                "look at the masks and at how their values were mapped to classes"
            )
        if self.only_predicted_class is not None and true_names != [self.only_predicted_class]:
            found.append(
                f"every labelled pixel is predicted as class {self.only_predicted_class!r}: the model tells no classes apart"
            )
        if self.num_only_predicted:
            found.append(
                f"classes predicted without a single true pixel: {self.num_only_predicted}; each counts as 0 in the means"
            )
        return found


def confusion_matrix(pred_NHW: Tensor, mask_NHW: Tensor, *, num_classes: int, ignore_index: int) -> Tensor:
    """Count pixels by true class (row) and predicted class (column).

    Args:
        pred_NHW: predicted class ids in [0, num_classes), any integer dtype, (N, H, W).
        mask_NHW: true class ids, uint8, uint16 or another integer dtype, same shape and device as `pred_NHW`; pixels equal
            to `ignore_index` are left out.
        num_classes: K, from the manifest.
        ignore_index: outside [0, num_classes).

    Returns:
        Counts in pixels, int64, (K, K), on the same device. Does not wait for the GPU. A labelled pixel with an id outside
        [0, K), true or predicted, is never dropped: it is a RuntimeError on the CPU and a device-side assertion on a GPU.

    Raises:
        ValueError: the shapes differ, a dtype is not of integers, or `ignore_index` names a real class.
    """
    return confusion_per_image(pred_NHW, mask_NHW, num_classes=num_classes, ignore_index=ignore_index).sum(dim=0)


def confusion_per_image(pred_NHW: Tensor, mask_NHW: Tensor, *, num_classes: int, ignore_index: int) -> Tensor:
    """Count pixels as `confusion_matrix` does, each image in a matrix of its own.

    Returns:
        Counts in pixels, int64, (N, K, K), on the same device. Does not wait for the GPU.
    """
    _check_ids(pred_NHW, mask_NHW)
    if 0 <= ignore_index < num_classes:
        raise ValueError(f"ignore_index = {ignore_index} names one of the {num_classes} classes; take one outside of them")
    # scatter_add_ into a table of known size: torch.bincount and boolean indexing read the sizes of their results, and wait
    pred_NP = pred_NHW.flatten(1).to(torch.int64)
    true_NP = mask_NHW.flatten(1).to(torch.int64)
    num_cells = num_classes * num_classes
    known_NP = (true_NP >= 0) & (true_NP < num_classes) & (pred_NP >= 0) & (pred_NP < num_classes)
    cell_NP = torch.where(known_NP, true_NP * num_classes + pred_NP, num_cells + 1)  # one past the end: refused by scatter_add_
    cell_NP = torch.where(true_NP == ignore_index, num_cells, cell_NP)  # the last cell, cut off below
    # a table per image first: fewer atomic additions meet in one place
    counts = torch.zeros(len(cell_NP), num_cells + 1, dtype=torch.int64, device=cell_NP.device)
    counts.scatter_add_(1, cell_NP, counts.new_ones(()).expand_as(cell_NP))
    return counts[:, :num_cells].reshape(-1, num_classes, num_classes)


def image_scores(confusion_NKK: Tensor) -> Tensor:
    """Score each image by itself: to find the best and worst ones, not to average.

    Args:
        confusion_NKK: of `confusion_per_image`, int64, (N, K, K).

    Returns:
        Mean IoU over the classes that are true or predicted in the image, and its pixel accuracy, both in [0, 1], NaN where
        the image has no labelled pixel; float32, (N, 2), on the same device. Does not wait for the GPU.
    """
    hits_NK = confusion_NKK.diagonal(dim1=1, dim2=2)
    true_NK, pred_NK = confusion_NKK.sum(dim=2), confusion_NKK.sum(dim=1)
    union_NK = true_NK + pred_NK - hits_NK
    iou_NK = hits_NK / union_NK.clamp(min=1)
    # 0 / 0 is NaN: an image without labelled pixels has no score
    mean_iou_N = iou_NK.sum(dim=1) / (union_NK > 0).sum(dim=1)
    accuracy_N = hits_NK.sum(dim=1) / true_NK.sum(dim=1)
    return torch.stack([mean_iou_N, accuracy_N], dim=1).to(torch.float32)


def compute_metrics(confusion_KK: Tensor, class_names: Sequence[str]) -> SegmentationMetrics:
    """Compute all metrics from a confusion matrix, in exact integers up to the last division.

    The values are those of scikit-learn's `jaccard_score` and `f1_score` per class, and the means those of torchmetrics' macro
    averages: a class is left out if it is neither true nor predicted anywhere.

    Args:
        confusion_KK: counts in pixels, integers, true classes in rows, predicted ones in columns.
        class_names: K names, in the order of class ids.

    Returns:
        Metrics on the host; waits for the GPU.

    Raises:
        ValueError: the matrix is not K x K integers of at least 0.
    """
    num_classes = len(class_names)
    if tuple(confusion_KK.shape) != (num_classes, num_classes) or num_classes == 0:
        raise ValueError(f"confusion matrix has shape {tuple(confusion_KK.shape)}, there are {num_classes} class names")
    if confusion_KK.is_floating_point() or confusion_KK.is_complex():
        raise ValueError(f"confusion matrix is {confusion_KK.dtype}: must hold counts as integers")
    table = confusion_KK.cpu()
    if bool((table < 0).any()):
        raise ValueError("confusion matrix holds a negative count")
    hits: list[int] = table.diagonal().tolist()
    true: list[int] = table.sum(dim=1).tolist()
    pred: list[int] = table.sum(dim=0).tolist()
    num_pixels = sum(true)

    classes = [
        ClassMetrics(name, _ratio(hits[k], true[k] + pred[k] - hits[k]), _ratio(2 * hits[k], true[k] + pred[k]), true[k])
        for k, name in enumerate(class_names)
    ]
    predicted_names = [name for k, name in enumerate(class_names) if pred[k] > 0]
    return SegmentationMetrics(
        mean_iou=_mean([entry.iou for entry in classes]),
        mean_dice=_mean([entry.dice for entry in classes]),
        pixel_accuracy=_ratio(sum(hits), num_pixels),
        classes=classes,
        num_absent=sum(entry.iou is None for entry in classes),
        num_only_predicted=sum(true[k] == 0 and pred[k] > 0 for k in range(num_classes)),
        num_pixels=num_pixels,
        only_predicted_class=predicted_names[0] if len(predicted_names) == 1 and num_classes > 1 else None,
    )


def _ratio(numerator: int, denominator: int) -> float | None:
    return numerator / denominator if denominator > 0 else None


def _mean(values: list[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def _check_ids(pred_NHW: Tensor, mask_NHW: Tensor) -> None:
    if pred_NHW.shape != mask_NHW.shape or pred_NHW.ndim != 3:
        raise ValueError(
            f"predictions have shape {tuple(pred_NHW.shape)} and masks {tuple(mask_NHW.shape)}: both must be the same (N, H, W)"
        )
    for name, ids in (("predictions", pred_NHW), ("masks", mask_NHW)):
        if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise ValueError(f"{name} are {ids.dtype}: must hold class ids as integers")
