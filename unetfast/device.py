"""Which device, number format and compile mode a run uses, and why; the same answers for training, evaluation, prediction."""

from __future__ import annotations

import ctypes
import functools
import os
import re
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from unetfast.errors import UserError


@dataclass(frozen=True, slots=True)
class AmpPolicy:
    """The number format of convolutions.

    Args:
        name: "bf16", "fp16" or "off".
        reason: why, for people.
    """

    name: str
    reason: str

    @property
    def dtype(self) -> torch.dtype | None:
        """Autocast dtype; None for float32 throughout."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[self.name]

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context in which forward passes run."""
        return nullcontext() if self.dtype is None else torch.autocast(device.type, dtype=self.dtype)


def resolve_device(name: str) -> torch.device:
    """Turn `auto | cpu | cuda | cuda:N` into a device.

    Raises:
        UserError: the name is none of these, or a GPU is asked for and is not there; names the override.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise UserError(f"device {name!r}: give auto, cpu, cuda or cuda:N")
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    device = torch.device(name)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                f"device {name}: this PyTorch ({torch.__version__}) sees no GPU; take --set train.device=cpu (eval, predict: "
                "--device cpu)"
            )
        count = torch.cuda.device_count()
        if device.index is not None and device.index >= count:
            raise UserError(f"device {name}: the GPUs here are {', '.join(f'cuda:{index}' for index in range(count))}")
        return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
    return device


def resolve_amp(name: str, device: torch.device) -> AmpPolicy:
    """Turn `auto | bf16 | fp16 | off` into a policy; auto takes bf16 where the hardware multiplies it fast.

    Raises:
        UserError: fp16 is asked for on a CPU.
    """
    if name == "fp16" and device.type == "cpu":
        raise UserError('train.amp = "fp16" needs a GPU; take --set train.amp=bf16 or --set train.amp=off')
    if name != "auto":
        return AmpPolicy(name, "asked for")
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return AmpPolicy("bf16", "this GPU has bf16 matrix units")
        return AmpPolicy("fp16", "this GPU has no bf16 matrix units")
    # private, but the only way to ask; a torch without them counts as a CPU without bf16
    probes = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    if any(probe() for probe in probes if probe is not None):
        return AmpPolicy("bf16", "this CPU has bf16 instructions")
    return AmpPolicy("off", "this CPU has no bf16 instructions")


def resolve_compile(name: str, device: torch.device) -> bool:
    """Turn `auto | on | graphs | off` into whether to compile; auto compiles for CUDA."""
    return device.type == "cuda" if name == "auto" else name != "off"


def num_usable_cores() -> int:
    """Count the CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt (malloc.h)
_LARGEST_INT = 2**31 - 1
_OLD_LIMIT = 32 * 2**20  # of blocks that are kept: glibc below 2.32 refuses more (HEAP_MAX_SIZE / 2)
_OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")  # of the user's: left alone


@dataclass(frozen=True, slots=True)
class FreedMemory:
    """What the C library does with memory that is freed.

    Args:
        largest_block: bytes; blocks up to it are kept for the next request. 0: it does as it does by itself.
        reason: why not all of them are kept, for people; empty where they are.
    """

    largest_block: int
    reason: str = ""


@functools.cache
def keep_freed_memory() -> FreedMemory:
    """Let the C library keep freed memory for the next request, for the rest of this process.

    By itself glibc takes every block of more than 32 MiB from the system and gives it back when it is freed: each step on a CPU
    then has the same activations zeroed by the kernel again, page by page. Kept, they cost resident memory between the steps,
    of at most what the process has needed at once; `release_freed_memory` gives it back.

    Returns:
        What is so now. Nothing is changed where the C library is not glibc, or the user has set its thresholds by its own
        environment variables (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_, GLIBC_TUNABLES); an old glibc keeps blocks of up
        to 32 MiB alone.
    """
    libc = _load_glibc()
    if libc is None:
        return FreedMemory(0, "the C library is not glibc")
    own = [name for name in _OWN_SETTINGS if name in os.environ]
    if own:
        return FreedMemory(0, f"{own[0]} is set")
    largest = next((limit for limit in (_LARGEST_INT, _OLD_LIMIT) if libc.mallopt(_MMAP_THRESHOLD, limit)), 0)
    if not largest or not libc.mallopt(_TRIM_THRESHOLD, _LARGEST_INT):
        return FreedMemory(0, "the C library refuses")
    return FreedMemory(largest, "" if largest == _LARGEST_INT else "the C library refuses larger ones")


def release_freed_memory() -> None:
    """Give memory that nobody holds any more back to the system, where the C library is glibc."""
    libc = _load_glibc()
    if libc is not None:
        libc.malloc_trim(0)


@functools.cache
def _load_glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None
