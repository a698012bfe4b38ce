"""What a device can do at most, measured here and now: its matrix rate by number format, and its copy bandwidth.

Measured, not looked up: data sheets name rates that no program reaches, and a machine shares its cores and memory with others.
A limit is the best of many tries, since whatever disturbs a try makes it slower.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

_TRY_S = 0.3  # of measuring each size, about
_LONG_S = 0.02  # a product that takes so long is not doubled in size
_SIDES = {"cpu": (256, 4096), "cuda": (1024, 16384)}  # of the matrices, smallest and largest
_COPY_MIB = {"cpu": 256, "cuda": 1024}  # larger than caches
_REPEATS = 4  # of a product within one measurement on a GPU, where a launch costs microseconds


@dataclass(frozen=True, slots=True)
class Machine:
    """Measured limits of one device.

    Args:
        matrix_flop_per_s: by dtype, of products of square matrices at the size that does best.
        matrix_side: that size, rows, by dtype.
        copy_bytes_per_s: bytes read plus bytes written, of copying memory far larger than the caches. What lies in a cache
            moves faster: a network whose feature maps all fit one can pass the roofline drawn from it.
    """

    matrix_flop_per_s: dict[torch.dtype, float]
    matrix_side: dict[torch.dtype, int]
    copy_bytes_per_s: float

    def rate(self, dtype: torch.dtype) -> float:
        """Matrix rate of a dtype, FLOP/s; float32's for one that was not measured."""
        return self.matrix_flop_per_s.get(dtype, self.matrix_flop_per_s[torch.float32])

    def to_json(self) -> dict[str, Any]:
        names = {dtype: str(dtype).removeprefix("torch.") for dtype in self.matrix_flop_per_s}
        return {
            "matrix_gflop_per_s": {names[dtype]: _round(rate / 1e9) for dtype, rate in self.matrix_flop_per_s.items()},
            "matrix_side": {names[dtype]: side for dtype, side in self.matrix_side.items()},
            "copy_gb_per_s": _round(self.copy_bytes_per_s / 1e9),
        }


def measure_machine(device: torch.device, dtypes: Sequence[torch.dtype] = ()) -> Machine:
    """Measure a device, each figure once a process and number of threads: rungs of one run are held to the same limits.

    Waits for the GPU. Takes about a second, and half a GiB of memory on a CPU, 2 GiB on a GPU.

    Args:
        device: as torch names it.
        dtypes: of arithmetic; float32 is always measured too.
    """
    threads = torch.get_num_threads()
    wanted = dict.fromkeys((*dtypes, torch.float32))
    found = {dtype: _measure_matrix_rate(device, dtype, threads) for dtype in wanted if dtype.is_floating_point}
    rates = {dtype: rate for dtype, (rate, _) in found.items()}
    sides = {dtype: side for dtype, (_, side) in found.items()}
    return Machine(rates, sides, _measure_copy_rate(device, threads))


@functools.cache
def _measure_matrix_rate(device: torch.device, dtype: torch.dtype, _threads: int) -> tuple[float, int]:
    """Return the best rate over sizes, FLOP/s, and the side at which it was reached."""
    side, largest = _SIDES[device.type]
    best = (0.0, side)
    while side <= largest:
        took_s = _best_time(device, _product(device, dtype, side))
        best = max(best, (2 * side**3 / took_s, side))
        if took_s > _LONG_S:
            break
        side *= 2
    return best


def _product(device: torch.device, dtype: torch.dtype, side: int) -> Callable[[], object]:
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    if device.type == "cuda" and dtype == torch.float32:
        return _convolve_as_product(left, right)
    return lambda: left @ right


def _convolve_as_product(left: torch.Tensor, right: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Make a product a 1x1 convolution: cuDNN may take TF32 where a product may not, and convolutions are what is judged."""
    rows, columns = left.shape[0], right.shape[1]
    pixels_1CHW, kernel_KC11 = left.t().reshape(1, -1, rows, 1), right.t().reshape(columns, -1, 1, 1)
    return lambda: F.conv2d(pixels_1CHW, kernel_KC11).reshape(columns, rows).t()


@functools.cache
def _measure_copy_rate(device: torch.device, _threads: int) -> float:
    num_bytes = _COPY_MIB[device.type] * 2**20
    source, target = (torch.zeros(num_bytes, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * num_bytes / _best_time(device, lambda: target.copy_(source))


def _best_time(device: torch.device, work: Callable[[], object]) -> float:
    """Least seconds of one call, after two to warm up; waits for the GPU."""
    repeats = _REPEATS if device.type == "cuda" else 1
    best_s, began_s = float("inf"), time.perf_counter()
    for number in range(1000):
        _wait(device)
        at_s = time.perf_counter()
        for _ in range(repeats):
            work()
        _wait(device)
        now_s = time.perf_counter()
        if number >= 2:
            best_s = min(best_s, (now_s - at_s) / repeats)
            if now_s - began_s > _TRY_S:
                break
    return best_s


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _round(value: float) -> float:
    return float(f"{value:.4g}")
