"""How much memory a host has, how much of it this process holds, and whether it keeps what it has freed.

A container's limit (cgroup) counts as much as the machine's: what lies past it is not refused but kills the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")


def available_host_bytes() -> int | None:
    """Count the bytes that this process may still take: of the machine, or of its container where that has less.

    Returns:
        None where the system does not say (it is read from /proc and from cgroup files, which Linux alone has).
    """
    free = [_read_meminfo(), *(_read_cgroup_v2() or _read_cgroup_v1())]
    known = [number for number in free if number is not None]
    return max(0, min(known)) if known else None


def _read_meminfo() -> int | None:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (_PROC / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _read_cgroup_v2() -> list[int]:
    """Free bytes of each cgroup with a limit, from ours up to the root; file cache that can be dropped counts as free."""
    return _read_cgroups("0::", _CGROUP, ("memory.max", "memory.current", "inactive_file"))


def _read_cgroup_v1() -> list[int]:
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return _read_cgroups(":memory:", _CGROUP / "memory", names)


def _read_cgroups(mark: str, root: Path, names: tuple[str, str, str]) -> list[int]:
    try:
        lines = (_PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return []
    ours = next((line.partition(mark)[2] for line in lines if mark in line), None)
    if ours is None:
        return []
    folder = root / ours.lstrip("/")
    folders = [folder, *folder.parents] if folder != root else [folder]
    free = []
    for path in folders:  # inside a container the path may name folders that only the host sees: those are passed over
        if path == root or root in path.parents:
            with contextlib.suppress(OSError, ValueError):
                limit = (path / names[0]).read_text().strip()
                if limit != "max":
                    free.append(int(limit) - int((path / names[1]).read_text()) + _read_stat(path / "memory.stat", names[2]))
    return free


def _read_stat(path: Path, name: str) -> int:
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            key, _, number = line.partition(" ")
            if key == name:
                return int(number)
    return 0


class PeakMemory:
    """Measures the most memory that this process held since `start`, in bytes of resident memory.

    On Linux the system's own high-water mark is set back. Elsewhere, and where that is forbidden, the mark is of the whole
    life of the process: right as long as each measurement is larger than all before.
    """

    def start(self) -> None:
        reset_peak()

    def read(self) -> int:
        if peak := read_status_bytes("VmHWM"):
            return peak
        import resource  # not on Windows, which torch's own allocator errors serve alone

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """Count the bytes of memory that this process holds now; 0 where the system does not say."""
    return read_status_bytes("VmRSS")


def reset_peak() -> None:
    """Let the system count this process's peak of resident memory anew, where it can (Linux; else the peak stays)."""
    with contextlib.suppress(OSError):
        (_PROC / "self" / "clear_refs").write_text("5")


def read_status_bytes(name: str, process: int | None = None) -> int:
    """Read a figure of a process's memory, bytes; 0 where the system does not say, or the process is gone.

    Args:
        name: of a line of /proc/PID/status: "VmRSS" (resident now), "VmHWM" (the most so far, or since `reset_peak`), ...
        process: its id; None: this one.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in (_PROC / str(process or "self") / "status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


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

    By itself glibc gives large blocks back to the system when they are freed, all of more than 32 MiB and smaller ones at the
    end of the heap: in each step on a CPU, and for each image that is packed, the kernel then zeroes the same memory again.
    Kept, they cost resident memory in between, of at most what the process has needed at once; `release_freed_memory` gives it
    back.

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
