"""Class weights: from pixel counts, and the check of given ones."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


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


def check_class_weights(class_weights: Sequence[float], num_classes: int) -> None:
    """Check weights given by a user.

    Raises:
        ValueError: the wrong number of them, a negative or infinite one, or all 0.
    """
    if len(class_weights) != num_classes:
        raise ValueError(f"class_weights has {len(class_weights)} numbers, there are {num_classes} classes")
    if not all(0 <= weight < math.inf for weight in class_weights) or not any(class_weights):
        raise ValueError(f"class_weights = {list(class_weights)}: must be at least 0, and one of them above")
