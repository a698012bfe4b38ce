"""Logits of a large image, window by window, in memory that does not grow with the image.

Windows are run row of windows after row of windows, and their weighted logits are added up in a buffer as high as one window.
Rows that no later window touches leave it, resized to the image's own resolution where the windows saw another scale, and the
buffer moves down. A buffer of K classes over the whole width may still be too much (150 classes x 256 rows x 20,000 columns are
3 GB), so an image is cut into panels of columns, each done from top to bottom; windows that reach over a panel's edge are run
for both. Nobody keeps whole logits, weights or a scaled copy of the image.

Axis legend: N windows of a batch, C channels, K classes, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise

import numpy as np
import torch
from torch import Tensor

from unetfast.infer.fullsize import STRIPE_BYTES
from unetfast.infer.window import Grid
from unetfast.loader.plainresize import resize_by_libraries

BUFFER_BYTES = 384 * 2**20
# of the logits of one batch of windows; the net's own activations come on top and are not ours to know
BATCH_BYTES = 128 * 2**20
# on a CPU those activations are this machine's memory: a batch holds no more pixels than this, and at least one window
CPU_BATCH_PIXELS = 2**18
_SOURCE_PIXELS = 2**23  # resized to a window's scale at once

RunModel = Callable[[np.ndarray], Tensor]


@dataclass(frozen=True, slots=True)
class Block:
    """A finished piece of an image's logits.

    Args:
        top: its first row in the image.
        left: its first column in the image.
        logits_KHW: float32, on the model's device; valid until the next block is asked for.
    """

    top: int
    left: int
    logits_KHW: Tensor


@dataclass(frozen=True, slots=True)
class _Places:
    """Which scaled rows (or columns) each row (or column) of the image lies between, and how near to the latter."""

    before: np.ndarray
    after: np.ndarray
    share: np.ndarray


@dataclass(frozen=True, slots=True)
class _Window:
    row: int
    column: int
    pixels_HWC: np.ndarray


def choose_batch_size(wanted: int, window_hw: tuple[int, int], num_classes: int, device: torch.device) -> int:
    """Number of windows that are run at once: as many as wanted, fewer where they would take too much memory, at least one."""
    window_px = window_hw[0] * window_hw[1]
    most = BATCH_BYTES // (4 * num_classes * window_px)
    if device.type == "cpu":
        most = min(most, CPU_BATCH_PIXELS // window_px)
    return max(1, min(wanted, most))


def iter_blocks(
    rgb_HWC: np.ndarray,
    grid: Grid,
    run_model: RunModel,
    *,
    num_classes: int,
    device: torch.device,
    batch_size: int = 1,
    buffer_bytes: int = BUFFER_BYTES,
    block_bytes: int = STRIPE_BYTES,
    on_windows: Callable[[int], None] | None = None,
) -> Iterator[Block]:
    """Predict an image window by window and yield its blended logits piece by piece.

    The blend is sum(weight * logits) over all windows at a pixel, with the weights of `Grid`, which add up to 1. At a scale
    other than 1 the blend is brought to the image's own size bilinearly (half-pixel centres), as `iter_stripes` does it.

    Args:
        rgb_HWC: uint8, (H, W, 3), `grid.size_hw` large.
        grid: the image's windows.
        run_model: from pixels (N, H, W, 3), uint8, to logits (N, K, H, W) on `device`.
        num_classes: K.
        device: where logits are added up.
        batch_size: windows a call of `run_model`.
        buffer_bytes: size of the buffer of sums to stay below; one column is the least.
        block_bytes: size of a block to stay below; one row is the least.
        on_windows: told how many windows were run in all after each batch.

    Yields:
        Blocks that cover the image once: panel after panel of columns, from the top down in each.
    """
    num_done = 0
    for first, last in cut_panels(grid, num_classes, buffer_bytes):
        panel = _Panel(grid, first, last, num_classes=num_classes, device=device, block_bytes=block_bytes)
        windows = panel.iter_windows(rgb_HWC)
        while batch := list(islice(windows, batch_size)):
            logits_NKHW = run_model(np.stack([window.pixels_HWC for window in batch]))
            for window, logits_KHW in zip(batch, logits_NKHW, strict=True):
                yield from panel.advance_to(window.row)
                panel.add(window, logits_KHW)
            num_done += len(batch)
            if on_windows is not None:
                on_windows(num_done)
        yield from panel.advance_to(len(grid.tops))


def count_windows(grid: Grid, num_classes: int, buffer_bytes: int = BUFFER_BYTES) -> int:
    """Number of windows that `iter_blocks` runs: those at the edges of panels count for each panel."""
    panels = cut_panels(grid, num_classes, buffer_bytes)
    return sum(len(grid.tops) * len(_columns_over(grid, *_scaled_range(grid, *panel))) for panel in panels)


def cut_panels(grid: Grid, num_classes: int, buffer_bytes: int) -> list[tuple[int, int]]:
    """Cut an image into panels (first column, column behind the last), all about as wide, that fit the buffer."""
    width, scaled_width = grid.size_hw[1], grid.scaled_hw[1]
    most = buffer_bytes // (4 * num_classes * _buffer_rows(grid))
    if width != scaled_width:
        most -= 2  # a neighbour on either side to interpolate with
    num = min(width, math.ceil(scaled_width / max(1, most)))
    edges = [place * width // num for place in range(num + 1)]
    return list(pairwise(edges))


def _buffer_rows(grid: Grid) -> int:
    return grid.window_hw[0] + (grid.size_hw[0] != grid.scaled_hw[0])  # one row stays to interpolate from


def _places(length: int, scaled: int) -> _Places:
    position = np.clip((np.arange(length) + 0.5) * (scaled / length) - 0.5, 0, scaled - 1)
    before = np.floor(position).astype(np.int64)
    share = (position - before).astype(np.float32)
    return _Places(before, np.where(share > 0, before + 1, before), share)


def _scaled_range(grid: Grid, first: int, last: int) -> tuple[int, int]:
    """Scaled columns (first, behind the last) that a panel's columns are interpolated from."""
    if grid.size_hw[1] == grid.scaled_hw[1]:
        return first, last
    places = _places(grid.size_hw[1], grid.scaled_hw[1])
    return int(places.before[first]), int(places.after[last - 1]) + 1


