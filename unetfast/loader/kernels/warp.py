"""The bilinear warp of an RGB image, in two thirds of OpenCV's time, to the same values.

The sums are those of OpenCV 5's `warpAffine` on processors that multiply and add in one rounding (AVX2 with FMA): positions and
weights in float32, `fma(column, factor, row's part)`, first the mean across, then that down, rounded half to even. OpenCV
computes the last columns of a width that is no multiple of 16 by other sums: such images are left to it, and so are processors
that round twice.

Axis letters: H height, W width, C channels (R, G, B).
"""

# ruff: noqa: ARG001 - numba gives an intrinsic and its generator more than they use, by position
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from unetfast.loader.kernels.compiled import add32, array, compile_kernel, load_u64, mul32, part, sub32
from unetfast.loader.kernels.find import NoKernelError

COUNT = 16  # pixels at once
_MAX_SIDE = (1 << 15) - 2  # of the image that is warped, pixels
_OUTSIDE, _AT_BORDER = -1, -2  # what places begin with where no neighbour, or not all four, are inside of the image

_PITCH = 1 << 15  # of places at the border

_BYTE, _INT, _FLOAT, _LONG = ir.IntType(8), ir.IntType(32), ir.FloatType(), ir.IntType(64)
_INTS, _FLOATS, _PAIRS = ir.VectorType(_INT, COUNT), ir.VectorType(_FLOAT, COUNT), ir.VectorType(_INT, 2 * COUNT)
_FMA3 = 12  # of OpenCV's CpuFeatures
_TO_BYTE = 8388608.0  # 2 ** 23: the sum's last bits are the number, rounded half to even


def build_kernel() -> Callable[..., bool]:
    """Compile `warp`, or load what an earlier process has compiled.

    Returns:
        The kernel; takes what `warp` takes, all arrays contiguous.

    Raises:
        NoKernelError: OpenCV computes other sums here.
    """
    check_opencv()
    image, changed = array(numba.uint8, 3, readonly=True), array(numba.uint8, 3)
    return compile_kernel(_warp_alone, numba.boolean(image, array(numba.float64, 2, readonly=True), changed))


def check_opencv() -> None:
    """Raise NoKernelError where OpenCV's sums are not those of this warp."""
    if int(cv2.__version__.split(".")[0]) < 5:
        raise NoKernelError(f"OpenCV {cv2.__version__} warps by other sums")
    if not cv2.checkHardwareSupport(_FMA3):
        raise NoKernelError("this processor, or OpenCV on it, has no FMA3")


