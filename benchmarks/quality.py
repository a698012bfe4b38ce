"""What a loader's pixels are worth: images against an antialiased float reference, masks against the exact nearest lookup.

Two references for an image, both of Pillow's full decode and in float32: `triangle`, the filter that Pillow, torch, torchvision
and DALI mean by antialiased bilinear; and `area`, the mean over the area that a target pixel covers. A loader that rounds the
first to bytes is 59 dB from it at best. Of a mask, the reference is the class at floor((j + 1/2) * stored / target), in whole
numbers.

Axis letters: C channels, H height, W width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from unetfast.bench.harness import percentile

_SAME_DB = 99.0  # equal images


def read_reference(file: Path, size_hw: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return "triangle" and "area": RGB, float32 in 0..255, (H, W, 3)."""
    with Image.open(file) as image:
        rgb_HWC = np.asarray(image.convert("RGB"), dtype=np.float32)
    image_NCHW = torch.from_numpy(rgb_HWC).permute(2, 0, 1)[None]
    triangle_NCHW = torch.nn.functional.interpolate(image_NCHW, size_hw, mode="bilinear", antialias=True)
    area_HWC = cv2.resize(rgb_HWC, size_hw[::-1], interpolation=cv2.INTER_AREA)
    return {"triangle": triangle_NCHW[0].permute(1, 2, 0).numpy(), "area": area_HWC}


def read_classes(file: Path, dataset: str) -> np.ndarray:
    """Read a source mask as class ids, uint8, (H, W), 255 = ignore; independent of our own readers."""
    with Image.open(file) as mask:
        return map_values(np.asarray(mask.convert("L")) if dataset == "carvana" else np.asarray(mask), dataset)


def map_values(mask_HW: np.ndarray, dataset: str) -> np.ndarray:
    """Turn values of a source mask into class ids: Carvana's are black and white, ADE20K's begin at 1 behind "other"."""
    if dataset == "carvana":
        return (mask_HW > 127).astype(np.uint8)
    return (mask_HW.astype(np.int16) - 1).astype(np.uint8)


def nearest(mask_HW: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Look a mask up at the centres of target pixels, exactly."""
    rows, columns = (
        (2 * np.arange(target) + 1) * stored // (2 * target) for target, stored in zip(size_hw, mask_HW.shape, strict=True)
    )
    return mask_HW[rows][:, columns]


def psnr_db(image_HWC: np.ndarray, reference_HWC: np.ndarray) -> float:
    """Peak signal to noise ratio, decibels, of values in 0..255."""
    error = float(np.square(image_HWC.astype(np.float64) - reference_HWC).mean())
    return min(_SAME_DB, 10 * math.log10(255**2 / error)) if error else _SAME_DB


@dataclass(slots=True)
class Judged:
    """Images and masks that were compared so far."""

    num_images: int = 0
    triangle_db: list[float] = field(default_factory=list)
    area_db: list[float] = field(default_factory=list)
    unequal_shares: list[float] = field(default_factory=list)

    def add(self, image_file: Path, mask_file: Path, dataset: str, image_CHW: torch.Tensor, mask_HW: np.ndarray | None) -> None:
        """Compare one sample.

        Args:
            image_file: the source's image.
            mask_file: the source's mask.
            dataset: of both.
            image_CHW: uint8 in 0..255, or float32 in 0..1.
            mask_HW: class ids, any dtype; None where a loader makes no masks.
        """
        found_HWC = image_CHW.permute(1, 2, 0).numpy()
        if found_HWC.dtype != np.uint8:
            found_HWC = found_HWC * 255.0
        references = read_reference(image_file, (found_HWC.shape[0], found_HWC.shape[1]))
        self.num_images += 1
        self.triangle_db.append(psnr_db(found_HWC, references["triangle"]))
        self.area_db.append(psnr_db(found_HWC, references["area"]))
        if mask_HW is not None:
            expected_HW = nearest(read_classes(mask_file, dataset), (mask_HW.shape[0], mask_HW.shape[1]))
            self.unequal_shares.append(float((mask_HW != expected_HW).mean()))

    def sum_up(self) -> dict[str, Any]:
        """Tell PSNR, least and median, and how many pixels of the masks are unequal; JSON."""
        figures: dict[str, Any] = {"images": self.num_images}
        for name, decibels in (("triangle_db", self.triangle_db), ("area_db", self.area_db)):
            figures[name] = {"min": round(min(decibels), 2), "median": round(percentile(decibels, 0.5), 2)}
        shares = self.unequal_shares
        figures["masks_identical"] = not any(shares) if shares else None
        figures["mask_unequal_pct_max"] = round(100 * max(shares), 4) if shares else None
        return figures
