"""Curves as numbers: picked from the rows of metrics.jsonl, smoothed, thinned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]


def collect(rows: Sequence[Row], kind: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return steps (int64) and values (float64, NaN where undefined) of one curve."""
    found = [(row["step"], np.nan if row[key] is None else row[key]) for row in rows if row["kind"] == kind and key in row]
    return np.array([step for step, _ in found], dtype=np.int64), np.array([value for _, value in found], dtype=np.float64)


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean over a centred window, shorter at the ends; NaNs are left out of it.

    Args:
        values: float64, (n,).
        window: half-width in points is `window // 2`.
    """
    half = max(1, window // 2)
    valid = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(valid, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(valid)])
    place = np.arange(len(values))
    low, high = np.maximum(place - half, 0), np.minimum(place + half + 1, len(values))
    num = counts[high] - counts[low]
    return np.where(num > 0, (sums[high] - sums[low]) / np.maximum(num, 1), np.nan)


def thin(steps: np.ndarray, values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Reduce a curve to at most `most` points: the means of neighbours, NaNs left out, at the last step of each group."""
    if len(steps) <= most:
        return steps, values
    edges = np.linspace(0, len(steps), most + 1).round().astype(np.int64)
    valid = np.isfinite(values)
    sums = np.add.reduceat(np.where(valid, values, 0.0), edges[:-1])
    counts = np.add.reduceat(valid, edges[:-1])
    return steps[edges[1:] - 1], np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
