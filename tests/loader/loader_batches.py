"""Batches kept on the host for comparison, and every augmentation switched on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import loader_reference as reference
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
    """A copy of a batch on the host; the batch itself is valid until the next one alone."""

    ids: list[int]
    image: torch.Tensor
    mask: torch.Tensor

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Kept)
        return self.ids == other.ids and torch.equal(self.image, other.image) and torch.equal(self.mask, other.mask)


def keep(batches: Iterator[Batch] | Loader, count: int | None = None) -> list[Kept]:
    return [
        Kept(batch.sample_ids.tolist(), *(tensor.to("cpu", copy=True) for tensor in (batch.image_NCHW, batch.mask_NHW)))
        for batch in itertools.islice(batches, count)
    ]


def assert_close(found: list[Kept], expected: list[Kept]) -> None:
    """The same samples with the same masks, and images as close as two backends have them."""
    assert [batch.ids for batch in found] == [batch.ids for batch in expected]
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.mask, other.mask)
        for sample_id, image, other_image in zip(one.ids, one.image.numpy(), other.image.numpy(), strict=True):
            assert reference.psnr(image, other_image) >= 45, f"sample {sample_id}"
