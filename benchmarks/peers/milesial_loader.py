"""The loader of milesial/Pytorch-UNet: our re-creation of its steps, in our own code; none of it is that project's program.

Pillow decodes image and mask in full and resizes both to half size (bicubic, nearest); the mask becomes class numbers value by
value, the image floats in 0..1. Nothing is random but the order. Its batches are of half size, whatever `size_hw` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from peers.loading import LoaderTask, Pair, Stream
from peers.torch_loader import stream_dataset

SCALE = 0.5
MASK_VALUES = (0, 1)  # of Carvana's palette, as its scan of all masks finds them
KNOBS = tuple({"workers": workers, "batch_size": size} for workers, size in ((2, 1), (1, 1), (0, 1), (2, 4)))


class MilesialDataset(Dataset[Any]):
    """Image float32 in 0..1, (3, H, W), and mask int64, (H, W), at `SCALE` of the source's size."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        pair = self._pairs[number]
        image, mask = Image.open(pair.image), Image.open(pair.mask)
        size = (int(SCALE * image.width), int(SCALE * image.height))
        values = np.asarray(mask.resize(size, resample=Image.Resampling.NEAREST))
        classes = np.zeros(values.shape, dtype=np.int64)
        for class_id, value in enumerate(MASK_VALUES):
            classes[values == value] = class_id
        pixels = np.asarray(image.resize(size, resample=Image.Resampling.BICUBIC)).transpose((2, 0, 1))
        if (pixels > 1).any():
            pixels = pixels / 255.0
        return torch.as_tensor(pixels.copy()).float().contiguous(), torch.as_tensor(classes.copy()).long().contiguous()


def open_stream(task: LoaderTask, knobs: dict[str, int], *, plain: bool) -> Stream:
    return stream_dataset(MilesialDataset(task.pairs), task, knobs, plain=plain, arrange=tuple)
