"""Other readers of data sets, each by its own package: every sample in stored order, as encoded bytes, nothing decoded.

webdataset reads our own tars, which are WebDataset's format; streaming and litdata read what their own writers wrote of the
same samples. None of them tests a hash of what it reads.
"""

from __future__ import annotations

import io
import tarfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from peers import use_peers, writers
from unetfast.data.sample import Sample

# goes through all samples once, and returns how many there were and their bytes
Reader = Callable[[], tuple[int, int]]


def iterate_webdataset(urls: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Iterate over the samples of tars, in order, as webdataset's documentation does; members stay bytes."""
    import webdataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its files to the collector
        yield from webdataset.WebDataset(list(urls), shardshuffle=False, empty_check=False)


def read_webdataset(tars: Sequence[Path]) -> tuple[int, int]:
    count = num_bytes = 0
    for sample in iterate_webdataset([str(path) for path in tars]):
        count += 1
        num_bytes += sum(len(data) for name, data in sample.items() if not name.startswith("__"))
    return count, num_bytes


def read_tarfile(tars: Sequence[Path]) -> tuple[int, int]:
    """Read every member by Python's own tarfile."""
    num_members = num_bytes = 0
    for path in tars:
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                num_members += 1
                num_bytes += len(file.read()) if file else 0
    return num_members // 3, num_bytes


def open_streaming(samples: Sequence[Sample], folder: Path) -> Reader:
    """Write the samples as MDS and open them, once for all rounds."""
    use_peers()
    writers.write_mds(samples, folder)
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(folder / "mds"), shuffle=False, batch_size=1)

    def read() -> tuple[int, int]:
        return _count(dataset[number] for number in range(len(dataset)))

    return read


def open_litdata(samples: Sequence[Sample], folder: Path) -> Reader:
    """Write the samples as litdata's chunks and open them, once for all rounds."""
    use_peers()
    chunks = folder / "chunks"
    chunks.mkdir(parents=True)
    writers.write_litdata_writer(samples, chunks)
    from litdata import StreamingDataset

    dataset = StreamingDataset(str(chunks), shuffle=False)

    def read() -> tuple[int, int]:
        return _count(iter(dataset))

    return read


def _count(samples: Iterator[dict[str, Any]]) -> tuple[int, int]:
    count = num_bytes = 0
    for sample in samples:
        count += 1
        num_bytes += sum(len(sample[name]) for name in ("image", "mask", "json"))
    return count, num_bytes


def build_readers(tars: Sequence[Path], samples: Sequence[Sample], folder: Path) -> dict[str, Callable[[], Reader]]:
    """Name the readers; each is built by a call, which may fail for want of its package."""
    return {
        "webdataset": lambda: partial(read_webdataset, tars),
        "tarfile": lambda: partial(read_tarfile, tars),
        "streaming": lambda: open_streaming(samples, folder / "streaming"),
        "litdata": lambda: open_litdata(samples, folder / "litdata"),
    }


def decode_pillow(image: bytes, mask: bytes) -> tuple[Any, Any]:
    """Decode a sample by Pillow, the mask being a PNG."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB")), np.asarray(Image.open(io.BytesIO(mask)))
