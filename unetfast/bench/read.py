"""The reading rung: bytes of images and masks out of the shards, each held against its hash, and nothing decoded.

One thread, in index order, through the reader that both loader backends use. The same samples are read in every round, so
they come from the page cache: what is told is the cost of reading, not the speed of a disk.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import xxhash

from unetfast.bench.rung import Round, Stopwatch
from unetfast.data.reader import SplitReader

_PROBE_SAMPLES = 64  # read between two looks at the clock, in the warm-up
_HASH_S = 0.05  # for which the hash alone is timed
_HASH_BYTES = 64 << 20  # more than a core's caches hold
_HASH_PIECES = 4096  # at most; of so small ones the call costs more than the memory


class ReadRung:
    """Reads image and mask of one sample after another.

    Args:
        reader: of the split; whether bytes are held against their hash is its matter.
        checksum: whether it does, for the record.
    """

    name = "read"

    def __init__(self, reader: SplitReader, *, checksum: bool) -> None:
        self._reader = reader
        self._checksum = checksum
        self._num_images = 1

    def warm_up(self, seconds: float) -> None:
        """Read until `seconds` are over; see `Rung`."""
        samples = itertools.cycle(range(self._reader.num_samples))
        began_s, num_images = time.perf_counter(), 0
        while (took_s := time.perf_counter() - began_s) < seconds or not num_images:
            for sample in itertools.islice(samples, _PROBE_SAMPLES):
                self._read(sample)
            num_images += _PROBE_SAMPLES
        self._num_images = max(1, round(num_images * seconds / max(took_s, seconds)))

    def run_round(self) -> Round:
        """Read the round's samples, from the first on; see `Rung`."""
        watch = Stopwatch()
        num_bytes = sum(map(self._read, itertools.islice(itertools.cycle(range(self._reader.num_samples)), self._num_images)))
        wall_s, core_s = watch.read()
        return Round(self._num_images, wall_s, core_s, {"mib_per_s": num_bytes / wall_s / 2**20})

    def describe(self) -> dict[str, Any]:
        """Tell the bytes of an image with its mask, and how fast the hash alone is on such pieces of memory; see `Rung`."""
        rows = self._reader.rows
        num_bytes = round(float(rows["image_length"].mean() + rows["mask_length"].mean()))
        return {
            "images_per_round": self._num_images,
            "threads": 1,
            "checksum": self._checksum,
            "bytes_per_image": num_bytes,
            "hash_gb_per_s": round(measure_hash(num_bytes, len(rows)) / 1e9, 2) if self._checksum else None,
        }

    def _read(self, sample: int) -> int:
        return len(self._reader.read_image(sample)) + len(self._reader.read_mask(sample))


def measure_hash(num_bytes: int, num_samples: int) -> float:
    """Measure xxh3 alone on `num_samples` pieces of `num_bytes` in turn, as few as lie beyond a cache; bytes a core-second."""
    num_pieces = min(max(1, _HASH_BYTES // max(1, num_bytes)), _HASH_PIECES, num_samples)
    memory = memoryview(b"\x01" * (num_pieces * num_bytes))  # written once: pages of zeros would all be one page
    pieces = [memory[num_bytes * place : num_bytes * (place + 1)] for place in range(num_pieces)]
    num_hashed, began_s = 0, time.thread_time()
    while (took_s := time.thread_time() - began_s) < _HASH_S:
        xxhash.xxh3_64_intdigest(pieces[num_hashed % num_pieces])
        num_hashed += 1
    return num_hashed * num_bytes / took_s
