"""The way to compiled code: a kernel, or why there is none. Does not need numba."""

from __future__ import annotations

import functools
import importlib
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal

_ROOM = "unetfast.loader.kernels"
_building = threading.Lock()


class NoKernelError(Exception):
    """Raised by a `build_kernel` that has nothing to offer here; says why in one line."""


@dataclass(frozen=True, slots=True)
class KernelState:
    """Compiled code, or why it cannot be had.

    Args:
        call: takes what its module's `build_kernel` says; None where there is none.
        problem: why, in one line for people; "" where there is one.
    """

    call: Callable[..., Any] | None
    problem: str = ""


@functools.cache
def find_kernel(name: Literal["mask", "jpeg", "resize", "lz4", "packed", "warp"], *arguments: Hashable) -> KernelState:
    """Build a kernel, or load what an earlier process has compiled; later calls return the same one.

    Numba is imported here. To compile takes seconds of a core once a machine, to load about half a second once a process.

    Args:
        name: of its module in this package.
        arguments: for its `build_kernel`.
    """
    with _building:  # threads that ask at the same time share one
        return _build(name, *arguments)


def forget_kernels() -> None:
    """Let what was found be looked for anew."""
    find_kernel.cache_clear()
    _build.cache_clear()


@functools.cache
def _build(name: str, *arguments: Hashable) -> KernelState:
    try:
        import numba

        if numba.config.DISABLE_JIT:
            return KernelState(None, "NUMBA_DISABLE_JIT is set")
        return KernelState(importlib.import_module(f"{_ROOM}.{name}").build_kernel(*arguments))
    except NoKernelError as error:
        return KernelState(None, str(error))
    except ModuleNotFoundError as error:
        if error.name == "numba":
            return KernelState(None, "numba is not installed")
        return KernelState(None, f"numba cannot be used ({_one_line(error)})")
    except Exception as error:  # a compiler may raise anything: it may not go with this numpy, or not know this processor
        return KernelState(None, f"numba cannot be used ({_one_line(error)})")


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