def _columns_over(grid: Grid, scaled_first: int, scaled_last: int) -> list[int]:
    width = grid.window_hw[1]
    return [place for place, left in enumerate(grid.lefts) if left < scaled_last and left + width > scaled_first]


class _Panel:
    """Sums of some columns of an image: a buffer as high as a window, which moves down."""

    def __init__(self, grid: Grid, first: int, last: int, *, num_classes: int, device: torch.device, block_bytes: int) -> None:
        self._grid = grid
        self._first, self._last = first, last
        self._scaled_first, self._scaled_last = _scaled_range(grid, first, last)
        self._columns = _columns_over(grid, self._scaled_first, self._scaled_last)
        scaled_width = self._scaled_last - self._scaled_first
        self._sums_KHW = torch.zeros(num_classes, _buffer_rows(grid), scaled_width, device=device)
        self._buffer_top = 0  # scaled row of the buffer's first one
        self._row = 0  # of windows, that is being added
        self._next_row = 0  # of the image, to be yielded
        self._row_weights = torch.from_numpy(grid.row_weights).to(device)
        self._column_weights = torch.from_numpy(grid.column_weights).to(device)
        self._rows = _places(grid.size_hw[0], grid.scaled_hw[0])
        columns = _places(grid.size_hw[1], grid.scaled_hw[1])
        self._before_W, self._after_W = (
            torch.from_numpy(places[first:last] - self._scaled_first).to(device) for places in (columns.before, columns.after)
        )
        self._share_W = torch.from_numpy(columns.share[first:last]).to(device)
        widest = max(scaled_width, last - first)
        self._block_rows = max(1, block_bytes // (4 * num_classes * widest))

    def iter_windows(self, rgb_HWC: np.ndarray) -> Iterator[_Window]:
        """Cut the panel's windows, row after row; only one row of them is held."""
        height, width = self._grid.window_hw
        start, end = self._grid.lefts[self._columns[0]], self._grid.lefts[self._columns[-1]] + width
        for row, top in enumerate(self._grid.tops):
            strip_HWC = _cut_scaled(rgb_HWC, self._grid.scaled_hw, (top, top + height), (start, end))
            for column in self._columns:
                left = self._grid.lefts[column] - start
                yield _Window(row, column, strip_HWC[:, left : left + width])

    def add(self, window: _Window, logits_KHW: Tensor) -> None:
        """Add a window's weighted logits, as far as they lie in the panel."""
        left = self._grid.lefts[window.column]
        first, last = max(left, self._scaled_first), min(left + self._grid.window_hw[1], self._scaled_last)
        top = self._grid.tops[window.row] - self._buffer_top
        sums_KHW = self._sums_KHW[
            :, top : top + self._grid.window_hw[0], first - self._scaled_first : last - self._scaled_first
        ]
        weight_HW = torch.outer(self._row_weights[window.row], self._column_weights[window.column, first - left : last - left])
        sums_KHW.addcmul_(logits_KHW[:, :, first - left : last - left].to(torch.float32), weight_HW)

    def advance_to(self, row: int) -> Iterator[Block]:
        """Before the windows of this row are added: yield what they will not touch, and move the buffer down."""
        if row == self._row:
            return
        self._row = row
        tops, (scaled_height, _) = self._grid.tops, self._grid.scaled_hw
        done = tops[row] if row < len(tops) else scaled_height  # scaled rows before this one are finished
        last_row = int(np.searchsorted(self._rows.after, done))
        yield from self._iter_finished(last_row)
        self._next_row = last_row
        needed = int(self._rows.before[last_row]) if last_row < len(self._rows.before) else done
        self._move_to(min(done, needed))

    def _iter_finished(self, last_row: int) -> Iterator[Block]:
        for top in range(self._next_row, last_row, self._block_rows):
            part = slice(top, min(top + self._block_rows, last_row))
            yield Block(top, self._first, self._resize(part))

    def _resize(self, part: slice) -> Tensor:
        """Bring rows of the buffer to the image's own size."""
        before, after = (places[part] - self._buffer_top for places in (self._rows.before, self._rows.after))
        if self._grid.size_hw[0] == self._grid.scaled_hw[0]:
            logits_KHW = self._sums_KHW[:, before[0] : before[-1] + 1]
        else:
            device = self._sums_KHW.device
            share_H = torch.from_numpy(self._rows.share[part]).to(device)
            upper_KHW, lower_KHW = (
                self._sums_KHW.index_select(1, torch.from_numpy(rows).to(device)) for rows in (before, after)
            )
            logits_KHW = torch.lerp(upper_KHW, lower_KHW, share_H[:, None])
        if self._grid.size_hw[1] == self._grid.scaled_hw[1]:
            return logits_KHW
        left_KHW, right_KHW = (logits_KHW.index_select(2, columns) for columns in (self._before_W, self._after_W))
        return torch.lerp(left_KHW, right_KHW, self._share_W)

    def _move_to(self, top: int) -> None:
        shift, rows = top - self._buffer_top, self._sums_KHW.shape[1]
        self._buffer_top = top
        if shift <= 0:
            return
        for start in range(0, rows - shift, shift):  # piece by piece: none overlaps the place where it goes
            num = min(shift, rows - shift - start)
            self._sums_KHW[:, start : start + num] = self._sums_KHW[:, start + shift : start + shift + num]
        self._sums_KHW[:, max(0, rows - shift) :] = 0


def _cut_scaled(rgb_HWC: np.ndarray, scaled_hw: tuple[int, int], rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
    """Cut rows and columns (first, behind the last) out of a scaled image, antialiased, of which only these are made.

    Returns:
        uint8, (rows, columns, 3); at scale 1 a view of the image.
    """
    height, width = rgb_HWC.shape[:2]
    (top, bottom), (left, right) = rows, columns
    if (height, width) == scaled_hw:
        return rgb_HWC[top:bottom, left:right]
    by_row, by_column = height / scaled_hw[0], width / scaled_hw[1]
    strip_HWC = np.empty((bottom - top, right - left, 3), dtype=np.uint8)
    step = max(1, int(_SOURCE_PIXELS / max(1.0, by_row * by_column * (right - left))))
    for first in range(top, bottom, step):
        last = min(first + step, bottom)
        # the far edge exactly: rounding must not ask for a pixel past it
        box = (first * by_row, left * by_column, min(last * by_row, height), min(right * by_column, width))
        resize_by_libraries(rgb_HWC, np.array(box), strip_HWC[first - top : last - top])
    return strip_HWC
