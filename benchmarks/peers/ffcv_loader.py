"""FFCV: its DatasetWriter and its compiled pipelines; images as JPEG of quality 95, or raw at the size of training.

Its decoders cut a part out of an image before they resize it; the one here takes the whole image, as every other side does. It
resizes by OpenCV's area filter. A field of arrays holds one shape, so masks are stored at the size of training: they cost it
less than they cost the others. It has no rotation.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import quality
from PIL import Image

from peers import use_peers
from peers.loading import LoaderTask, Pair, Stream

KNOBS = tuple({"threads": threads, "batch_size": 16} for threads in (2, 1))

_FILE = "samples.beton"
_JPEG_QUALITY = 95
_EPOCH = 100_000  # samples; those there are, again and again, so that its start of an epoch costs nothing
_BATCHES_AHEAD = 3  # as its Loader has by default


class _Pairs:
    """What its writer asks for: an image, RGB, (H, W, 3), and the mask's values at the size of training, uint8, (h, w)."""

    def __init__(self, pairs: list[Pair], size_hw: tuple[int, int], *, is_raw: bool) -> None:
        self._pairs, self._size_hw, self._is_raw = pairs, size_hw, is_raw

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        pair = self._pairs[number]
        with Image.open(pair.image) as image, Image.open(pair.mask) as mask:
            values_HW = np.asarray(mask.convert("L") if pair.mask.suffix == ".gif" else mask)
            rgb = image.convert("RGB")
            if self._is_raw:
                rgb = rgb.resize(self._size_hw[::-1], Image.Resampling.BILINEAR)
            return np.asarray(rgb), np.ascontiguousarray(quality.nearest(values_HW, self._size_hw))


def write_store(pairs: list[Pair], folder: Path, *, size_hw: tuple[int, int], is_raw: bool) -> None:
    """Write one .beton.

    Args:
        pairs: the samples.
        folder: to be made.
        size_hw: of masks, and of images where these are raw, pixels.
        is_raw: images as pixels at that size; else as JPEG at their own.
    """
    use_peers()
    from ffcv.fields import NDArrayField, RGBImageField
    from ffcv.writer import DatasetWriter

    mode = {"write_mode": "raw"} if is_raw else {"write_mode": "jpg", "jpeg_quality": _JPEG_QUALITY}
    fields = {"image": RGBImageField(**mode), "mask": NDArrayField(np.dtype(np.uint8), size_hw)}
    folder.mkdir(parents=True)
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        DatasetWriter(str(folder / _FILE), fields, num_workers=1).from_indexed_dataset(_Pairs(pairs, size_hw, is_raw=is_raw))


def open_stream(task: LoaderTask, knobs: dict[str, int], *, plain: bool) -> Stream:
    use_peers()
    sys.unraisablehook = _pass_over_numba
    from ffcv.fields.ndarray import NDArrayDecoder
    from ffcv.fields.rgb_image import ResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor, ToTorchImage

    class WholeImage(ResizedCropRGBImageDecoder):  # type: ignore[misc]
        scale = ratio = (1.0, 1.0)

        @property
        def get_crop_generator(self) -> Any:
            return _take_all

    num_samples = len(task.pairs)
    loader = Loader(
        str(task.store / _FILE),
        batch_size=knobs["batch_size"],
        num_workers=knobs["threads"],
        os_cache=True,
        order=OrderOption.SEQUENTIAL if plain else OrderOption.RANDOM,
        seed=task.seed,
        indices=None if plain else np.tile(np.arange(num_samples), -(-_EPOCH // num_samples)),
        drop_last=not plain,
        batches_ahead=_BATCHES_AHEAD,
        pipelines={
            "image": [WholeImage(task.size_hw), ToTensor(), ToTorchImage()],
            "mask": [NDArrayDecoder(), ToTensor()],
        },
    )

    def batches() -> Iterator[tuple[Any, Any]]:
        for _ in itertools.count() if not plain else (0,):
            yield from loader

    stream = batches()
    return Stream(
        stream,
        stream.close,
        tuple(pair.key for pair in task.pairs),
        num_ahead=_BATCHES_AHEAD,
        mask_values="raw",
        facts={"knows_rotation": False},
    )


def _take_all(height: int, width: int, scale: Any, ratio: Any) -> tuple[int, int, int, int]:  # noqa: ARG001  # as ffcv calls it
    return 0, 0, height, width


def _pass_over_numba(what: sys.UnraisableHookArgs) -> None:
    """Leave out what numba's finalizers say of functions that ffcv compiled twice."""
    where = what.exc_traceback and what.exc_traceback.tb_frame.f_code.co_filename
    if not (isinstance(what.exc_value, KeyError) and where and "numba" in where):
        sys.__unraisablehook__(what)
