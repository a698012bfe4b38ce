"""torch's DataLoader as peers use it, made endless: a few files of a data set must not pay for epochs that end all the time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler

from peers.loading import LoaderTask, Stream

KNOBS = tuple({"workers": workers, "batch_size": 16} for workers in (2, 1, 0))  # two cores: more workers stand in line
_AHEAD = 2  # batches a worker is ahead: torch's default


class EndlessShuffle(Sampler[int]):
    """Epoch after epoch, each in another order, without a seam.

    Args:
        num_samples: of an epoch.
        seed: of the orders.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        self._num_samples = num_samples
        self._seed = seed

    def __iter__(self) -> Iterator[int]:
        draw = random.Random(self._seed)
        while True:
            yield from draw.sample(range(self._num_samples), self._num_samples)


def stream_dataset(
    dataset: Any,
    task: LoaderTask,
    knobs: dict[str, int],
    *,
    plain: bool,
    arrange: Callable[[Any], tuple[Any, Any]],
    keys: tuple[str, ...] | None = None,
    mask_values: str = "classes",
) -> Stream:
    """Load a dataset.

    Args:
        dataset: of torch; an iterable one must be endless unless `plain`, and in order where it is.
        task: what is asked for.
        knobs: workers, batch_size.
        plain: each sample once, in order, in this process.
        arrange: a collated batch -> (image_NCHW, mask_NHW).
        keys: of the samples in order; None takes the pairs'.
        mask_values: as in `Stream`.
    """
    workers = 0 if plain else knobs["workers"]
    torch.set_num_threads(1)  # as DataLoader has it in its workers; here only batches are put together
    is_stream = isinstance(dataset, IterableDataset)
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=knobs["batch_size"],
        sampler=None if plain or is_stream else EndlessShuffle(len(task.pairs), task.seed),
        num_workers=workers,
        drop_last=not plain,
        prefetch_factor=_AHEAD if workers else None,
        persistent_workers=workers > 0,
        multiprocessing_context="fork" if workers else None,  # as where these projects run; this process was spawned
    )
    batches = iter(loader)

    def close() -> None:
        if workers:
            batches._shutdown_workers()  # type: ignore[attr-defined]  # what its __del__ does, now

    return Stream(
        (arrange(batch) for batch in batches),
        close,
        keys or tuple(pair.key for pair in task.pairs),
        num_ahead=_AHEAD * workers,
        batches_at_once=max(1, workers),
        mask_values=mask_values,
    )


def to_nchw(image_NHWC: torch.Tensor) -> torch.Tensor:
    return image_NHWC.permute(0, 3, 1, 2)
