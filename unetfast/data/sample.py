"""Contract 1, the sample: what a source folder gives and a shard takes.

A source lists `SampleRef`s (nothing is read), the packer turns each into a `Sample` (encoded, checked). Keys must survive
WebDataset, which cuts names at the first dot, and USTAR, which holds 100 bytes: hence the escape.
"""

from __future__ import annotations

import string
from dataclasses import dataclass, field

import numpy as np
import xxhash

from unetfast.data.counting import count_ids
from unetfast.data.labels import LabelTable
from unetfast.errors import BadSampleError

MAX_KEY_LENGTH = 80
_SAFE = frozenset((string.ascii_letters + string.digits + "_-").encode())
IMAGE_CODECS = ("jpeg", "lz4", "png")  # an index row holds the place in this tuple
MASK_CODECS = ("lz4", "png")


@dataclass(frozen=True, slots=True)
class FileSpan:
    """A whole file, or a piece of one (a tar member, a frame of an .npy file).

    Args:
        path: the file.
        offset: first byte.
        length: bytes; -1 is the rest of the file.
        frame: index along the first axis of a mask.npy; -1 where the file holds one mask.
    """

    path: str
    offset: int = 0
    length: int = -1
    frame: int = -1


@dataclass(frozen=True, slots=True)
class SampleRef:
    """Where one image and its mask lie in a source folder.

    Args:
        name: unique in its split and stable: the image's path without suffix, relative to the folder of its split.
        source_path: the image's path relative to the source folder, POSIX; for people and messages.
        image: the image's bytes.
        mask: the mask's bytes.
        group: samples of one group (car, video) never stand in two splits; "" where a sample stands alone.
        split: "train", "val" or "test"; "" where the source has no splits.
        num_bytes: size of image and mask in the source, bytes; shards are cut by it.
    """

    name: str
    source_path: str
    image: FileSpan
    mask: FileSpan
    group: str = ""
    split: str = ""
    num_bytes: int = 0

    @property
    def key(self) -> str:
        return escape_key(self.name)


@dataclass(frozen=True, slots=True)
class Sample:
    """One checked, encoded sample, as it goes into a shard.

    Args:
        key: `escape_key(name)`.
        image: encoded by `image_codec` (one of `IMAGE_CODECS`).
        mask: encoded by `mask_codec` (one of `MASK_CODECS`); a pixel is the class id or `ignore_index`.
        height: of image and mask, pixels.
        width: of image and mask, pixels.
        mask_bits: 1, 8 or 16; the same in the whole data set.
        source_path: as in `SampleRef`.
        group: as in `SampleRef`.
    """

    key: str
    image: bytes
    image_codec: str
    mask: bytes
    mask_codec: str
    height: int
    width: int
    mask_bits: int
    source_path: str
    group: str = ""


@dataclass(slots=True)
class SampleStats:
    """What the packer counts on a decoded sample, in integers so that sums do not depend on their order.

    Args:
        channel_sum: sum of R, G, B values in 0..255, int64, (3,).
        channel_square_sum: sum of their squares, int64, (3,).
        class_pixels: pixels of each class id, int64, (num_classes,).
        ignored_pixels: pixels of `ignore_index`.
        notes: what was changed on the way in, such as "grey -> RGB"; counted and reported.
    """

    channel_sum: np.ndarray
    channel_square_sum: np.ndarray
    class_pixels: np.ndarray
    ignored_pixels: int
    notes: tuple[str, ...] = field(default=())


def escape_key(name: str) -> str:
    """Turn a sample's name into its key in a shard: one to one, no dots, at most 80 characters.

    Every byte outside [A-Za-z0-9_-] becomes `=` and two hex digits. Past 80 characters the tail is replaced by `=h` and
    16 hex digits of xxh3 over the whole name (`=h` occurs in no escaped byte).
    """
    escaped = "".join(chr(byte) if byte in _SAFE else f"={byte:02X}" for byte in name.encode("utf-8", "surrogateescape"))
    if len(escaped) <= MAX_KEY_LENGTH:
        return escaped
    digest = xxhash.xxh3_64_hexdigest(name.encode("utf-8", "surrogateescape"))
    return f"{escaped[: MAX_KEY_LENGTH - 18]}=h{digest}"


def check_mask(mask_HW: np.ndarray, labels: LabelTable, *, image_hw: tuple[int, int], file: str) -> np.ndarray:
    """Prove that a mask holds only class ids and `ignore_index`, and count them.

    Args:
        mask_HW: ids, dtype `labels.mask_dtype`.
        labels: the data set's classes.
        image_hw: height and width of the image, pixels.
        file: the mask's file, for messages.

    Returns:
        Pixels of each id, int64, (num_classes + 1,); the last entry counts `ignore_index`.

    Raises:
        BadSampleError: the sizes differ, or an id is unknown; names the values found.
    """
    if mask_HW.dtype != labels.mask_dtype or mask_HW.ndim != 2:
        raise BadSampleError(file, f"mask is {mask_HW.dtype} of shape {mask_HW.shape}", "this is a bug of the source's reader")
    if mask_HW.shape != image_hw:
        raise BadSampleError(
            file,
            f"mask is {mask_HW.shape[1]}x{mask_HW.shape[0]}, its image is {image_hw[1]}x{image_hw[0]} (width x height)",
            "give the mask the image's size, or drop the pair with --on-bad skip",
        )
    counts, unknown = count_ids(mask_HW, labels)
    if unknown:
        raise BadSampleError(
            file,
            f"class ids {shorten(unknown)} are not among the {labels.num_classes} classes 0..{labels.num_classes - 1}",
            "map them with --map OLD=NEW, declare --ignore VALUE, or drop the pair with --on-bad skip",
        )
    return counts


def shorten(values: list[int], limit: int = 12) -> str:
    """List values for a message, the first `limit` of them."""
    text = ", ".join(str(value) for value in values[:limit])
    return f"{text}, ... ({len(values)} values)" if len(values) > limit else text
