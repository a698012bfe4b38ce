"""Thirty-two 16-bit numbers at once, for kernels: LLVM's generic vectors, which it splits where a processor's are shorter.

Written here are the steps that LLVM does not find in plain loops: high halves of products, and turning rows of pixels into
columns. All are integer arithmetic and moves, so every machine gives the same numbers.

Places are bytes from an array's begin. Nothing checks them; what may be read and written is said at each.
"""

# ruff: noqa: ARG001 - numba gives an intrinsic and its generator more than they use, by position
from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

NUM_BYTES = 64  # of all lanes
ROWS = 8  # that are turned at once

_BIT8, _BIT16, _BIT32, _BIT64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_SHORTS, _LONGS = ir.VectorType(_BIT16, 32), ir.VectorType(_BIT32, 32)
_BYTES = ir.VectorType(_BIT8, 64)


class _Lanes(types.Type):
    """Numba's name of the thirty-two."""


_LANES = _Lanes("Lanes")


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _SHORTS)


def _load(context: Any, builder: Any, kind: Any, array: Any, place: Any, vector: Any) -> Any:
    loaded = builder.load(_point(context, builder, kind, array, place, vector))
    loaded.align = 1
    return loaded


def _store(context: Any, builder: Any, kind: Any, array: Any, place: Any, value: Any) -> None:
    builder.store(value, _point(context, builder, kind, array, place, value.type)).align = 1


def _point(context: Any, builder: Any, kind: Any, array: Any, place: Any, vector: Any) -> Any:
    first = builder.bitcast(cgutils.create_struct_proxy(kind)(context, builder, value=array).data, _BIT8.as_pointer())
    return builder.bitcast(builder.gep(first, [place]), vector.as_pointer())


def _move(builder: Any, place: Any, num: int) -> Any:
    return builder.add(place, ir.Constant(place.type, num))


def _shuffle(builder: Any, one: Any, two: Any, places: list[int]) -> Any:
    return builder.shuffle_vector(one, two, ir.Constant(ir.VectorType(_BIT32, len(places)), places))


def _same(vector: Any, number: int) -> Any:
    return ir.Constant(vector, [number] * vector.count)


def _splat_pair(builder: Any, pair: Any) -> Any:
    pairs = ir.VectorType(_BIT32, 16)
    first = builder.insert_element(ir.Constant(pairs, ir.Undefined), pair, ir.Constant(_BIT32, 0))
    return builder.bitcast(_shuffle(builder, first, first, [0] * 16), _SHORTS)


def _turn(builder: Any, rows: list[Any]) -> list[Any]:
    """Turn a square of eight vectors of eight numbers."""
    for step in (1, 2, 4):
        upper = [lane - step + 8 if lane & step else lane for lane in range(8)]
        lower = [lane + 8 if lane & step else lane + step for lane in range(8)]
        rows = [_shuffle(builder, rows[row & ~step], rows[row | step], lower if row & step else upper) for row in range(8)]
    return rows


@intrinsic
def splat(typing_context: Any, pair: Any) -> Any:
    """Return lanes of two numbers in turn.

    Args:
        typing_context: numba's.
        pair: uint32, the second number in its upper half. Processors read 32 bits into all lanes faster than 16.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _splat_pair(builder, arguments[0])

    return _LANES(types.uint32), generate


@intrinsic
def load(typing_context: Any, data: Any, place: Any) -> Any:
    """Read thirty-two numbers."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data, place = arguments
        return _load(context, builder, signature.args[0], data, place, _SHORTS)

    return _LANES(data, types.int64), generate


def _load_levels(kind: Any, first: int) -> Any:
    places = [place for lane in range(4) for byte in range(8) for place in (64, 16 * lane + first + byte)]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data, place = arguments
        levels = _load(context, builder, signature.args[0], data, place, _BYTES)
        return builder.bitcast(_shuffle(builder, levels, _same(_BYTES, 0), places), _SHORTS)

    return _LANES(kind, types.int64), generate


@intrinsic
def load_first_levels(typing_context: Any, data: Any, place: Any) -> Any:
    """Read 64 bytes, and return the first eight of each sixteen, times 256: what processors have an instruction for."""
    return _load_levels(data, 0)


@intrinsic
def load_last_levels(typing_context: Any, data: Any, place: Any) -> Any:
    """Read 64 bytes, and return the last eight of each sixteen, times 256."""
    return _load_levels(data, 8)


