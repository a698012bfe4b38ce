"""Pillow's own limit against pictures made to fill the memory, which is one number for the whole process.

Sizes are checked by us before Pillow is asked (see image.py); its limit is raised only while a picture is read whose larger
size the user allowed, and by several threads at once if need be.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image


class _PillowLimit:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted: list[int] = []
        self._own: int | None = None

    def raise_to(self, limit: int) -> None:
        with self._lock:
            if not self._wanted:
                self._own = Image.MAX_IMAGE_PIXELS
            self._wanted.append(limit)
            self._set()

    def lower_from(self, limit: int) -> None:
        with self._lock:
            self._wanted.remove(limit)
            self._set()

    def _set(self) -> None:
        # where the user's program has switched Pillow's limit off, it stays off
        Image.MAX_IMAGE_PIXELS = None if self._own is None else max([self._own, *self._wanted])


_limit = _PillowLimit()


@contextmanager
def pillow_allows(max_pixels: int) -> Iterator[None]:
    """Let Pillow read pictures of up to this many pixels inside the block; 0 leaves its limit alone."""
    if not max_pixels:
        yield
        return
    _limit.raise_to(max_pixels)
    try:
        yield
    finally:
        _limit.lower_from(max_pixels)
