"""Memory of a thread that its next sample uses again: fresh pages each time would cost as much as the work done in them."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np

_scratch = threading.local()


def scratch_array(name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray[Any, Any]:
    """Return this thread's buffer of that name, not cleared; it stays as it is until this thread asks for the name again.

    Args:
        name: of the buffer.
        shape: of the array in it.
        dtype: of the array in it.
    """
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    buffer: np.ndarray | None = getattr(_scratch, name, None)
    if buffer is None or len(buffer) < num_bytes:
        buffer = np.empty(num_bytes, dtype=np.uint8)
        setattr(_scratch, name, buffer)
    return buffer[:num_bytes].view(dtype).reshape(shape)
