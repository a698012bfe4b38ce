"""The compiled antialiased resize in its plainest form: the same integers in numpy, a row and a column at a time.

Axis letters: H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

MAX_TAPS = 32  # more of them, and parts of few columns, are summed up in wider numbers


def resize_in_integers(rgb_HWC: np.ndarray, box_yxyx: Sequence[float] | np.ndarray, out_HWC: np.ndarray) -> None:
    """Resize a box: 256ths between the two axes, weights of 16 or 24 bits, one rounding."""
    top, left, bottom, right = (float(edge) for edge in box_yxyx)
    (height, width), (out_height, out_width) = rgb_HWC.shape[:2], out_HWC.shape[:2]
    by_column, is_fine = weigh(left, right, width, out_width)
    num_columns = by_column[-1][0] + len(by_column[-1][1]) - by_column[0][0]
    by_row, is_fine_y = weigh(top, bottom, height, out_height, num_bytes=3 * num_columns)
    blended = np.empty((out_height, width, 3), dtype=np.int64)
    for y, (first, weights) in enumerate(by_row):
        rows, weight = rgb_HWC[first : first + len(weights)].astype(np.int64), weights[:, None, None]
        if is_fine_y:
            blended[y] = (rows * weight).sum(axis=0) + (1 << 15) >> 16
        else:
            num_cut = int((weights & 255 != 0).sum())
            blended[y] = (rows * 256 * weight >> 16).sum(axis=0) + (num_cut + 1) // 2
    most = max(len(weights) for _, weights in by_column)
    for x, (first, weights) in enumerate(by_column):
        columns, weight = blended[:, first : first + len(weights)], weights[:, None]
        if is_fine:
            out_HWC[:, x] = ((columns * weight).sum(axis=1) + (128 << 24)) >> 32
        else:
            out_HWC[:, x] = (columns * weight >> 16).sum(axis=1) + 128 + (most + 1) // 2 >> 8


def weigh(
    edge: float, far_edge: float, num_source: int, num_target: int, num_bytes: int = 1 << 30
) -> tuple[list[tuple[int, np.ndarray]], bool]:
    """Return for each target pixel the first source pixel that it sees, and the weights of this and the next ones."""
    scale = (far_edge - edge) / num_target
    reach = max(scale, 1.0)
    num_taps = int(2.0 * reach) + 1
    is_fine = num_taps > MAX_TAPS or num_bytes < 64
    seen = []
    for place in range(num_target):
        centre = edge + (place + 0.5) * scale
        first = max(int(centre - reach + 0.5), 0)
        taps = np.arange(min(num_taps, num_source - first))
        sums = np.cumsum(np.maximum(1.0 - np.abs(first + 0.5 - centre + taps) * (1.0 / reach), 0.0))
        rounded = (sums * ((1 << 24 if is_fine else 1 << 16) / sums[-1]) + 0.5).astype(np.int64)
        weights = np.array([upper - lower for lower, upper in pairwise([0, *rounded.tolist()])])
        count = min(int(centre + reach + 0.5), num_source, first + num_taps) - first
        seen.append((first, weights[:count] if is_fine else np.minimum(weights[:count], 65535)))
    return seen, is_fine
