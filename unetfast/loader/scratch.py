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
    found: tuple[np.ndarray, np.ndarray] | None = getattr(_scratch, name, None)  # the memory, and the array last made of it
    if found is not None and found[1].shape == shape and found[1].dtype == dtype:
        return found[1]
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    buffer = np.empty(num_bytes, dtype=np.uint8) if found is None or len(found[0]) < num_bytes else found[0]
    array = buffer[:num_bytes].view(dtype).reshape(shape)
    setattr(_scratch, name, (buffer, array))
    return array
