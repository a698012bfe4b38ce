"""The loader rung: training batches as the loader makes them, taken as fast as they come and thrown away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from unetfast.bench.rung import Round, Stopwatch, steps_of
from unetfast.config import Config
from unetfast.data.reader import SplitReader
from unetfast.data.sample import IMAGE_CODECS
from unetfast.device import num_usable_cores
from unetfast.loader.batch import Batch, Loader
from unetfast.loader.build import choose_backend
from unetfast.loader.pixels import choose_jpeg_reduction, decode_reduced

_DECODE_S = 0.25  # for which decoding alone is timed
_DECODE_SAMPLES = 64  # spread over the split, in turn


class LoaderRung:
    """Takes batches.

    Args:
        loader: a training loader.
        batches: its iterator, which the training rung may share.
        config: that the loader was built from.
        reader: of its split.
        device: where its batches are.
    """

    name = "loader"

    def __init__(
        self, loader: Loader, batches: Iterator[Batch], config: Config, *, reader: SplitReader, device: torch.device
    ) -> None:
        self._loader = loader
        self._batches = batches
        self._config = config
        self._reader = reader
        self._device = device
        self._num_steps = 1

    def warm_up(self, seconds: float) -> None:
        """Take batches until `seconds` are over, with a cache in RAM behind the epoch that fills it; see `Rung`."""
        if self._config.loader.cache == "ram":
            for _ in range(self._loader.num_batches):
                next(self._batches)
        self._drop_ready()
        began_s, num_batches = time.perf_counter(), 0
        while (took_s := time.perf_counter() - began_s) < seconds or not num_batches:
            next(self._batches)
            num_batches += 1
        self._num_steps = steps_of(seconds, took_s / num_batches)

    def run_round(self) -> Round:
        """Take the round's batches; see `Rung`."""
        self._drop_ready()
        self._wait()
        watch = Stopwatch()
        for _ in range(self._num_steps):
            next(self._batches)
        self._wait()
        wall_s, core_s = watch.read()
        return Round(self._num_steps * self._config.loader.batch_size, wall_s, core_s, {"cores_used": core_s / wall_s})

    def describe(self) -> dict[str, Any]:
        """Tell backend and settings, and on the CPU how fast decoding alone is; see `Rung`."""
        config = self._config.loader
        (height, width), rows = config.size_hw, self._reader.rows
        threads = config.threads or num_usable_cores()
        facts = {
            "batches_per_round": self._num_steps,
            "batch_size": config.batch_size,
            "size_hw": [height, width],
            "stored_over_target": round(min(rows["height"].mean() / height, rows["width"].mean() / width), 3),
            "device": str(self._device),
            "backend": self._loader.backend,
            "backend_because": choose_backend(self._config, self._device, training=True).reason,
            "threads": threads,
            "remarks": self._loader.facts,
            "decode": config.decode,
            "cache": config.cache,
            "checksum": config.checksum,
            "decode_images_per_core_s": None,
        }
        if self._loader.backend == "cpu" and config.cache == "off":
            facts["decode_images_per_core_s"] = float(f"{measure_decode(self._reader, self._config):.4g}")
        return facts

    def _drop_ready(self) -> None:
        """Drop what was made between two rounds."""
        for _ in range(num_made_ahead(self._config)):
            next(self._batches)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def num_made_ahead(config: Config) -> int:
    """Count the batches that a loader may hold ready: twice `prefetch_batches` at most (DALI), and the one in the making."""
    return 2 * config.loader.prefetch_batches + 1


def measure_decode(reader: SplitReader, config: Config) -> float:
    """Measure image decoding alone, on one thread: images a core-second.

    Whole images, JPEGs at the reduction that the loader takes for them. It is what no loader that decodes on these cores can
    pass, but for crops, which let it decode less than the whole or ask for more than the reduced one.
    """
    rows = reader.rows
    samples = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _DECODE_SAMPLES)).astype(int)).tolist()
    members = []
    for sample in samples:
        hw = (int(rows["height"][sample]), int(rows["width"][sample]))
        codec = IMAGE_CODECS[rows["image_codec"][sample]]
        reduction = choose_jpeg_reduction(hw, config.loader.size_hw, config.loader.decode) if codec == "jpeg" else 1
        members.append((reader.read_image(sample), codec, hw, reduction))
    num_images, began_s = 0, time.thread_time()
    while (took_s := time.thread_time() - began_s) < _DECODE_S:
        decode_reduced(*members[num_images % len(members)])
        num_images += 1
    return num_images / took_s
