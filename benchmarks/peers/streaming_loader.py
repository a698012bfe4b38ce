"""mosaicml-streaming with Pillow: MDS shards of the source's own bytes, its StreamingDataset in torch's DataLoader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peers import use_peers
from peers.loading import LoaderTask, Pair, Stream
from peers.pillow_pixels import decode_pair
from peers.torch_loader import stream_dataset, to_nchw

KNOBS = tuple({"workers": workers, "batch_size": 16} for workers in (2, 0))
ONE_AT_A_TIME = True  # streaming refuses a folder that another of its data sets has open

_EPOCH = 1_000_000  # samples; it repeats the few there are


def write_store(pairs: list[Pair], folder: Path) -> None:
    """Write MDS shards of images and masks, byte for byte as they are."""
    use_peers()
    from streaming import MDSWriter

    with MDSWriter(out=str(folder), columns={"image": "bytes", "mask": "bytes"}, size_limit=1 << 24) as writer:
        for pair in pairs:
            writer.write({"image": pair.image.read_bytes(), "mask": pair.mask.read_bytes()})


def open_stream(task: LoaderTask, knobs: dict[str, int], *, plain: bool) -> Stream:
    use_peers()
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    class Decoded(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, number: Any) -> Any:
            sample = super().__getitem__(number)
            return decode_pair(sample["image"], sample["mask"], task.size_hw)

    clean_stale_shared_memory()
    dataset = Decoded(
        local=str(task.store),
        shuffle=not plain,
        shuffle_seed=task.seed,
        batch_size=knobs["batch_size"],
        epoch_size=None if plain else _EPOCH,
        num_canonical_nodes=1,
    )
    return stream_dataset(
        dataset, task, knobs, plain=plain, arrange=lambda batch: (to_nchw(batch[0]), batch[1]), mask_values="raw"
    )
