"""The same source files in each side's own format, for the comparison of loaders."""

from __future__ import annotations

import importlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peers.loading import Pair

from unetfast.bench.toyshards import draw_toy
from unetfast.data.options import PackOptions
from unetfast.data.pack import pack
from unetfast.data.sources.base import SourceOptions
from unetfast.data.sources.detect import scan_source

REAL_FOLDERS = {"carvana": "carvana", "ade20k": "ade20k_5class/ADEChallengeData2016"}
TOY_SAMPLES = {"carvana": 24, "ade20k": 64}
# stores that a peer's module writes; the others are packed by ours
_WRITERS = {"wds": "peers.wds_pillow", "mds": "peers.streaming_loader", "litdata": "peers.litdata_loader"}
_PACKED = PackOptions(val_fraction=0.0, shard_mib=16.0)


@dataclass(frozen=True, slots=True)
class LoaderData:
    """A data set, and where it lies in each format.

    Args:
        dataset: "carvana" or "ade20k".
        is_real: real files; else toy data of real sizes.
        source: the source folder.
        pairs: its training images and masks.
        stores: folder by format: "files" (the source), "shards", "png" (ours with PNG masks), "small" (ours at training size,
            raw), "wds", "mds", "litdata", "beton" (JPEG), "beton-small" (raw).
    """

    dataset: str
    is_real: bool
    source: Path
    pairs: tuple[Pair, ...]
    stores: dict[str, Path]

    @property
    def name(self) -> str:
        return f"{self.dataset} {'real' if self.is_real else 'toy'}"

    def describe(self) -> dict[str, Any]:
        """Tell samples, sizes, and bytes in each format; JSON."""
        source_bytes = sum(file.stat().st_size for pair in self.pairs for file in (pair.image, pair.mask))
        others = {name: _folder_bytes(folder) for name, folder in self.stores.items() if name != "files"}
        return {
            "dataset": self.dataset,
            "real": self.is_real,
            "samples": len(self.pairs),
            "kib_per_sample": {
                name: round(size / len(self.pairs) / 1024, 1) for name, size in {"files": source_bytes, **others}.items()
            },
        }


def make_data(
    dataset: str,
    real: Path | None,
    work: Path,
    *,
    toy_root: Path,
    formats: set[str],
    size_hw: tuple[int, int],
    small: bool = False,
    seed: int = 0,
) -> LoaderData:
    """Find or draw a data set, and write it in the formats asked for.

    Args:
        dataset: "carvana" or "ade20k".
        real: folder of the real sample files; None draws toy data.
        work: receives the formats.
        toy_root: keeps toy sources.
        formats: of `LoaderData.stores`.
        size_hw: of "small", pixels.
        small: toy images of a quarter of their sides, and fewer.
        seed: of the toy data.

    Raises:
        UserError: the real files are not there.
    """
    if real is None:
        num_samples = None if small else TOY_SAMPLES[dataset]
        source = draw_toy(dataset, toy_root, num_samples=num_samples, small=small, seed=seed)
    else:
        source = real / REAL_FOLDERS[dataset]
    pairs = list_pairs(source, dataset)
    stores = {name: work / f"{dataset}-{'toy' if real is None else 'real'}-{name}" for name in sorted(formats - {"files"})}
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        jobs = [
            pool.submit(write_store, name, folder, pairs, source=source, dataset=dataset, size_hw=size_hw)
            for name, folder in stores.items()
        ]
        for job in jobs:
            job.result()
    return LoaderData(dataset, real is not None, source, tuple(pairs), {"files": source, **stores})


def list_pairs(source: Path, dataset: str) -> list[Pair]:
    """List the training images and masks of a source folder, by key."""
    samples = [ref for ref in scan_source(source, dataset, SourceOptions()).samples if ref.split in ("", "train")]
    return [Pair(ref.key, Path(ref.image.path), Path(ref.mask.path)) for ref in samples]


def write_store(name: str, folder: Path, pairs: list[Pair], *, source: Path, dataset: str, size_hw: tuple[int, int]) -> None:
    """Write one format; in a process of its own, for a peer's package may leave threads behind."""
    if name in _WRITERS:
        importlib.import_module(_WRITERS[name]).write_store(pairs, folder)
        return
    if name in ("beton", "beton-small"):
        importlib.import_module("peers.ffcv_loader").write_store(pairs, folder, size_hw=size_hw, is_raw=name != "beton")
        return
    options = {
        "shards": _PACKED,
        "png": replace(_PACKED, image_codec="png", mask_codec="png"),
        "small": replace(_PACKED, image_codec="lz4", size_hw=size_hw),
    }
    pack(source, folder, dataset=dataset, options=options[name], workers=1)


def _folder_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
