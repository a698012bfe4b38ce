"""One sample of the source becomes one sample of a shard: read, decode, prove, count, encode.

This is all the work that the packer does per sample; it depends on the sample and the options alone, so any worker may do it.
What a file's bytes mean is `image.py`'s and the source's business; here it is decided in which form they are stored.

Axis letters: H height, W width, C channels (R, G, B).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from unetfast.data.codecs import encode_image, encode_mask
from unetfast.data.image import LoadedImage, load_image
from unetfast.data.labels import LabelTable
from unetfast.data.options import PackOptions
from unetfast.data.sample import Sample, SampleRef, SampleStats, check_mask
from unetfast.data.sources.base import MaskReader
from unetfast.data.spans import describe_span, read_span

MAX_RAW_RESIZED_PX = 65_536  # above it raw RGB costs more reading than JPEG costs decoding
COPY = "copy"  # the source's own JPEG bytes
_SUM_ROWS = 1 << 15  # 255^2 times this fits 32 bits


@dataclass(frozen=True, slots=True)
class SampleEncoder:
    """Encodes samples of one data set. Picklable: it travels to worker processes.

    Args:
        labels: the classes.
        read_mask: the source's mask reader.
        options: codecs, sizes, EXIF.
    """

    labels: LabelTable
    read_mask: MaskReader
    options: PackOptions

    def encode(self, ref: SampleRef) -> tuple[Sample, SampleStats]:
        """Read, check, and encode one sample.

        Sums for the normalisation are taken from the pixels before a lossy encoding.

        Raises:
            BadSampleError: image or mask is unreadable, their sizes differ, or an id is unknown.
        """
        image_file = describe_span(ref.image)
        source_bytes = read_span(ref.image)
        loaded = load_image(source_bytes, file=image_file, exif=self.options.exif)
        rgb_HWC, mask_HW = loaded.rgb_HWC, self.read_mask(ref.mask)
        source_hw = (rgb_HWC.shape[0], rgb_HWC.shape[1])
        counts = check_mask(mask_HW, self.labels, image_hw=source_hw, file=describe_span(ref.mask))
        stored_hw = choose_size(source_hw, self.options)
        resized = stored_hw != source_hw
        if resized:
            rgb_HWC, mask_HW = resize_image(rgb_HWC, stored_hw), resize_mask(mask_HW, stored_hw)
            counts = check_mask(mask_HW, self.labels, image_hw=stored_hw, file=describe_span(ref.mask))
        choice = choose_codec(loaded, stored_hw, resized=resized, image_codec=self.options.image_codec)
        mask_bits = self.options.stored_mask_bits(self.labels)
        sample = Sample(
            key=ref.key,
            image=source_bytes if choice == COPY else encode_image(rgb_HWC, choice),
            image_codec="jpeg" if choice == COPY else choice,
            mask=encode_mask(mask_HW, self.options.mask_codec, mask_bits),
            mask_codec=self.options.mask_codec,
            height=stored_hw[0],
            width=stored_hw[1],
            mask_bits=mask_bits,
            source_path=ref.source_path,
            group=ref.group,
        )
        sums, square_sums = sum_channels(rgb_HWC)
        stats = SampleStats(sums, square_sums, counts[:-1], int(counts[-1]), _build_notes(loaded, choice, resized=resized))
        return sample, stats


def choose_size(source_hw: tuple[int, int], options: PackOptions) -> tuple[int, int]:
    """Height and width in which an image is stored, pixels."""
    if options.size_hw is not None:
        return options.size_hw
    longest = max(source_hw)
    if options.max_side is None or longest <= options.max_side:
        return source_hw
    height, width = (max(1, (2 * side * options.max_side + longest) // (2 * longest)) for side in source_hw)
    return height, width


def choose_codec(loaded: LoadedImage, stored_hw: tuple[int, int], *, resized: bool, image_codec: str) -> str:
    """Choose how an image is stored: COPY, "jpeg", "png" or "lz4".

    JPEG files are copied where that is allowed, since a second encoding loses detail and decoders on GPUs take JPEG. "auto"
    stores all others raw: a PNG costs 6 to 14 JPEG decodes each time it is read.
    """
    may_copy = loaded.copyable and not resized
    if image_codec == "auto":
        if may_copy:
            return COPY
        return "jpeg" if resized and stored_hw[0] * stored_hw[1] > MAX_RAW_RESIZED_PX else "lz4"
    if image_codec == "png":
        return COPY if may_copy else "png"
    if image_codec == "jpeg":
        return COPY if may_copy and loaded.jpeg_kind == "baseline" else "jpeg"
    return "lz4"


def is_copied(ref: SampleRef, options: PackOptions) -> bool:
    """Whether an image's bytes are stored as they are, as far as options and its name can tell: no file is opened.

    Single files may turn out otherwise (a JPEG of CMYK, a PNG that is named .jpg), whole data sets hardly.
    """
    if options.image_codec not in ("auto", "png") or options.exif != "error":  # "jpeg" does not copy progressive files
        return False
    resized = options.size_hw is not None or options.max_side is not None
    return not resized and ref.source_path.lower().endswith((".jpg", ".jpeg"))


def resize_image(rgb_HWC: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Resize by the antialiased triangle filter (Pillow's BILINEAR); uint8, (H, W, 3)."""
    height, width = size_hw
    return np.asarray(Image.fromarray(rgb_HWC).resize((width, height), Image.Resampling.BILINEAR))


def resize_mask(mask_HW: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Resize by nearest neighbour: target pixel i takes source pixel floor((i + 0.5) * source / target), exactly."""
    rows, columns = (
        (2 * np.arange(target, dtype=np.int64) + 1) * source // (2 * target)
        for source, target in zip(mask_HW.shape, size_hw, strict=True)
    )
    return np.ascontiguousarray(mask_HW[rows[:, None], columns[None, :]])


def sum_channels(rgb_HWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum values and squared values of each channel, exactly.

    OpenCV's sum counts bytes in integers. Squares are summed by columns in 32-bit integers, over blocks of rows that cannot
    overflow; together a full Carvana image takes a third of the time of its JPEG decode, where numpy takes ten times as long.

    Args:
        rgb_HWC: uint8, (H, W, 3).

    Returns:
        Two arrays, int64, (3,).
    """
    sums = np.zeros(3, dtype=np.int64)
    square_sums = np.zeros(3, dtype=np.int64)
    for top in range(0, len(rgb_HWC), _SUM_ROWS):
        block = rgb_HWC[top : top + _SUM_ROWS]
        sums += np.array(cv2.sumElems(block)[:3], dtype=np.float64).astype(np.int64)
        columns = cv2.reduce(block, 0, cv2.REDUCE_SUM2, dtype=cv2.CV_32S)
        square_sums += columns.reshape(-1, 3).sum(axis=0, dtype=np.int64)
    return sums, square_sums


def _build_notes(loaded: LoadedImage, choice: str, *, resized: bool) -> tuple[str, ...]:
    notes = list(loaded.notes)
    if choice == COPY and loaded.jpeg_kind == "progressive":
        notes.append("progressive JPEG, copied; GPUs decode it without their JPEG unit")
    if choice == "jpeg":
        notes.append("resized and stored as JPEG q95 4:4:4" if resized else "stored as JPEG q95 4:4:4")
    elif resized:
        notes.append(f"resized and stored as {choice.upper()}")
    return tuple(notes)
