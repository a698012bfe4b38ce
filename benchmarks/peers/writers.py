"""Other writers of data sets, each by its own package: the same encoded samples in, its own format out.

webdataset: TarWriter (one tar) and ShardWriter (a tar each 64 MiB); no checksum, no index.
mosaicml-streaming: MDSWriter with columns of bytes, with and without hashes of its shards.
litdata: `optimize` with one worker, as its README packs, and its BinaryWriter alone, without the processes around it.
ffcv: DatasetWriter with one worker process, fields of bytes; no checksum. It has no wheel: it is there where `make peers` could
build it.
tarfile: Python's own.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tarfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from peers import FOLDER, use_peers
from unetfast.data.sample import Sample
from unetfast.data.shard import build_json, build_member_names

_SHARD_BYTES = 64 << 20
_FFCV_WRITER = "ffcv DatasetWriter"
_FFCV_REASON = "ffcv has no wheel; with the headers of OpenCV and libturbojpeg there, `make peers` builds it"

Writer = Callable[[Sequence[Sample], Path], object]


def members(sample: Sample) -> dict[str, bytes]:
    """Name a sample's three members: image, mask and JSON."""
    names = build_member_names(sample.key, sample.image_codec, sample.mask_codec)
    return dict(zip(names, (sample.image, sample.mask, build_json(sample)), strict=True))


def write_tarfile(samples: Sequence[Sample], folder: Path) -> None:
    """Write one tar by Python's own tarfile."""
    with tarfile.open(folder / "a.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            for name, data in members(sample).items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def _webdataset_sample(sample: Sample) -> dict[str, Any]:
    fields = {name.split(".", 1)[1]: data for name, data in members(sample).items()}
    return {"__key__": sample.key, **fields}


def write_tar_writer(samples: Sequence[Sample], folder: Path) -> None:
    """Write one tar by webdataset's TarWriter; members are bytes, which it need not encode."""
    import webdataset

    with webdataset.TarWriter(str(folder / "a.tar"), encoder=False) as writer:
        for sample in samples:
            writer.write(_webdataset_sample(sample))


def write_shard_writer(samples: Sequence[Sample], folder: Path) -> None:
    """Write tars of 64 MiB by webdataset's ShardWriter."""
    import webdataset

    pattern = str(folder / "%06d.tar")
    with webdataset.ShardWriter(pattern, maxsize=_SHARD_BYTES, maxcount=10**9, encoder=False, verbose=0) as writer:
        for sample in samples:
            writer.write(_webdataset_sample(sample))


def write_mds(samples: Sequence[Sample], folder: Path, *, hashes: list[str] | None = None) -> None:
    """Write shards by streaming's MDSWriter."""
    from streaming import MDSWriter

    columns = {"key": "str", "image": "bytes", "mask": "bytes", "json": "bytes"}
    with MDSWriter(out=str(folder / "mds"), columns=columns, hashes=hashes, size_limit=_SHARD_BYTES) as writer:
        for sample in samples:
            image, mask, tree = members(sample).values()
            writer.write({"key": sample.key, "image": image, "mask": mask, "json": tree})


def _litdata_item(sample: Sample) -> dict[str, Any]:
    image, mask, tree = members(sample).values()
    return {"key": sample.key, "image": image, "mask": mask, "json": tree}


def write_litdata_writer(samples: Sequence[Sample], folder: Path) -> None:
    """Write chunks by litdata's BinaryWriter alone."""
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes=_SHARD_BYTES)
    for number, sample in enumerate(samples):
        writer.add_item(number, _litdata_item(sample))
    writer.done()
    writer.merge()


def write_litdata_optimize(samples: Sequence[Sample], folder: Path) -> None:
    """Write chunks by litdata.optimize with one worker process; its start is in the time, as it is in its users'."""
    from litdata import optimize

    # without a home of its own it keeps its temporary chunks below /tmp, on a disk
    os.environ["DATA_OPTIMIZER_CACHE_FOLDER"] = str(folder / "cache")
    os.environ["DATA_OPTIMIZER_DATA_CACHE_FOLDER"] = str(folder / "data-cache")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        optimize(
            fn=partial(_item_at, samples),
            inputs=list(range(len(samples))),
            output_dir=str(folder / "optimized"),
            chunk_bytes=_SHARD_BYTES,
            num_workers=1,
            start_method="fork",  # so that samples are not pickled, which its time is not to be blamed for
            verbose=False,
        )


def _item_at(samples: Sequence[Sample], number: int) -> dict[str, Any]:
    return _litdata_item(samples[number])


class _Encoded:
    """What FFCV's writer asks for: the members of a sample, each as uint8, (bytes,)."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> tuple[np.ndarray, ...]:
        return tuple(np.frombuffer(data, dtype=np.uint8) for data in members(self._samples[number]).values())


def write_ffcv(samples: Sequence[Sample], folder: Path) -> None:
    """Write one .beton by FFCV's DatasetWriter; the start of its worker is in the time, as it is in its users'."""
    from ffcv.fields import BytesField
    from ffcv.writer import DatasetWriter

    fields = {"image": BytesField(), "mask": BytesField(), "json": BytesField()}
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        DatasetWriter(str(folder / "a.beton"), fields, num_workers=1).from_indexed_dataset(_Encoded(samples))


WRITERS: dict[str, Writer] = {
    "tarfile": write_tarfile,
    "webdataset TarWriter": write_tar_writer,
    "webdataset ShardWriter": write_shard_writer,
    "streaming MDSWriter": write_mds,
    "streaming MDSWriter, xxh3": partial(write_mds, hashes=["xxh3_64"]),
    "litdata BinaryWriter": write_litdata_writer,
    "litdata optimize": write_litdata_optimize,
    _FFCV_WRITER: write_ffcv,
}


def tell_missing() -> dict[str, str]:
    """Say which writers could not be built on this machine, and why; empty where all are there."""
    return {} if (FOLDER / "ffcv").is_dir() else {_FFCV_WRITER: _FFCV_REASON}


def prepare(name: str, folder: Path, sample: Sample) -> None:
    """Import a writer's package and write one sample, so that a round does not pay for it."""
    if name.startswith(("streaming", "litdata", "ffcv")):
        use_peers()
        logging.getLogger("litdata").setLevel(logging.ERROR)
    folder.mkdir(parents=True)
    WRITERS[name]([sample], folder)


def count_bytes(folder: Path) -> int:
    """Add up the sizes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