@intrinsic
def store_both(typing_context: Any, data: Any, place: Any, first: Any, last: Any) -> Any:
    """Write what became of `load_first_levels` and `load_last_levels`, in the order of their bytes: 128 bytes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data, place, *parts = arguments
        first, last = (builder.bitcast(part, ir.VectorType(_BIT64, 8)) for part in parts)
        for half in (0, 1):
            places = [4 * half + 2 * lane + part + word for lane in (0, 1) for part in (0, 8) for word in (0, 1)]
            numbers = builder.bitcast(_shuffle(builder, first, last, places), _SHORTS)
            _store(context, builder, signature.args[0], data, _move(builder, place, half * NUM_BYTES), numbers)
        return context.get_dummy_value()

    return types.void(data, types.int64, _LANES, _LANES), generate


@intrinsic
def store_levels(typing_context: Any, data: Any, place: Any, lanes: Any) -> Any:
    """Write each number over 256, cut off, as a byte: 32 bytes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data, place, numbers = arguments
        levels = builder.trunc(builder.lshr(numbers, _same(_SHORTS, 8)), ir.VectorType(_BIT8, 32))
        _store(context, builder, signature.args[0], data, place, levels)
        return context.get_dummy_value()

    return types.void(data, types.int64, _LANES), generate


@intrinsic
def add_product(typing_context: Any, total: Any, lanes: Any, pair: Any) -> Any:
    """Return total + (lanes * weights >> 16), each product cut off; for `pair` see `splat`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        total, numbers, pair = arguments
        product = builder.mul(builder.zext(numbers, _LONGS), builder.zext(_splat_pair(builder, pair), _LONGS))
        return builder.add(total, builder.trunc(builder.lshr(product, _same(_LONGS, 16)), _SHORTS))

    return _LANES(_LANES, _LANES, types.uint32), generate


@intrinsic
def turn_two_columns(typing_context: Any, rows: Any, stride: Any, place: Any, columns: Any, out: Any) -> Any:
    """Turn two pixels of eight rows: three numbers a pixel, row by row -> four numbers, column by column.

    Args:
        typing_context: numba's.
        rows: of 16-bit numbers; 16 bytes of each row are read, of which 12 count.
        stride: bytes between two rows.
        place: of the first row's first pixel.
        columns: receives twice 64 bytes; what is each pixel's fourth number is not said.
        out: where.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, stride, place, columns, out = arguments
        row_kind, _, _, column_kind, _ = signature.args
        parts = []
        for row in range(ROWS):
            at = builder.add(place, builder.mul(stride, ir.Constant(stride.type, row)))
            parts.append(_load(context, builder, row_kind, rows, at, ir.VectorType(_BIT16, 8)))
        spread = [8 * row + number for row in range(4) for number in (0, 1, 2, 2, 3, 4, 5, 5)]
        joined = [_join_four(builder, parts[first::2]) for first in (0, 1)]
        even, odd = (builder.bitcast(_shuffle(builder, part, part, spread), ir.VectorType(_BIT64, 8)) for part in joined)
        for column in (0, 1):
            order = [2 * row + column + way for row in range(4) for way in (0, 8)]
            pixels = _shuffle(builder, even, odd, order)
            _store(context, builder, column_kind, columns, _move(builder, out, column * NUM_BYTES), pixels)
        return context.get_dummy_value()

    return types.void(rows, types.int64, types.int64, columns, types.int64), generate


def _join_four(builder: Any, parts: list[Any]) -> Any:
    lower, upper = (_shuffle(builder, parts[first], parts[first + 1], list(range(16))) for first in (0, 2))
    return _shuffle(builder, lower, upper, list(range(32)))


@intrinsic
def turn_levels_back(typing_context: Any, columns: Any, place: Any, rows: Any, out: Any, stride: Any) -> Any:
    """Turn eight pixels of eight rows: four bytes a pixel, column by column -> three bytes, row by row.

    Args:
        typing_context: numba's.
        columns: bytes; 8 x 32 are read.
        place: of the first column.
        rows: receives 24 bytes in each of eight rows.
        out: of the first row's first pixel.
        stride: bytes between two rows.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        columns, place, rows, out, stride = arguments
        column_kind, _, row_kind, _, _ = signature.args
        square = [
            _load(context, builder, column_kind, columns, _move(builder, place, 32 * column), ir.VectorType(_BIT32, 8))
            for column in range(8)
        ]
        for row, pixels in enumerate(_turn(builder, square)):
            levels = builder.bitcast(pixels, ir.VectorType(_BIT8, 32))
            at = builder.add(out, builder.mul(stride, ir.Constant(stride.type, row)))
            packed = [4 * pixel + channel for pixel in range(8) for channel in range(3)]
            for first, last in ((0, 16), (16, 24)):
                part = _shuffle(builder, levels, levels, packed[first:last])
                _store(context, builder, row_kind, rows, _move(builder, at, first), part)
        return context.get_dummy_value()

    return types.void(columns, types.int64, rows, types.int64, types.int64), generate
