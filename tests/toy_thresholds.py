"""The yardstick that the toy cars must beat: the best classifier by one threshold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def best_threshold_dice(images: Sequence[Path], masks: Sequence[Path]) -> float:
    """Find the largest Dice of class 1 over all thresholds on R, G, B, grey or HSV's saturation, in either direction.

    One threshold serves all images; Dice comes from the pixels of all images together. Masks hold ids 0 and 1.
    """
    inside = np.zeros((5, 256), dtype=np.int64)  # pixels by feature and value
    outside = np.zeros((5, 256), dtype=np.int64)
    for image_path, mask_path in zip(images, masks, strict=True):
        with Image.open(image_path) as image, Image.open(mask_path) as mask:
            grey, saturation = np.asarray(image.convert("L")), np.asarray(image.convert("HSV"))[..., 1]
            features = [*np.moveaxis(np.asarray(image.convert("RGB")), 2, 0), grey, saturation]
            is_inside = np.asarray(mask) == 1
        for place, feature in enumerate(features):
            inside[place] += np.bincount(feature[is_inside], minlength=256)
            outside[place] += np.bincount(feature[~is_inside], minlength=256)
    best = 0.0
    for step in (1, -1):  # class 1 is at most, or at least, the threshold
        hits, false_alarms = inside[:, ::step].cumsum(axis=1), outside[:, ::step].cumsum(axis=1)
        dice = 2 * hits / (hits + false_alarms + inside.sum(axis=1, keepdims=True))
        best = max(best, float(dice.max()))
    return best
