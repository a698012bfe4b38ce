"""litdata with Pillow: chunks of the source's own bytes by `litdata.optimize`, read by its StreamingDataset."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peers import use_peers
from peers.loading import LoaderTask, Pair, Stream
from peers.pillow_pixels import decode_pair
from peers.torch_loader import stream_dataset, to_nchw

KNOBS = tuple({"workers": workers, "batch_size": 16} for workers in (2, 0))


def write_store(pairs: list[Pair], folder: Path) -> None:
    """Write chunks of images and masks, byte for byte as they are."""
    use_peers()
    import litdata

    litdata.optimize(
        fn=_read_pair,
        inputs=pairs,
        output_dir=str(folder),
        chunk_bytes="16MB",
        num_workers=1,
        verbose=False,
        start_method="fork",
    )


def _read_pair(pair: Pair) -> dict[str, bytes]:
    return {"image": pair.image.read_bytes(), "mask": pair.mask.read_bytes()}


def open_stream(task: LoaderTask, knobs: dict[str, int], *, plain: bool) -> Stream:
    use_peers()
    import litdata
    from torch.utils.data import IterableDataset

    class Decoded(litdata.StreamingDataset):  # type: ignore[misc]
        def __next__(self) -> Any:
            sample = super().__next__()
            return decode_pair(sample["image"], sample["mask"], task.size_hw)

    class Endless(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            dataset = Decoded(str(task.store), shuffle=not plain, seed=task.seed)
            for _epoch in range(1) if plain else itertools.count():
                yield from dataset

    return stream_dataset(
        Endless(), task, knobs, plain=plain, arrange=lambda batch: (to_nchw(batch[0]), batch[1]), mask_values="raw"
    )
