"""Connected regions of predicted masks: small islands take the class around them, holes are filled.

Axis legend: H height, W width of a mask of class ids.
"""

from __future__ import annotations

from collections.abc import Collection

import cv2
import numpy as np

SIDES, CORNERS = 4, 8  # what joins two pixels of one region


def remove_islands(pred_HW: np.ndarray, min_px: int, class_ids: Collection[int] | None = None) -> np.ndarray:
    """Give each connected region below a size the class that most of its border touches.

    A region's pixels touch by their sides. Only regions of at least `min_px` pixels (or of a class that is left alone) lend
    their class; an island among islands takes one as soon as a neighbour has one. Where two classes touch as much of the
    border, the lower id is taken. A mask without any large region is left as it is.

    Args:
        pred_HW: class ids, uint8 or uint16.
        min_px: the least size that stays, pixels.
        class_ids: classes whose islands are removed; None: of all.

    Returns:
        A new mask of the same dtype.
    """
    pred_HW = pred_HW.copy()
    while True:
        region_HW, size_R, class_R = _label_regions(pred_HW)
        is_island_R = size_R < min_px
        if class_ids is not None:
            is_island_R &= np.isin(class_R, list(class_ids))
        taken = _vote(region_HW, is_island_R, class_R)
        if not taken:
            return pred_HW
        new_class_R = class_R.copy()
        new_class_R[list(taken)] = list(taken.values())
        pred_HW = new_class_R[region_HW]


def _label_regions(pred_HW: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Number all regions from 0; returns the numbers (H, W), and size in pixels and class of each.

    One search serves all classes: in a picture of twice the size, pixels stand at even places and what joins two equal
    neighbours stands between them.
    """
    height, width = pred_HW.shape
    joined_hw = np.zeros((2 * height - 1, 2 * width - 1), dtype=np.uint8)
    joined_hw[::2, ::2] = 1
    joined_hw[::2, 1::2] = pred_HW[:, :-1] == pred_HW[:, 1:]
    joined_hw[1::2, ::2] = pred_HW[:-1] == pred_HW[1:]
    _, label_hw = cv2.connectedComponents(joined_hw, connectivity=SIDES)
    region_HW = label_hw[::2, ::2] - 1
    size_R = np.bincount(region_HW.reshape(-1))
    class_R = np.empty(len(size_R), dtype=pred_HW.dtype)
    class_R[region_HW.reshape(-1)] = pred_HW.reshape(-1)
    return region_HW, size_R, class_R


def _vote(region_HW: np.ndarray, is_island_R: np.ndarray, class_R: np.ndarray) -> dict[int, int]:
    """Find the class of each island that touches a region which is none: the one along most of its border."""
    pairs = []
    for one, other in ((region_HW[:, :-1], region_HW[:, 1:]), (region_HW[:-1], region_HW[1:])):
        touch = one != other
        one_B, other_B = one[touch], other[touch]
        pairs += [(one_B, other_B), (other_B, one_B)]
    island_B, lender_B = (np.concatenate(side) for side in zip(*pairs, strict=True))
    counts = is_island_R[island_B] & ~is_island_R[lender_B]
    votes, num_votes = np.unique(np.stack([island_B[counts], class_R[lender_B[counts]]]), axis=1, return_counts=True)
    taken: dict[int, int] = {}
    for place in np.lexsort((votes[1], -num_votes)):  # most votes first, then the lower class
        taken.setdefault(int(votes[0, place]), int(votes[1, place]))
    return taken


def fill_holes(pred_HW: np.ndarray, max_px: int, class_ids: Collection[int] | None = None) -> np.ndarray:
    """Give each class the regions that lie wholly inside it.

    A hole of a class is a connected region of other pixels, whatever their classes, that does not reach the mask's border;
    its pixels touch by their sides, the class around it by sides or corners. A hole inside a hole goes to the outer class.

    Args:
        pred_HW: class ids, uint8 or uint16.
        max_px: holes below this size are filled, pixels.
        class_ids: classes whose holes are filled; None: of all.

    Returns:
        A new mask of the same dtype.
    """
    filled_HW = pred_HW.copy()
    holes: list[tuple[int, int, np.ndarray, tuple[slice, slice]]] = []
    height, width = pred_HW.shape
    for class_id in np.unique(pred_HW).tolist():
        if class_ids is not None and class_id not in class_ids:
            continue
        num, label_HW, stats, _ = cv2.connectedComponentsWithStats((pred_HW != class_id).astype(np.uint8), connectivity=SIDES)
        for hole in range(1, num):
            left, top, hole_width, hole_height, num_px = stats[hole].tolist()
            at_border = left == 0 or top == 0 or left + hole_width == width or top + hole_height == height
            if num_px < max_px and not at_border:
                box = slice(top, top + hole_height), slice(left, left + hole_width)
                holes.append((num_px, class_id, label_HW[box] == hole, box))
    for _, class_id, is_hole_hw, box in sorted(holes, key=lambda hole: hole[:2]):  # outer holes are larger, and come last
        filled_HW[box][is_hole_hw] = class_id
    return filled_HW