@intrinsic
def _fma(typing_context: Any, factor: Any, other: Any, added: Any) -> Any:
    """Return factor * other + added, rounded once, float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.call(_declare_fma(builder, _FLOAT, "llvm.fma.f32"), arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


def _declare_fma(builder: Any, kind: Any, name: str) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind] * 3), name)


def _point(context: Any, builder: Any, kind: Any, data: Any, place: Any, vector: Any) -> Any:
    first = builder.bitcast(cgutils.create_struct_proxy(kind)(context, builder, value=data).data, _BYTE.as_pointer())
    return builder.bitcast(builder.gep(first, [place]), vector.as_pointer())


def _load(builder: Any, pointer: Any) -> Any:
    loaded = builder.load(pointer)
    loaded.align = 1
    return loaded


def _all(kind: Any, number: float) -> Any:
    """Return a constant of equal numbers."""
    return ir.Constant(ir.VectorType(kind, COUNT), [ir.Constant(kind, number)] * COUNT)


def _shuffle(builder: Any, numbers: Any, places: list[int]) -> Any:
    mask = ir.Constant(ir.VectorType(_INT, len(places)), [ir.Constant(_INT, place) for place in places])
    return builder.shuffle_vector(numbers, numbers, mask)


@intrinsic
def _mix(typing_context: Any, upper_W: Any, lower_W: Any, across_W: Any, down_W: Any, column: Any, out: Any, place: Any) -> Any:
    """Write sixteen mixed pixels.

    Args:
        typing_context: numba's.
        upper_W: a pixel and the one behind it, six bytes of eight, uint64.
        lower_W: the two below them, likewise.
        across_W: how far between the left and the right ones each position lies, float32.
        down_W: how far between the upper and the lower ones, float32.
        column: first of the sixteen.
        out: receives them, uint8.
        place: in `out`, bytes.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds, (upper, lower, across, down, at, pixels, first) = signature.args, arguments
        by_8, by_4 = builder.mul(at, ir.Constant(_LONG, 8)), builder.mul(at, ir.Constant(_LONG, 4))
        fma = _declare_fma(builder, _FLOATS, f"llvm.fma.v{COUNT}f32")
        corners = []
        for kind, row in ((kinds[0], upper), (kinds[1], lower)):
            for side in (0, 3):  # bytes from the begin of each eight
                pairs = _load(builder, _point(context, builder, kind, row, builder.add(by_8, ir.Constant(_LONG, side)), _PAIRS))
                corners.append(_shuffle(builder, pairs, list(range(0, 2 * COUNT, 2))))
        weight_x = _load(builder, _point(context, builder, kinds[2], across, by_4, _FLOATS))
        weight_y = _load(builder, _point(context, builder, kinds[3], down, by_4, _FLOATS))
        mixed = _all(_INT, 0)
        for shift in (0, 8, 16):
            levels = [builder.and_(builder.lshr(corner, _all(_INT, shift)), _all(_INT, 255)) for corner in corners]
            left_up, right_up, left_low, right_low = (builder.sitofp(level, _FLOATS) for level in levels)
            up = builder.call(fma, [weight_x, builder.fsub(right_up, left_up), left_up])
            low = builder.call(fma, [weight_x, builder.fsub(right_low, left_low), left_low])
            level = builder.fadd(builder.call(fma, [weight_y, builder.fsub(low, up), up]), _all(_FLOAT, _TO_BYTE))
            level = builder.and_(builder.bitcast(level, _INTS), _all(_INT, 255))
            mixed = builder.or_(mixed, builder.shl(level, _all(_INT, shift)))
        four = builder.bitcast(mixed, ir.VectorType(_BYTE, 4 * COUNT))
        rgb = _shuffle(builder, four, [4 * pixel + channel for pixel in range(COUNT) for channel in range(3)])
        builder.store(rgb, _point(context, builder, kinds[5], pixels, first, rgb.type)).align = 1
        return context.get_dummy_value()

    return types.void(upper_W, lower_W, across_W, down_W, types.int64, out, types.int64), generate


@part
def _find_places(
    row: int, matrix: np.ndarray, hw: tuple[int, int], last: int, place_W: np.ndarray, across_W: np.ndarray, down_W: np.ndarray
) -> None:
    """Find where the pixels of a row lie.

    Args:
        row: of the pixels.
        matrix: as `warp` has it.
        hw: of the image.
        last: place up to which the neighbours' bytes can be loaded by `load_u64`.
        place_W: receives places of upper left neighbours, pixels from the image's begin, int32; `_OUTSIDE`, or `_AT_BORDER`
            minus (top + 1) * `_PITCH` + left + 1.
        across_W: receives how far to the right of that neighbour they lie, float32.
        down_W: how far below it.
    """
    height, width = np.int32(hw[0]), np.int32(hw[1])
    x_by_x, x_by_y, x_shift = np.float32(matrix[0, 0]), np.float32(matrix[0, 1]), np.float32(matrix[0, 2])
    y_by_x, y_by_y, y_shift = np.float32(matrix[1, 0]), np.float32(matrix[1, 1]), np.float32(matrix[1, 2])
    x_of_row = np.float32(np.float32(np.float32(row) * x_by_y) + x_shift)
    y_of_row = np.float32(np.float32(np.float32(row) * y_by_y) + y_shift)
    least, far_x, far_y = np.float32(-1), np.float32(width), np.float32(height)
    end_x, end_y, one, to_border = np.uint32(width - 1), np.uint32(height - 1), np.int32(1), np.int32(_AT_BORDER)
    for column in range(len(place_W)):
        x = _fma(np.float32(np.int32(column)), x_by_x, x_of_row)
        y = _fma(np.float32(np.int32(column)), y_by_x, y_of_row)
        whole_x, whole_y = np.floor(x), np.floor(y)
        left, top = np.int32(whole_x), np.int32(whole_y)
        place = add32(mul32(top, width), left)
        at_border = sub32(to_border, add32(mul32(add32(top, one), np.int32(_PITCH)), add32(left, one)))
        is_near = (x >= least) & (x < far_x) & (y >= least) & (y < far_y)
        is_inside = (np.uint32(left) < end_x) & (np.uint32(top) < end_y) & (place <= np.int32(last))
        place_W[column] = (place if is_inside else at_border) if is_near else np.int32(_OUTSIDE)
        across_W[column] = x - whole_x
        down_W[column] = y - whole_y


