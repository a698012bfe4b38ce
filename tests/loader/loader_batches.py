"""Batches kept for comparison, and every augmentation switched on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from unetfast.loader.batch import Batch, Loader

ALL = {
    "resized_crop": {"prob": 0.5},
    "scale": {"prob": 0.5},
    "hflip": {"prob": 0.5},
    "vflip": {"prob": 0.5},
    "rotation": {"prob": 0.5},
    "brightness": {"prob": 0.5},
    "contrast": {"prob": 0.5},
    "saturation": {"prob": 0.5},
    "hue": {"prob": 0.5},
}


@dataclass(frozen=True)
class Kept:
    """A copy of a batch, which itself is valid until the next one alone."""

    ids: list[int]
    image: torch.Tensor
    mask: torch.Tensor

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Kept)
        return self.ids == other.ids and torch.equal(self.image, other.image) and torch.equal(self.mask, other.mask)


def keep(batches: Iterator[Batch] | Loader, count: int | None = None) -> list[Kept]:
    return [
        Kept(batch.sample_ids.tolist(), batch.image_NCHW.clone(), batch.mask_NHW.clone())
        for batch in itertools.islice(batches, count)
    ]
