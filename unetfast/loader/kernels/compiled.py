"""What all kernels share: how they are compiled, and several bytes at once from any place of an array.

Kernels run without the interpreter's lock. A thread that gives the lock up for each of ten short calls spends as long, beside a
second such thread, in getting it back as in the calls: what belongs together is one kernel.

Nothing here checks bounds, nor does numba: a kernel checks what comes from a file, and its caller gives it arrays of the
sizes that it states. Indices are unsigned (`numpy.uintp`) where speed matters, since a signed one is tested for counting from
the end.

To import this module needs numba; `find.find_kernel` is the way to a kernel.
"""

# ruff: noqa: ARG001 - numba gives an intrinsic and its generator more than they use, by position
from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any, TypeVar, cast

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

Int = Any  # a whole number of the kind that numba infers: it may not be what mypy would call an int
Many = tuple[Any, ...]
FunctionT = TypeVar("FunctionT", bound=Callable[..., object])

_logger = logging.getLogger("unetfast.loader")
_BYTE, _WORD = ir.IntType(8), ir.IntType(64)


def compile_kernel(function: Callable[..., Any], signature: Any) -> Callable[..., Any]:
    """Compile a function for one signature, or load what an earlier process has compiled.

    Numba keeps the code beside the function's file or in the user's cache folder (NUMBA_CACHE_DIR); where it cannot, this
    process compiles its own.

    Args:
        function: of a module's top level.
        signature: as `numba.njit` takes it.
    """
    options = {"nogil": True, "error_model": "numpy"}
    # numba finds kept code by the function's name and looks only at its own file, not at those of its parts
    named = FunctionType(function.__code__, function.__globals__, function.__name__)
    named.__qualname__ = f"{function.__qualname__}_{_digest_sources()}"
    try:
        kernel = numba.njit(cache=True, **options)(named)
        if not any(Path(kernel.stats.cache_path).glob(f"*{named.__qualname__}-*.nbi")):
            _tell_once("are being compiled for this machine, once: up to half a minute")
        kernel.compile(signature)
    except Exception as error:  # the folder to keep it in is not there, full, or holds a damaged file
        _tell_once(f"cannot be kept ({error}), so that each process compiles them; NUMBA_CACHE_DIR names another folder")
        kernel = numba.njit(**options)(named)
        kernel.compile(signature)
    kernel.disable_compile()
    return cast(Callable[..., Any], kernel)


@functools.cache
def _tell_once(what: str) -> None:
    _logger.warning("steps of the CPU loader %s", what)


@functools.cache
def _digest_sources() -> str:
    """Return what changes with any file of this package."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def part(function: FunctionT) -> FunctionT:
    """Let a function be compiled as a part of the kernels that call it."""
    return cast(FunctionT, numba.njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function))


def array(dtype: Any, ndim: int, *, readonly: bool = False) -> Any:
    """Return the type of a contiguous array.

    Args:
        dtype: numba's.
        ndim: number of axes.
        readonly: whether it may lie in memory that cannot be written, like `bytes`.
    """
    return numba.types.Array(dtype, ndim, "C", readonly=readonly)


def _find_word(context: Any, builder: Any, kind: Any, words: Any, place: Any) -> Any:
    first = builder.bitcast(cgutils.create_struct_proxy(kind)(context, builder, value=words).data, _BYTE.as_pointer())
    return builder.bitcast(builder.gep(first, [place]), _WORD.as_pointer())


@intrinsic
def load_u64(typing_context: Any, data: Any, place: Any) -> Any:
    """Read eight bytes, little-endian on the processors that PyTorch runs on.

    Args:
        typing_context: numba's.
        data: contiguous array of any dtype.
        place: first of the eight, bytes from the array's begin.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        loaded = builder.load(_find_word(context, builder, signature.args[0], *arguments))
        loaded.align = 1
        return loaded

    return types.uint64(data, types.int64), generate


@intrinsic
def store_u64(typing_context: Any, data: Any, place: Any, value: Any) -> Any:
    """Write eight bytes; see `load_u64`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words, at, word = arguments
        builder.store(word, _find_word(context, builder, signature.args[0], words, at)).align = 1
        return context.get_dummy_value()

    return types.void(data, types.int64, types.uint64), generate


@intrinsic
def load_u16(typing_context: Any, data: Any, place: Any) -> Any:
    """Read two bytes, little-endian, as int64; see `load_u64`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _find_word(context, builder, signature.args[0], *arguments)
        loaded = builder.load(builder.bitcast(pointer, ir.IntType(16).as_pointer()))
        loaded.align = 1
        return builder.zext(loaded, _WORD)

    return types.int64(data, types.int64), generate


@intrinsic
def copy_16(typing_context: Any, data: Any, place: Any, out: Any, at: Any) -> Any:
    """Copy sixteen bytes, all read before one is written; see `load_u64`.

    Args:
        typing_context: numba's.
        data: contiguous array of any dtype.
        place: first of the bytes, from its begin.
        out: likewise, the same array or another.
        at: where they go.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pair = ir.VectorType(_WORD, 2).as_pointer()
        source = _find_word(context, builder, signature.args[0], *arguments[:2])
        loaded = builder.load(builder.bitcast(source, pair))
        loaded.align = 1
        target = _find_word(context, builder, signature.args[2], *arguments[2:])
        builder.store(loaded, builder.bitcast(target, pair)).align = 1
        return context.get_dummy_value()

    return types.void(data, types.int64, out, types.int64), generate


@intrinsic
def swap_bytes(typing_context: Any, value: Any) -> Any:
    """Reverse the order of eight bytes."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_WORD, [_WORD])
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.bswap.i64"), arguments)

    return types.uint64(types.uint64), generate


def _make_operation(kind: Any, operation: str) -> Any:
    """Return an operation on two whole numbers of a kind that gives one of it, cut off to its bits.

    Numba's own widen to 64 bits, so that a vector instruction would do four at once where it could do eight or sixteen.
    """

    @intrinsic
    def operate(typing_context: Any, left: Any, right: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, operation)(*arguments)

        return kind(kind, kind), generate

    return operate


add32, sub32, mul32, left32, right32 = (_make_operation(types.int32, name) for name in ("add", "sub", "mul", "shl", "ashr"))
add16, sub16, mul16, right16 = (_make_operation(types.int16, name) for name in ("add", "sub", "mul", "ashr"))


@intrinsic
def high16(typing_context: Any, left: Any, right: Any) -> Any:
    """Return the upper 16 bits of a product of two int16."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        half, whole = ir.IntType(16), ir.IntType(32)
        product = builder.mul(*(builder.sext(argument, whole) for argument in arguments))
        return builder.trunc(builder.ashr(product, ir.Constant(whole, 16)), half)

    return types.int16(types.int16, types.int16), generate
