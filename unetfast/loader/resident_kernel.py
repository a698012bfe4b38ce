"""Pixels of the resident backend: one or two Triton kernels make a whole batch out of a data set that lies on the device.

What each step means stands in augment.py. `_resize` does step 1 with an antialiasing triangle filter whose taps may reach past
the box into the image. `_finish` does the rest in one pass: flips and warp by one bilinear lookup, colour, and the mask's
nearest lookup. They are two because of the warp: its lookup reads four resized pixels, so within one kernel every pixel would
be resized four times (at a reduction of 8 that is 1,024 taps instead of 256), and because the CPU backend rounds between the
steps: so the two differ by a level at most where nothing is turned. Where the boxes never change, the images were resized
before and `_finish` runs alone.

Positions are computed in float64, as on the host, so a mask's pixel never depends on the backend; weights and colours in
float32. Only elementary operations of Triton are used, so that its interpreter runs them on a CPU for the tests
(TRITON_INTERPRET=1 when this module is imported).

Axis letters: N batch, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]

from unetfast.loader.augment import Augmentation

# a sample's row of numbers, all float64, in which whole numbers below 2**53 are exact:
# where its pixels begin (image, mask), stored height and width, crop box, then three matrices
NUM_COLUMNS = 32
_BLOCK_PX = 256
# a product and a sum are rounded each, as on the host: in one step, positions that fall on a pixel's edge would round to the
# other side of it (in a flipped mask of 128 columns, 16 of 160)
EXACT = {"enable_fp_fusion": False}

_jit = cast(Callable[[Any], Any], triton.jit)


def lay_out_numbers(
    numbers: Augmentation, image_starts: np.ndarray, mask_starts: np.ndarray, stored_hw: np.ndarray, target_hw: tuple[int, int]
) -> np.ndarray:
    """Write what the kernels need to know of n samples, one row each.

    Args:
        numbers: of the samples; boxes that masks choose must be chosen.
        image_starts: where each sample's image begins in the images' memory, bytes, (n,).
        mask_starts: where each sample's mask begins in the masks' memory, elements, (n,).
        stored_hw: heights and widths as stored, pixels, (n, 2).
        target_hw: height and width of the batch, pixels.

    Returns:
        float64, (n, NUM_COLUMNS).
    """
    num = len(numbers)
    rows = np.empty((num, NUM_COLUMNS))
    rows[:, 0], rows[:, 1], rows[:, 2:4], rows[:, 4:8] = image_starts, mask_starts, stored_hw, numbers.crop_yxyx
    lookup = np.where(numbers.has_warp[:, None, None], numbers.warp_matrix, np.eye(2, 3))
    # from a position in the flipped image to one in the unflipped
    sign = np.stack([np.where(numbers.hflip, -1.0, 1.0), np.where(numbers.vflip, -1.0, 1.0)], axis=1)
    lookup = lookup * sign[:, :, None]
    lookup[:, :, 2] += np.stack([numbers.hflip * target_hw[1], numbers.vflip * target_hw[0]], axis=1)
    rows[:, 8:14] = lookup.reshape(num, 6)
    rows[:, 14:20] = numbers.mask_matrix.reshape(num, 6)
    rows[:, 20:32] = np.where(numbers.has_color[:, None, None], numbers.color_matrix, np.eye(3, 4)).reshape(num, 12)
    return rows


def render_batch(
    images: torch.Tensor,
    masks: torch.Tensor,
    numbers: torch.Tensor,
    target_hw: tuple[int, int],
    *,
    are_resized: bool,
    mask_bits: int,
    ignore_index: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a batch, on the current stream of its device; waits for nothing.

    Args:
        images: RGB pixels, row by row, image after image, uint8, flat.
        masks: class ids likewise, uint8 or int16 (the bits of uint16), flat; with one bit, rows of ceil(W / 8) bytes, most
            significant bit first.
        numbers: of `lay_out_numbers`, on the same device.
        target_hw: height and width of the batch, pixels.
        are_resized: whether each image has the target's size already, its whole being the crop box.
        mask_bits: 1, 8 or 16.
        ignore_index: id of what lies outside of the crop box.

    Returns:
        Images, uint8, (N, H, W, 3), and masks, uint8 or int16, (N, H, W).
    """
    num, (height, width) = len(numbers), target_hw
    device = images.device
    image_NHWC = torch.empty((num, height, width, 3), dtype=torch.uint8, device=device)
    mask_NHW = torch.empty((num, height, width), dtype=masks.dtype, device=device)
    grid = (triton.cdiv(height * width, _BLOCK_PX), num)  # the second number has a limit of 65,535
    source = images
    if not are_resized:
        source = torch.empty_like(image_NHWC)
        _resize[grid](images, numbers, source, height, width, COLUMNS=NUM_COLUMNS, BLOCK=_BLOCK_PX)
    ignore = ignore_index if mask_bits < 16 else ignore_index - (1 << 16) * (ignore_index >= 1 << 15)
    _finish[grid](
        source,
        masks,
        numbers,
        image_NHWC,
        mask_NHW,
        height,
        width,
        ignore,
        ARE_RESIZED=are_resized,
        MASK_BITS=mask_bits,
        COLUMNS=NUM_COLUMNS,
        BLOCK=_BLOCK_PX,
        **EXACT,
    )
    return image_NHWC, mask_NHW


