"""What the figures of a loader depend on in its data: sizes, bytes, and which JPEGs a GPU's decoders take."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unetfast.data.reader import open_shards
from unetfast.data.sample import IMAGE_CODECS, MASK_CODECS

MAX_READ = 4096  # JPEG headers read; larger splits are told by so many samples spread over them
_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """What decides which decoder takes a JPEG (ITU-T T.81, B.2).

    Args:
        marker: of the frame: 0xC0 baseline, 0xC1 extended, 0xC2 progressive.
        bits: of a component's value.
        sampling: (horizontal, vertical) factors, one pair a component.
        components_of_first_scan: fewer than there are means several scans.
    """

    marker: int
    bits: int
    sampling: tuple[tuple[int, int], ...]
    components_of_first_scan: int

    @property
    def subsampling(self) -> str:
        """Name the chroma subsampling as J:a:b."""
        if len(self.sampling) == 1:
            return "grey"
        (across, down), chroma = self.sampling[0], self.sampling[1]
        ratio = (across / chroma[0], down / chroma[1])
        names: dict[tuple[float, float], str] = {
            **{(1, 1): "4:4:4", (2, 1): "4:2:2", (1, 2): "4:4:0"},
            **{(2, 2): "4:2:0", (4, 1): "4:1:1", (4, 2): "4:1:0"},
        }
        return names.get(ratio, f"{across}x{down} by {chroma[0]}x{chroma[1]}")

    def decoder(self) -> str:
        """Say what takes it: "hardware" (baseline, one scan, not 4:1:1 or 4:1:0, as nvJPEG documents), "cuda", or "cpu"."""
        if self.bits != 8 or self.marker not in (_BASELINE, _EXTENDED, _PROGRESSIVE) or len(self.sampling) not in (1, 3):
            return "cpu"
        one_scan = self.components_of_first_scan == len(self.sampling)
        usual = self.subsampling in ("grey", "4:4:4", "4:2:2", "4:4:0", "4:2:0")
        return "hardware" if self.marker == _BASELINE and one_scan and usual else "cuda"


def read_jpeg_header(data: bytes) -> JpegHeader:
    """Read a JPEG's frame and first scan header.

    Raises:
        ValueError: it has none.
    """
    place, frame = 2, None
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # fill byte
            place += 1
            continue
        body = data[place + 4 : place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(body) >= 6 + 3 * body[5]:
            factors = tuple((body[7 + 3 * i] >> 4, body[7 + 3 * i] & 15) for i in range(body[5]))
            frame = (marker, body[0], factors)
        if marker == 0xDA and frame is not None and body:
            return JpegHeader(*frame, components_of_first_scan=body[0])
        place += 4 + len(body)
    raise ValueError("no JPEG frame and scan header")


def describe_shards(folder: Path, split: str = "train") -> dict[str, Any]:
    """Tell a split's samples, sizes, mean bytes, codecs, and the share of images that each JPEG decoder takes."""
    with open_shards(folder).split(split) as reader:
        rows = reader.rows
        chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MAX_READ)).astype(int))
        decoders, sampling = Counter[str](), Counter[str]()
        for sample in chosen.tolist():
            if IMAGE_CODECS[rows[sample]["image_codec"]] != "jpeg":
                decoders["no JPEG"] += 1
                continue
            header = read_jpeg_header(reader.read_image(sample))
            decoders[header.decoder()] += 1
            sampling[header.subsampling] += 1
        return {
            "dataset": reader.manifest.dataset,
            "samples": len(rows),
            "tar_mib": round(sum(shard.bytes for shard in reader.split.shards) / 2**20, 2),
            "height": [int(rows["height"].min()), int(rows["height"].max())],
            "width": [int(rows["width"].min()), int(rows["width"].max())],
            "image_bytes_mean": round(float(rows["image_length"].mean())),
            "mask_bytes_mean": round(float(rows["mask_length"].mean())),
            "image_codecs": _count(rows["image_codec"], IMAGE_CODECS),
            "mask_codecs": _count(rows["mask_codec"], MASK_CODECS),
            "mask_bits": reader.manifest.mask_bits,
            "jpeg_subsampling": dict(sampling.most_common()),
            # by header alone; what a decoder did is told by jpeg_unit_pct of a side
            "decodable_by_pct": {name: round(100 * count / len(chosen), 2) for name, count in decoders.most_common()},
        }


def _count(codes: np.ndarray, names: tuple[str, ...]) -> dict[str, int]:
    return {names[code]: int(count) for code, count in zip(*np.unique(codes, return_counts=True), strict=True)}
