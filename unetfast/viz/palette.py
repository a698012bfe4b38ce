"""Class ids into colours, and the colours that all pictures share."""

from __future__ import annotations

import numpy as np

PAPER = (255, 255, 255)
INK = (24, 24, 27)
IGNORED = (150, 150, 160)  # pixels of `ignore_index`
WRONG = (255, 196, 0)  # wrong pixels of an error picture; bright also when printed in grey

# for classes of overlays whose own colour is near white and would look like light; the first that no other class resembles
ACCENTS = ((255, 80, 0), (255, 0, 160), (0, 190, 255), (120, 230, 0), (255, 215, 0), (150, 60, 255))
_NEAR_WHITE = 230  # every channel at least this
_ALIKE = 60  # sum of the channels' differences, below which two colours are hard to tell apart


def visible_palette(palette_K3: np.ndarray) -> np.ndarray:
    """Copy a palette for overlays: a colour near white becomes one of `ACCENTS`; all others stay, black too.

    Args:
        palette_K3: uint8, (K, 3).
    """
    shown_K3 = palette_K3.astype(np.int64)
    near_white = (palette_K3 >= _NEAR_WHITE).all(axis=1)
    for class_id in np.flatnonzero(near_white):
        apart = [int(np.abs(shown_K3 - accent).sum(axis=1).min()) for accent in ACCENTS]
        best = next((place for place, distance in enumerate(apart) if distance >= _ALIKE), int(np.argmax(apart)))
        shown_K3[class_id] = ACCENTS[best]
    return shown_K3.astype(np.uint8)


def colorize(mask_HW: np.ndarray, palette_K3: np.ndarray, ignore_index: int) -> np.ndarray:
    """Paint class ids in their display colours.

    Args:
        mask_HW: class ids in [0, K) or `ignore_index`, any integer dtype, (H, W).
        palette_K3: uint8, (K, 3).
        ignore_index: id of ignored pixels, at least 0; they become grey (`IGNORED`).

    Returns:
        RGB, uint8, (H, W, 3).

    Raises:
        ValueError: an id has no colour.
    """
    num_classes = len(palette_K3)
    num_ids = max(num_classes, ignore_index) + 1
    if mask_HW.size and not 0 <= int(mask_HW.min()) <= int(mask_HW.max()) < num_ids:
        raise ValueError(f"class ids {mask_HW.min()}..{mask_HW.max()} do not all have a colour: there are {num_classes}")
    found = np.flatnonzero(np.bincount(mask_HW.reshape(-1), minlength=num_ids))
    unknown = found[(found >= num_classes) & (found != ignore_index)]
    if unknown.size:
        raise ValueError(f"class ids {unknown[:8].tolist()} do not all have a colour: there are {num_classes}")
    table = np.zeros((num_ids, 3), dtype=np.uint8)
    table[:num_classes] = palette_K3
    table[ignore_index] = IGNORED
    rgb_HWC: np.ndarray = table.take(mask_HW, axis=0)
    return rgb_HWC


def classes_in(*masks: np.ndarray, num_classes: int) -> list[int]:
    """List the class ids that occur in any of the masks (of ids of at least 0), in order."""
    counts = np.zeros(num_classes, dtype=np.int64)
    for mask in masks:
        counts += np.bincount(mask.reshape(-1), minlength=num_classes)[:num_classes]
    return np.flatnonzero(counts).tolist()
