"""Counting the pixels of masks, exactly and quickly: by value as a file holds them, or by class id.

Axis letters: H height, W width.
"""

from __future__ import annotations

import cv2
import numpy as np

from unetfast.data.labels import LabelTable

# calcHist counts in float32, which is exact up to here; longer masks are counted in bands
EXACT_PIXELS = 1 << 24
# ids below this are counted one by one
FEW_VALUES = 8


def count_values(values_HW: np.ndarray) -> np.ndarray:
    """Count how often each value occurs.

    OpenCV counts bytes in a third of the time that `np.bincount` takes, which would cost as much as a JPEG decode; a few small
    values, as class ids often are, it finds one by one faster still: two classes in a tenth of that.

    Args:
        values_HW: uint8 or uint16, (H, W).

    Returns:
        Pixels of each value, int64, (256,) or (65536,).
    """
    flat = np.ascontiguousarray(values_HW).reshape(1, -1)
    if flat.dtype == np.uint16:
        return np.bincount(flat[0], minlength=1 << 16)
    counts = np.zeros(256, dtype=np.int64)
    if flat.size and (greatest := int(cv2.norm(flat, cv2.NORM_INF))) < FEW_VALUES:
        for value in range(1, greatest + 1):
            counts[value] = np.count_nonzero(flat == value)
        counts[0] = flat.size - counts.sum()
        return counts
    for start in range(0, flat.shape[1], EXACT_PIXELS):
        band = flat[:, start : start + EXACT_PIXELS]
        counts += np.asarray(cv2.calcHist([band], [0], None, [256], [0, 256])).reshape(-1).astype(np.int64)
    return counts


def count_ids(mask_HW: np.ndarray, labels: LabelTable) -> tuple[np.ndarray, list[int]]:
    """Count the pixels of each class, and find ids that stand for none.

    Args:
        mask_HW: ids, uint8 or uint16, (H, W).
        labels: the data set's classes.

    Returns:
        Pixels of each id, int64, (num_classes + 1,), of which the last entry counts `ignore_index`; and the unknown ids,
        ascending, among them `ignore_index` where the labels declare no ignored pixels.
    """
    counts = count_values(mask_HW)
    ignored = counts[labels.ignore_index]
    unknown = [class_id for class_id in np.flatnonzero(counts).tolist() if class_id >= labels.num_classes]
    if labels.has_ignore and ignored:
        unknown.remove(labels.ignore_index)
    return np.append(counts[: labels.num_classes], ignored), unknown
