"""Contract 3, the batch, and the protocol that every loader backend keeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples of one step, on the training device; valid until the next batch is asked for.

    Args:
        image_NCHW: uint8 in 0..255, RGB, (N, 3, H, W), channels_last strides.
        mask_NHW: class ids or `ignore_index`, uint8 (uint16 past 255 classes), (N, H, W).
        sample_ids: places in the split's index, int64, (N,), on the host.
    """

    image_NCHW: Tensor
    mask_NHW: Tensor
    sample_ids: np.ndarray


class Loader(Protocol):
    """A stream of batches that can be stopped and resumed at any sample.

    A training loader never ends: it yields full batches from an endless stream of epoch permutations, so a batch may
    straddle two epochs. A validation loader ends after every sample was seen exactly once; its last batch is smaller.
    """

    backend: str  # "cpu", "dali" or "resident"

    @property
    def facts(self) -> str:
        """What it keeps in memory for later, and what it has to do without, for people; "" where there is nothing to say."""
        ...

    @property
    def num_samples(self) -> int:
        """Samples of the split, one epoch."""
        ...

    @property
    def num_skipped(self) -> int:
        """Samples left out so far under on_bad = "skip"; each is counted once."""
        ...

    @property
    def skipped(self) -> list[str]:
        """Keys of the samples left out so far."""
        ...

    @property
    def num_batches(self) -> int:
        """Batches of one pass (validation), or of epoch 0 (training): ceil(num_samples / batch_size)."""
        ...

    @property
    def position(self) -> int:
        """Place in the global sample stream after the last batch handed out: epoch * num_samples + offset."""
        ...

    def __iter__(self) -> Iterator[Batch]: ...

    def state_dict(self) -> dict[str, Any]:
        """Position and what it depends on, as integers and strings; counts batches handed out, never prefetched ones."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batch that `state` was taken behind.

        Raises:
            UserError: the state is of other data, seed, order or batch size; lists the fields that differ.
        """
        ...

    def close(self) -> None:
        """Stop all threads; may be called twice. A loader is also a context manager."""
        ...

    def __enter__(self) -> Loader: ...

    def __exit__(self, *exc: object) -> None: ...
