"""`loader.cache = "ram"`: pixels that come out of a decoder the same every time, kept in memory after the first time.

What is kept is what no random number has touched: a mask, inflated (bits stay packed), and an image: at the batch's size where
its crop box is always the whole image, else as decoded, once for each JPEG reduction that its crops ask for. What does not fit
is read each time. Nothing is thrown out for it: an epoch takes every sample once, so what was used longest ago is what comes
next, and any rule of replacement would find less. A damaged sample raises before it could be kept.

Memory is taken in large slabs and given out from them: a hundred thousand arrays of their own would meet the system's limit of
memory maps.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

from unetfast.config import LoaderConfig
from unetfast.errors import UserError
from unetfast.hostmemory import available_host_bytes

_SLAB_BYTES = 64 << 20
_ALIGN = 64  # bytes: a cache line
_GIB = 1 << 30


class RamCache:
    """Arrays by key, up to a number of bytes; any thread may ask and keep.

    Args:
        max_bytes: most memory that is taken.
        slab_bytes: taken at once.

    Attributes:
        num_bytes: taken so far.
    """

    def __init__(self, max_bytes: int, *, slab_bytes: int = _SLAB_BYTES) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._slab_bytes = slab_bytes
        self._slab = np.empty(0, dtype=np.uint8)
        self._used = 0  # of the slab
        self._kept: dict[Hashable, np.ndarray | None] = {}  # None: a thread is copying it
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, key: Hashable) -> np.ndarray | None:
        """Return what is kept under a key, read-only; None where nothing is."""
        return self._kept.get(key)

    def keep(self, key: Hashable, array: np.ndarray) -> None:
        """Keep a copy of an array, if there is room; what is kept already stays."""
        with self._lock:
            if key in self._kept or (place := self._take(array.nbytes)) is None:
                return
            self._kept[key] = None
        copy = place.view(array.dtype).reshape(array.shape)
        np.copyto(copy, array)
        copy.flags.writeable = False
        self._kept[key] = copy

    def _take(self, num_bytes: int) -> np.ndarray | None:
        """Take memory from the slab, or from a new one; what is left of the old one is lost."""
        if self._used + num_bytes > len(self._slab):
            size = min(max(num_bytes, self._slab_bytes), self.max_bytes - self.num_bytes)
            if size < num_bytes:
                return None
            self._slab, self._used = np.empty(size, dtype=np.uint8), 0
            self.num_bytes += size
        first = self._used
        self._used += -(-num_bytes // _ALIGN) * _ALIGN
        return self._slab[first : first + num_bytes]


@dataclass(frozen=True, slots=True)
class Need:
    """What a split's masks and images take.

    Args:
        num_bytes: of all samples.
        largest_bytes: of the largest image or mask.
        are_resized: whether images are kept at the batch's size; else as decoded, and `num_bytes` is that of whole images.
    """

    num_bytes: int
    largest_bytes: int
    are_resized: bool

    @property
    def slab_bytes(self) -> int:
        """Size of slabs that lose at most a sixteenth at their ends."""
        return max(_SLAB_BYTES, 16 * self.largest_bytes)

    @property
    def most_bytes(self) -> int:
        """Memory in which every sample has room: what they take, the ends of full slabs, and one slab that is not full."""
        return self.num_bytes + self.num_bytes // 15 + self.slab_bytes


def count_need(stored_hw: np.ndarray, mask_bits: int, target_hw: tuple[int, int], *, are_resized: bool) -> Need:
    """Count what a split takes.

    Args:
        stored_hw: heights and widths of all samples, pixels, (n, 2).
        mask_bits: 1, 8 or 16.
        target_hw: of the batches, pixels.
        are_resized: whether every crop box is the whole image.
    """
    height, width = stored_hw.astype(np.int64).T
    mask_bytes = height * -(-width * mask_bits // 8)
    image_bytes = 3 * (np.full(len(height), target_hw[0] * target_hw[1]) if are_resized else height * width)
    sizes = -(-np.concatenate([mask_bytes, image_bytes]) // _ALIGN) * _ALIGN
    return Need(int(sizes.sum()), int(sizes.max(initial=0)), are_resized)


def allow_bytes(config: LoaderConfig, need: Need, *, local_size: int = 1) -> int:
    """Decide how much memory the cache of one process may take.

    Args:
        config: cache_mib.
        need: of the whole split, which every process meets in the course of epochs.
        local_size: processes that share this machine's memory.

    Returns:
        An equal share of `loader.cache_mib`, or of half of what is free; no more than is needed where that is known.

    Raises:
        UserError: that much is not free, or the system does not say what is.
    """
    free = available_host_bytes()
    if config.cache_mib == 0 and free is None:
        raise UserError('loader.cache = "ram": this system does not say how much memory is free; set loader.cache_mib (MiB)')
    allowed = (config.cache_mib << 20 or (free or 0) // 2) // local_size
    if need.are_resized:
        allowed = min(allowed, need.most_bytes)
    if free is not None and allowed * local_size > free:
        raise UserError(
            f'loader.cache = "ram": loader.cache_mib = {config.cache_mib} is {config.cache_mib / 1024:.2f} GiB, and '
            f"{free / _GIB:.2f} GiB are free; take less, or 0 for half of what is free"
        )
    return allowed


def describe_cache(max_bytes: int, need: Need) -> str:
    """Say what the cache of one process will hold, for the head of a run."""
    if not need.are_resized:
        return f"ram, up to {max_bytes / _GIB:.2f} GiB of images as decoded and masks"
    if max_bytes >= need.most_bytes:
        return f"ram, {need.num_bytes / _GIB:.2f} GiB for all samples, images at batch size"
    share = min(0.99, max_bytes * 15 / 16 / need.num_bytes)
    return f"ram, {max_bytes / _GIB:.2f} GiB for about {share:.0%} of the samples, images at batch size"
