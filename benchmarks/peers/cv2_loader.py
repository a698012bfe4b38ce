"""What a careful user makes of R1's loader: OpenCV decodes the image, albumentations averages areas when it shrinks.

The mask is decoded by Pillow as there: OpenCV 5 takes ten times as long for a GIF.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from PIL import Image

from peers.loading import LoaderTask, Stream
from peers.r1_loader import R1Dataset, build_transform
from peers.torch_loader import stream_dataset

KNOBS = tuple({"workers": workers, "batch_size": 16} for workers in (2, 0))


class Cv2Dataset(R1Dataset):
    """Batches like R1's, by other decoders and a better filter; arguments as there."""

    def __init__(self, pairs: Any, size_hw: tuple[int, int], *, turned: bool) -> None:
        super().__init__(pairs, size_hw, turned=turned)
        self._transform = build_transform(size_hw, turned=turned, area_for_downscale="image")

    def __getitem__(self, number: int) -> tuple[Any, Any]:
        pair = self._pairs[number]
        image = cv2.imread(str(pair.image), cv2.IMREAD_COLOR_RGB)
        mask = np.array(Image.open(pair.mask).convert("L"))
        if image is None:
            raise ValueError(f"OpenCV cannot read {pair.image}")
        changed = self._transform(image=image, mask=(mask > 127).astype(np.float32))
        return changed["image"], changed["mask"]


def open_stream(task: LoaderTask, knobs: dict[str, int], *, plain: bool) -> Stream:
    dataset = Cv2Dataset(task.pairs, task.size_hw, turned=task.turned and not plain)
    return stream_dataset(dataset, task, knobs, plain=plain, arrange=tuple)