@part
def _take_pair(rgb: np.ndarray, hw: tuple[int, int], top: Any, left: Any) -> Any:
    """Return a pixel and the one behind it as `_mix` wants them, 0 for what lies outside; eight bytes need not follow."""
    if top < 0 or top >= hw[0]:
        return np.uint64(0)
    place = 3 * (top * hw[1] + left)
    first = min(max(place, 0), len(rgb) - 8)
    pair = load_u64(rgb, first) << np.uint64(8 * max(first - place, 0)) >> np.uint64(8 * max(place - first, 0))
    if left < 0:
        pair &= np.uint64(0xFF_FFFF_00_0000)
    if left + 1 >= hw[1]:
        pair &= np.uint64(0xFF_FFFF)
    return pair


@part
def warp(rgb_HWC: np.ndarray, matrix: np.ndarray, out_HWC: np.ndarray) -> bool:
    """Do what `pixels.warp_image` says.

    Args:
        rgb_HWC: uint8, (H, W, 3).
        matrix: from positions in `out_HWC` to positions in `rgb_HWC`, whole numbers at pixel centres, float64, (2, 3).
        out_HWC: receives the result, uint8, another array.

    Returns:
        Whether it was done; images of a few pixels, of very many, and of other widths are left to OpenCV.
    """
    hw, (out_height, out_width) = rgb_HWC.shape[:2], out_HWC.shape[:2]
    if out_width % COUNT or max(hw) > _MAX_SIDE or rgb_HWC.size < 8:
        return False
    rgb, out, pitch = rgb_HWC.reshape(-1), out_HWC.reshape(-1), 3 * hw[1]
    place_W = np.empty(out_width, np.int32)
    across_W, down_W = np.empty(out_width, np.float32), np.empty(out_width, np.float32)
    # one more than there are columns, for loads that begin in the middle of one
    upper_W, lower_W = np.empty(out_width + 1, np.uint64), np.empty(out_width + 1, np.uint64)
    last = (len(rgb) - 8 - pitch) // 3
    for row in range(out_height):
        _find_places(row, matrix, hw, last, place_W, across_W, down_W)
        for column in range(out_width):
            place = np.int64(place_W[column])
            if place >= 0:
                upper_W[column], lower_W[column] = load_u64(rgb, 3 * place), load_u64(rgb, 3 * place + pitch)
            elif place == _OUTSIDE:
                upper_W[column], lower_W[column] = np.uint64(0), np.uint64(0)
            else:
                top, left = (_AT_BORDER - place) // _PITCH - 1, (_AT_BORDER - place) % _PITCH - 1
                upper_W[column], lower_W[column] = _take_pair(rgb, hw, top, left), _take_pair(rgb, hw, top + 1, left)
        for column in range(0, out_width, COUNT):
            _mix(upper_W, lower_W, across_W, down_W, column, out, 3 * (row * out_width + column))
    return True


def _warp_alone(rgb_HWC: np.ndarray, matrix: np.ndarray, out_HWC: np.ndarray) -> bool:
    return warp(rgb_HWC, matrix, out_HWC)