@_jit
def _resize(images, numbers, out, out_height, out_width, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(1)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_pixel = place < out_height * out_width
    numbers += row * COLUMNS
    images += tl.load(numbers).to(tl.int64)
    height, width = tl.load(numbers + 2).to(tl.int32), tl.load(numbers + 3).to(tl.int32)
    top, left = tl.load(numbers + 4).to(tl.float32), tl.load(numbers + 5).to(tl.float32)
    step_y = (tl.load(numbers + 6).to(tl.float32) - top) / out_height
    step_x = (tl.load(numbers + 7).to(tl.float32) - left) / out_width
    reach_y, reach_x = tl.maximum(step_y, 1.0), tl.maximum(step_x, 1.0)
    num_y, num_x = (2 * reach_y).to(tl.int32) + 2, (2 * reach_x).to(tl.int32) + 2
    centre_y = top + ((place // out_width).to(tl.float32) + 0.5) * step_y
    centre_x = left + ((place % out_width).to(tl.float32) + 0.5) * step_x
    first_y = tl.floor(centre_y - reach_y + 0.5).to(tl.int32)
    first_x = tl.floor(centre_x - reach_x + 0.5).to(tl.int32)
    red, green = tl.full((BLOCK,), 0.0, tl.float32), tl.full((BLOCK,), 0.0, tl.float32)
    blue, total = tl.full((BLOCK,), 0.0, tl.float32), tl.full((BLOCK,), 0.0, tl.float32)
    for tap_y in range(num_y):
        y = first_y + tap_y
        weight_y = tl.maximum(1.0 - tl.abs(y.to(tl.float32) + 0.5 - centre_y) / reach_y, 0.0)
        weight_y = tl.where((y >= 0) & (y < height), weight_y, 0.0)
        line = y.to(tl.int64) * width
        for tap_x in range(num_x):
            x = first_x + tap_x
            weight = tl.maximum(1.0 - tl.abs(x.to(tl.float32) + 0.5 - centre_x) / reach_x, 0.0) * weight_y
            weight = tl.where((x >= 0) & (x < width), weight, 0.0)
            counts = is_pixel & (weight > 0)
            pixel = images + (line + x) * 3
            red += weight * tl.load(pixel, mask=counts, other=0).to(tl.float32)
            green += weight * tl.load(pixel + 1, mask=counts, other=0).to(tl.float32)
            blue += weight * tl.load(pixel + 2, mask=counts, other=0).to(tl.float32)
            total += weight
    total = tl.where(total > 0, total, 1.0)
    result = out + (row.to(tl.int64) * out_height * out_width + place) * 3
    tl.store(result, tl.floor(red / total + 0.5).to(tl.uint8), mask=is_pixel)
    tl.store(result + 1, tl.floor(green / total + 0.5).to(tl.uint8), mask=is_pixel)
    tl.store(result + 2, tl.floor(blue / total + 0.5).to(tl.uint8), mask=is_pixel)


@_jit
def _finish(  # type: ignore[no-untyped-def]
    source,
    masks,
    numbers,
    out_image,
    out_mask,
    height,
    width,
    ignore_index,
    ARE_RESIZED: tl.constexpr,
    MASK_BITS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(1)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_pixel = place < height * width
    numbers += row * COLUMNS
    target = row.to(tl.int64) * height * width + place
    y, x = (place // width).to(tl.float64) + 0.5, (place % width).to(tl.float64) + 0.5

    # flips and warp: one bilinear lookup, 0 outside; without a warp it falls on one pixel
    if ARE_RESIZED:
        source += tl.load(numbers).to(tl.int64)
    else:
        source += row.to(tl.int64) * height * width * 3
    at_x = tl.load(numbers + 8) * x + tl.load(numbers + 9) * y + tl.load(numbers + 10) - 0.5
    at_y = tl.load(numbers + 11) * x + tl.load(numbers + 12) * y + tl.load(numbers + 13) - 0.5
    floor_x, floor_y = tl.floor(at_x), tl.floor(at_y)
    part_x, part_y = (at_x - floor_x).to(tl.float32), (at_y - floor_y).to(tl.float32)
    first_x, first_y = floor_x.to(tl.int32), floor_y.to(tl.int32)
    red, green = tl.full((BLOCK,), 0.0, tl.float32), tl.full((BLOCK,), 0.0, tl.float32)
    blue = tl.full((BLOCK,), 0.0, tl.float32)
    for corner in tl.static_range(4):
        corner_x, corner_y = first_x + corner % 2, first_y + corner // 2
        weight_x = part_x if corner % 2 else 1.0 - part_x
        weight = weight_x * (part_y if corner // 2 else 1.0 - part_y)
        counts = is_pixel & (weight > 0) & (corner_x >= 0) & (corner_x < width) & (corner_y >= 0) & (corner_y < height)
        pixel = source + (corner_y * width + corner_x) * 3
        red += weight * tl.load(pixel, mask=counts, other=0).to(tl.float32)
        green += weight * tl.load(pixel + 1, mask=counts, other=0).to(tl.float32)
        blue += weight * tl.load(pixel + 2, mask=counts, other=0).to(tl.float32)
    red, green, blue = tl.floor(red + 0.5), tl.floor(green + 0.5), tl.floor(blue + 0.5)

    result = out_image + target * 3
    for channel in tl.static_range(3):
        by = numbers + 20 + 4 * channel
        value = tl.load(by).to(tl.float32) * red + tl.load(by + 1).to(tl.float32) * green
        value += tl.load(by + 2).to(tl.float32) * blue + tl.load(by + 3).to(tl.float32)
        value = tl.minimum(tl.maximum(tl.floor(value + 0.5), 0.0), 255.0)
        tl.store(result + channel, value.to(tl.uint8), mask=is_pixel)

    # mask: the class at the floor of one matrix
    masks += tl.load(numbers + 1).to(tl.int64)
    stored_width = tl.load(numbers + 3).to(tl.int64)
    column = tl.floor(tl.load(numbers + 15) * y + tl.load(numbers + 16) + tl.load(numbers + 14) * x)
    line = tl.floor(tl.load(numbers + 18) * y + tl.load(numbers + 19) + tl.load(numbers + 17) * x)
    inside = (line >= tl.load(numbers + 4)) & (line < tl.load(numbers + 6)) & is_pixel
    inside = inside & (column >= tl.load(numbers + 5)) & (column < tl.load(numbers + 7))
    line, column = line.to(tl.int64), column.to(tl.int64)
    if MASK_BITS == 1:
        eight = tl.load(masks + line * ((stored_width + 7) // 8) + column // 8, mask=inside, other=0).to(tl.int32)
        found = (eight >> (7 - column % 8).to(tl.int32)) & 1
    else:
        found = tl.load(masks + line * stored_width + column, mask=inside, other=0).to(tl.int32)
    found = tl.where(inside, found, ignore_index)
    tl.store(out_mask + target, found.to(out_mask.dtype.element_ty), mask=is_pixel)
