"""webdataset with Pillow: tars of the source's own files, decoded and resized as its documentation shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import webdataset as wds
from torch.utils.data import IterableDataset

from peers.loading import LoaderTask, Pair, Stream
from peers.pillow_pixels import decode_pair
from peers.torch_loader import KNOBS as OF_WORKERS
from peers.torch_loader import stream_dataset, to_nchw

KNOBS = (*OF_WORKERS, {"workers": 0, "batch_size": 64})
_SHARDS = 4  # a worker reads whole shards
_SHUFFLE = 100


def write_store(pairs: list[Pair], folder: Path) -> None:
    """Write tars of images and masks, byte for byte as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    with wds.ShardWriter(str(folder / "%06d.tar"), maxcount=-(-len(pairs) // _SHARDS), verbose=0) as writer:
        for pair in pairs:
            writer.write({"__key__": pair.key, "jpg": pair.image.read_bytes(), "png": pair.mask.read_bytes()})


class _Decode:
    """A sample's bytes -> pixels; picklable."""

    def __init__(self, size_hw: tuple[int, int]) -> None:
        self._size_hw = size_hw

    def __call__(self, sample: tuple[bytes, bytes]) -> tuple[Any, Any]:
        return decode_pair(*sample, self._size_hw)


class _Endless(IterableDataset[Any]):
    """The pipeline as torch's DataLoader wants it."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __iter__(self) -> Any:
        return iter(self._make())


def open_stream(task: LoaderTask, knobs: dict[str, int], *, plain: bool) -> Stream:
    urls = [str(tar) for tar in sorted(task.store.glob("*.tar"))]

    def make() -> Any:
        pipeline = wds.WebDataset(urls, resampled=not plain, shardshuffle=False, seed=task.seed)
        if not plain:
            pipeline = pipeline.shuffle(_SHUFFLE)
        return pipeline.to_tuple("jpg", "png").map(_Decode(task.size_hw))

    return stream_dataset(
        _Endless(make), task, knobs, plain=plain, arrange=lambda batch: (to_nchw(batch[0]), batch[1]), mask_values="raw"
    )
