"""Masks: decode and size of ours (LZ4, two classes as bits) beside PNG by OpenCV, on the masks of each data set (C6).

    python benchmarks/masks.py

One thread, members in memory; inflating the LZ4 frames alone stands beside, as what cannot be left out. A bar counts only
where every decoded mask is the same on both sides, and ours take at most 1.5 times the bytes of the PNGs, written by Pillow.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cv2
import lz4.frame
import material
import numpy as np
from bar import make_bar
from material import Took
from PIL import Image

from unetfast.bench.harness import take_turns
from unetfast.data.codecs import decode_mask
from unetfast.data.sample import Sample

_ROUND_S, _QUICK_ROUND_S = 0.25, 0.02  # of the slowest side, about
_MOST_BYTES = 1.5  # of ours, relative to PNG
_COLUMNS = {"masks/s": "images_per_s", "core-us/mask": "core_us_per_image", "bytes/mask": "bytes_per_mask"}

Decode = Callable[[Sample], np.ndarray]


def main(arguments: list[str] | None = None) -> int:
    return material.run_program("masks", __doc__, arguments, measure)


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Measure C6: a line a data set."""
    cv2.setNumThreads(1)
    real = material.find_real(given.real)
    data: dict[str, Any] = {"real_files": real is not None}
    sides: dict[str, Any] = {}
    bars = []
    for name in ("carvana", "ade20k", "clevr"):
        made = material.make_shards(name, given, real=real, num_samples=16 if name == "carvana" else None)
        data[made.label], found, bar = measure_set(made, given)
        sides |= {f"{made.label}: {side}": figures for side, figures in found.items()}
        bars.append(bar)
        material.print_sides(made.label, found, _COLUMNS)
    return {"data": data, "sides": sides, "bars": bars}


def measure_set(made: material.Shards, given: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Decode all masks of one data set by each side, in turn."""
    ours, png = material.read_samples(made.shards), material.read_samples(made.png_shards)
    decoders: dict[str, tuple[Decode, Sequence[Sample]]] = {
        "unetfast LZ4": (decode_ours, ours),
        "LZ4 frame alone": (inflate_alone, ours),
        "PNG, cv2": (decode_cv2, png),
        "PNG, Pillow": (decode_pillow, png),
    }
    same = all(
        np.array_equal(decode_ours(own), decode_cv2(other)) and np.array_equal(decode_ours(own), decode_pillow(other))
        for own, other in zip(ours, png, strict=True)
    )
    once = material.time_call(partial(_decode_all, decode_cv2, png, 1))
    passes = max(1, round((_QUICK_ROUND_S if given.quick else _ROUND_S) / max(once.wall_s, 1e-6)))
    turns: dict[str, Callable[[], Took]] = {
        # ten times as many passes where a mask takes a tenth of the time: a round is no shorter than the clock can tell
        name: partial(material.time_call, partial(_decode_all, decode, samples, passes * (10 if "LZ4" in name else 1)))
        for name, (decode, samples) in decoders.items()
    }
    took = take_turns(turns, given.rounds)
    for name in decoders:
        if "LZ4" in name:
            took[name] = [Took(one.wall_s / 10, one.core_s / 10) for one in took[name]]
    found = {}
    for name, (_, samples) in decoders.items():
        num_bytes = sum(len(sample.mask) for sample in samples)
        found[name] = material.sum_up(took[name], passes * len(samples), passes * num_bytes)
        found[name]["bytes_per_mask"] = round(num_bytes / len(samples))
    size_ratio = sum(len(sample.mask) for sample in ours) / sum(len(sample.mask) for sample in png)
    facts = {
        "masks": len(ours),
        "mask_bits": ours[0].mask_bits,
        "height": [min(sample.height for sample in ours), max(sample.height for sample in ours)],
        "width": [min(sample.width for sample in ours), max(sample.width for sample in ours)],
        "size_ratio": round(size_ratio, 3),
        "identical": same,
        "packed_with": material.describe_packing(made.shards),
    }
    rounds = material.ratios(took["unetfast LZ4"], took["PNG, cv2"])
    found["unetfast LZ4"]["core_ratio"] = material.spread(material.core_ratios(took["unetfast LZ4"], took["PNG, cv2"]))
    what = f"mask decode against cv2 PNG, {made.label}"
    fault = f"more than {_MOST_BYTES} times the bytes of the PNGs; " if size_ratio > _MOST_BYTES else ""
    fault = fault if same else "the decoded masks differ; "
    alone = material.say_share("inflating the LZ4 frame", took["LZ4 frame alone"], took["unetfast LZ4"], took["PNG, cv2"])
    note = f"{fault}{len(ours)} masks at {size_ratio:.2f}x the bytes; {alone}"
    return facts, found, make_bar("C6", what, rounds, floor=10, goal=30, sound=not fault, note=note)


def decode_ours(sample: Sample) -> np.ndarray:
    return decode_mask(sample.mask, sample.mask_codec, sample.mask_bits, height=sample.height, width=sample.width)


def inflate_alone(sample: Sample) -> np.ndarray:
    return np.frombuffer(lz4.frame.decompress(sample.mask), np.uint8)


def decode_cv2(sample: Sample) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(sample.mask, np.uint8), cv2.IMREAD_UNCHANGED))


def decode_pillow(sample: Sample) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(sample.mask)))


def _decode_all(decode: Decode, samples: Sequence[Sample], passes: int) -> None:
    for _ in range(passes):
        for sample in samples:
            decode(sample)


if __name__ == "__main__":
    sys.exit(main())
