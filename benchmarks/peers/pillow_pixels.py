"""Decode and resize by Pillow: what stands behind webdataset, streaming and litdata in their own examples."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def decode_pair(image: bytes, mask: bytes, size_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Decode a JPEG and a PNG mask, and resize both.

    Returns:
        RGB, uint8, (H, W, 3), by the antialiased bilinear filter; mask values, uint8, (H, W), by the nearest.
    """
    size = (size_hw[1], size_hw[0])
    rgb = Image.open(io.BytesIO(image)).convert("RGB").resize(size, Image.Resampling.BILINEAR)
    values = Image.open(io.BytesIO(mask)).resize(size, Image.Resampling.NEAREST)
    return np.array(rgb), np.array(values)
