"""What the user may choose about packing, checked before anything is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from unetfast.data.image import DEFAULT_MAX_PIXELS
from unetfast.data.labels import LabelTable
from unetfast.data.sources.base import SourceOptions
from unetfast.errors import UserError

IMAGE_CHOICES = ("auto", "jpeg", "png", "lz4")
MASK_CHOICES = ("lz4", "png")
_EXIF_CHOICES = ("error", "apply", "ignore")
DEFAULT_MAX_BAD_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class PackOptions:
    """Options of packing; all but `on_bad` and `max_bad` shape the bytes of every shard.

    Args:
        val_fraction: share of the groups held back for validation where the source has no splits, in [0, 1]; 0 and 1 give a
            single split.
        seed: of the split and of the order of samples in the shards; not negative.
        max_side: images whose longer side exceeds this many pixels are shrunk to it, aspect kept.
        size_hw: every image is resized to this height and width, pixels.
        image_codec: "auto" (JPEG files as they are, others raw in LZ4), "png" (JPEG files as they are, others PNG), "jpeg"
            (baseline JPEG files as they are, others encoded) or "lz4" (all raw).
        mask_codec: "lz4" or "png".
        shard_mib: upper bound of a tar's source bytes, MiB; a small split is cut finer (see plan.py).
        exif: what to do with an image that EXIF says is rotated: "error", "apply", "ignore".
        on_bad: "error" stops at the first bad sample, "skip" leaves it out and lists it in skipped.jsonl.
        max_bad: under "skip", more bad samples than this stop the packing; None is a tenth of the samples.

    Raises:
        UserError: a value is out of its range, or `max_side` and `size_hw` are both given.
    """

    val_fraction: float = 0.1
    seed: int = 0
    max_side: int | None = None
    size_hw: tuple[int, int] | None = None
    image_codec: str = "auto"
    mask_codec: str = "lz4"
    shard_mib: float = 64.0
    exif: str = "error"
    on_bad: str = "error"
    max_bad: int | None = None

    def __post_init__(self) -> None:
        _check(0 <= self.val_fraction <= 1, f"--val-fraction {self.val_fraction}: give a share in [0, 1]")
        _check(0 <= self.seed < 1 << 63, f"--seed {self.seed}: give a whole number from 0 to 2^63 - 1")
        _check(self.max_side is None or self.max_side > 0, f"--max-side {self.max_side}: give pixels, at least 1")
        size = "" if self.size_hw is None else "x".join(map(str, self.size_hw))
        _check(self.size_hw is None or min(self.size_hw) > 0, f"--size {size}: give HEIGHTxWIDTH, at least 1x1")
        num_pixels = 0 if self.size_hw is None else self.size_hw[0] * self.size_hw[1]
        _check(num_pixels <= DEFAULT_MAX_PIXELS, f"--size {size}: more than {DEFAULT_MAX_PIXELS:,} pixels; give fewer")
        _check(self.size_hw is None or self.max_side is None, "--size and --max-side exclude each other: give one of them")
        finite = math.isfinite(self.shard_mib) and self.shard_mib > 0
        _check(finite, f"--shard-mib {self.shard_mib}: give a positive number of MiB")
        _check(self.max_bad is None or self.max_bad >= 0, f"--max-bad {self.max_bad}: give a number of samples, 0 or more")
        _check(self.max_bad is None or self.on_bad == "skip", "--max-bad counts what --on-bad skip leaves out: give both")
        for flag, value, choices in (
            ("--image-codec", self.image_codec, IMAGE_CHOICES),
            ("--mask-codec", self.mask_codec, MASK_CHOICES),
            ("--exif", self.exif, _EXIF_CHOICES),
            ("--on-bad", self.on_bad, ("error", "skip")),
        ):
            _check(value in choices, f"{flag} {value}: choose one of {', '.join(choices)}")

    def stored_mask_bits(self, labels: LabelTable) -> int:
        """Bits of a pixel in the masks that these options write: PNG masks are never packed to 1 bit."""
        return 8 * labels.mask_dtype.itemsize if self.mask_codec == "png" else labels.mask_bits

    def allowed_bad(self, num_samples: int) -> int:
        """Number of bad samples among `num_samples` that may be skipped."""
        if self.on_bad == "error":
            return 0
        return math.ceil(DEFAULT_MAX_BAD_SHARE * num_samples) if self.max_bad is None else self.max_bad

    def to_tree(self, source: SourceOptions) -> dict[str, Any]:
        """List what shapes the bytes, for the manifest and for telling two packings apart.

        The classes file is not in it (what it says is in the label table), nor are `on_bad` and `max_bad` (they decide whether
        there are shards, not what is in them), so that a packing that met a bad sample can go on under "skip".
        """
        return {
            "val_fraction": self.val_fraction,
            "seed": self.seed,
            "max_side": self.max_side,
            "size_hw": None if self.size_hw is None else list(self.size_hw),
            "image_codec": self.image_codec,
            "mask_codec": self.mask_codec,
            "shard_mib": self.shard_mib,
            "exif": self.exif,
            "ignore_value": source.ignore_value,
            "value_map": [
                [list(value) if isinstance(value, tuple) else value, class_id] for value, class_id in source.value_map
            ],
            "mask_suffix": source.mask_suffix,
        }


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)
