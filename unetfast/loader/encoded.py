"""What the host does for the DALI backend: one sample's members -> arrays that a pipeline can be fed with; no pixels of JPEGs.

JPEG images stay encoded. Raw and PNG images are decoded here, and so are masks, of which only the crop box goes on, bit-packed
ones still packed. Whatever can be wrong with a sample is looked for before DALI sees it, since DALI loses the whole batch:
checksums, the sizes in JPEG headers, and JPEGs with markers out of order, which the CPU backend's decoder then judges.

Axis letters: H height, W width, C channels (R, G, B).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import simplejpeg

from unetfast.config import Config
from unetfast.data.codecs import decode_image, encode_image, encode_mask, inflate_bits
from unetfast.data.reader import SplitReader
from unetfast.data.sample import IMAGE_CODECS, MASK_CODECS
from unetfast.errors import CorruptShardError
from unetfast.loader.augment import Augmentation, draw_augmentation
from unetfast.loader.foreground import CropRule
from unetfast.loader.jpegscan import is_well_formed
from unetfast.loader.lz4blocks import split_frame
from unetfast.loader.order import Places

# where boxes hold more than this share of their images' pixels, on average, libjpeg-turbo decodes a whole image as fast
_REGION_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class FeedPlan:
    """What a split's samples are fed as; one pipeline is built for all batches of a loader.

    Args:
        images: "encoded" (JPEG bytes; raw ones as PPM files among them), "pixels" (H, W, 3), or "blocks" (of LZ4).
        masks: "pixels" (H, W, 1), "bits" (H, ceil(W / 8), 1), or "blocks" (of LZ4, of either).
        packed: whether a mask is of bits, also where it travels as blocks.
        mask_bytes: of a mask's pixel: 1 or 2.
        region: decode only the region of a JPEG that its crop needs.
        warp: some samples are rotated or zoomed out.
        color: some samples' colours are changed.
    """

    images: str
    masks: str
    packed: bool
    mask_bytes: int
    region: bool
    warp: bool
    color: bool


def plan_feed(
    reader: SplitReader, config: Config, *, training: bool, on_gpu: bool, numbers: Augmentation, stored_hw: np.ndarray
) -> FeedPlan:
    """Decide how a split is fed.

    `dali.region_decode = "auto"` means no regions on a GPU: its JPEG unit decodes none, and with nvImageCodec 0.9.0 they end
    the process on some cards (NVIDIA/nvImageCodec issue 55).

    Args:
        reader: the split.
        config: the augment and dali sections.
        training: whether samples are augmented.
        on_gpu: whether DALI decodes on a GPU.
        numbers: of some samples of the split, by which regions are judged.
        stored_hw: their heights and widths, pixels, (n, 2).
    """
    image_codecs = {IMAGE_CODECS[code] if code < len(IMAGE_CODECS) else "" for code in np.unique(reader.rows["image_codec"])}
    mask_codecs = {MASK_CODECS[code] if code < len(MASK_CODECS) else "" for code in np.unique(reader.rows["mask_codec"])}
    inflate_there, augment = config.dali.inflate == "gpu", config.augment
    packed = reader.manifest.mask_bits == 1 and mask_codecs == {"lz4"}
    raw = "blocks" if inflate_there and image_codecs == {"lz4"} else "pixels"
    heights, widths = (numbers.crop_yxyx[:, 2:] - numbers.crop_yxyx[:, :2]).T
    share = float(np.mean(heights * widths / stored_hw.prod(axis=1))) if len(stored_hw) else 1.0
    wanted = {"always": True, "never": False, "auto": share < _REGION_SHARE and not on_gpu}[config.dali.region_decode]
    colors = (augment.brightness, augment.contrast, augment.saturation, augment.hue)
    return FeedPlan(
        images="encoded" if "jpeg" in image_codecs else raw,
        masks="blocks" if inflate_there and mask_codecs == {"lz4"} else "bits" if packed else "pixels",
        packed=packed,
        mask_bytes=2 if reader.manifest.mask_bits == 16 else 1,
        region=wanted and "jpeg" in image_codecs,
        warp=training and (augment.rotation.prob > 0 or (augment.scale.prob > 0 and augment.scale.range[0] < 1)),
        color=training and any(color.prob > 0 for color in colors),
    )


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """One sample, ready to be fed.

    Args:
        image: uint8; the member's bytes (n,), pixels (H, W, 3), or blocks (n,).
        image_blocks: sizes of the blocks, int32; empty where there are none.
        mask: uint8, or int16 holding the bits of uint16; the box's pixels (h, w, 1) or bytes of bits, or blocks (n,).
        mask_blocks: as `image_blocks`.
    """

    image: np.ndarray
    image_blocks: np.ndarray
    mask: np.ndarray
    mask_blocks: np.ndarray


_NO_BLOCKS = np.zeros(0, dtype=np.int32)


def load_encoded(
    reader: SplitReader, sample_id: int, numbers: Augmentation, row: int, feed: FeedPlan, rule: CropRule
) -> EncodedSample:
    """Read, check and prepare one sample; its mask chooses its crop where there is a choice.

    Args:
        reader: the split.
        sample_id: of the sample.
        numbers: of its batch; its row's crop is replaced by the chosen one.
        row: of the sample.
        feed: of the loader.
        rule: how masks choose; not used where masks are fed as blocks.

    Raises:
        CorruptShardError: it cannot be read, its bytes are not those that were packed, or they cannot be decoded.
    """
    mask, mask_blocks = _load_mask(reader, sample_id, numbers, row, feed, rule)
    image, image_blocks = _load_image(reader, sample_id, feed)
    return EncodedSample(image, image_blocks, mask, mask_blocks)


def make_control(places: Places, target_hw: tuple[int, int], feed: FeedPlan) -> tuple[EncodedSample, dict[str, np.ndarray]]:
    """Make a small sample that is sound for certain, and its numbers: what DALI refuses with it, no file is to blame for.

    Args:
        places: any one.
        target_hw: of the batch, pixels.
        feed: of the loader.
    """
    hw = (16, 16)
    rgb_HWC = np.zeros((*hw, 3), dtype=np.uint8)
    row_bytes = 2 if feed.packed else hw[1] * feed.mask_bytes
    image, image_blocks = rgb_HWC, _NO_BLOCKS
    mask, mask_blocks = (
        np.zeros((hw[0], 2 if feed.packed else hw[1], 1), np.int16 if feed.mask_bytes == 2 else np.uint8),
        _NO_BLOCKS,
    )
    if feed.images == "encoded":
        image = np.frombuffer(encode_image(rgb_HWC, "jpeg"), dtype=np.uint8)
    elif feed.images == "blocks":
        image, image_blocks = split_frame(encode_image(rgb_HWC, "lz4"), rgb_HWC.nbytes)
    if feed.masks == "blocks":
        frame = encode_mask(np.zeros(hw, np.uint8), "lz4", 1 if feed.packed else 8 * feed.mask_bytes)
        mask, mask_blocks = split_frame(frame, hw[0] * row_bytes)
    stored_hw = np.array([hw])
    numbers = draw_augmentation(None, places, stored_hw, seed=0, target_hw=target_hw)
    inputs = number_inputs(numbers, stored_hw, target_hw, feed) | block_inputs(numbers, stored_hw, feed)
    return EncodedSample(image, image_blocks, mask, mask_blocks), inputs


def _load_image(reader: SplitReader, sample_id: int, feed: FeedPlan) -> tuple[np.ndarray, np.ndarray]:
    row = reader.rows[sample_id]
    codec = reader.image_codec(sample_id)
    height, width = int(row["height"]), int(row["width"])
    data = reader.read_image(sample_id)
    try:
        if codec == "jpeg":
            _check_jpeg(data, (height, width))
            return np.frombuffer(data, dtype=np.uint8), _NO_BLOCKS
        if feed.images == "blocks":
            return split_frame(data, height * width * 3)
        rgb_HWC = decode_image(data, codec, height=height, width=width)
    except ValueError as error:
        raise CorruptShardError(reader.describe(sample_id, "image"), f"cannot be decoded ({error})") from None
    if feed.images == "pixels":
        return rgb_HWC, _NO_BLOCKS
    header = np.frombuffer(b"P6\n%d %d\n255\n" % (width, height), dtype=np.uint8)
    return np.concatenate([header, rgb_HWC.reshape(-1)]), _NO_BLOCKS


def _check_jpeg(data: bytes, hw: tuple[int, int]) -> None:
    """Test a JPEG's size; a file with markers out of order is decoded: both backends reject the same ones."""
    found_hw = simplejpeg.decode_jpeg_header(data)[:2]
    if found_hw != hw:
        raise ValueError(f"JPEG is {found_hw[1]}x{found_hw[0]}, expected {hw[1]}x{hw[0]} (width x height)")
    if not is_well_formed(data):
        decode_image(data, "jpeg", height=hw[0], width=hw[1])


def _load_mask(
    reader: SplitReader, sample_id: int, numbers: Augmentation, row: int, feed: FeedPlan, rule: CropRule
) -> tuple[np.ndarray, np.ndarray]:
    if feed.masks == "pixels":
        ids_HW = reader.decode_mask(sample_id)
        rule.settle(numbers, row, ids_HW)
        top, left, bottom, right = numbers.crop_yxyx[row].tolist()
        box_HW = np.ascontiguousarray(ids_HW[top:bottom, left:right])
        return (box_HW.view(np.int16) if feed.mask_bytes == 2 else box_HW)[..., None], _NO_BLOCKS
    height, width = int(reader.rows[sample_id]["height"]), int(reader.rows[sample_id]["width"])
    data = reader.read_mask(sample_id)
    try:
        if feed.masks == "blocks":
            row_bytes = (width + 7) // 8 if feed.packed else width * feed.mask_bytes
            return split_frame(data, height * row_bytes)
        rows_HB = inflate_bits(data, height=height, width=width)
    except ValueError as error:
        raise CorruptShardError(reader.describe(sample_id, "mask"), f"cannot be decoded ({error})") from None
    if numbers.has_candidates:
        rule.settle(numbers, row, np.unpackbits(rows_HB, axis=1, count=width))
    top, left, bottom, right = numbers.crop_yxyx[row].tolist()
    return np.ascontiguousarray(rows_HB[top:bottom, left // 8 : (right + 7) // 8])[..., None], _NO_BLOCKS


def number_inputs(
    numbers: Augmentation, stored_hw: np.ndarray, target_hw: tuple[int, int], feed: FeedPlan
) -> dict[str, np.ndarray]:
    """Lay out a batch's numbers as inputs of the pipeline, one row a sample, by the names of the inputs.

    Args:
        numbers: of the batch.
        stored_hw: heights and widths, pixels, (n, 2).
        target_hw: of the batch, pixels.
        feed: of the loader.
    """
    starts, ends = numbers.crop_yxyx[:, :2], numbers.crop_yxyx[:, 2:]
    inputs: dict[str, np.ndarray] = {}
    origin = np.zeros_like(starts)
    if feed.region:
        # the resize's filter reaches one target pixel or one stored pixel past the box, whichever is larger
        margin = np.ceil(np.maximum((ends - starts) / target_hw, 1)).astype(np.int64) + 1
        origin = np.maximum(starts - margin, 0)
        inputs["region_start"] = origin.astype(np.int32)
        inputs["region_shape"] = (np.minimum(ends + margin, stored_hw) - origin).astype(np.int32)
    flipped = np.stack([numbers.vflip, numbers.hflip], axis=1)
    inputs["roi_start"] = (np.where(flipped, ends, starts) - origin).astype(np.float32)
    inputs["roi_end"] = (np.where(flipped, starts, ends) - origin).astype(np.float32)
    if feed.warp:
        inputs["warp"] = numbers.warp_matrix.astype(np.float32)
    if feed.color:
        for name in ("brightness", "contrast", "saturation", "hue"):
            inputs[name] = getattr(numbers, name).astype(np.float32)
    in_box = numbers.mask_matrix.copy()
    in_box[:, :, 2] -= starts[:, ::-1]
    inputs["mask_matrix"] = in_box.astype(np.float32)
    if feed.packed:
        first_bit = starts[:, 1] % 8
        num_bytes = (ends[:, 1] + 7) // 8 - starts[:, 1] // 8
        inputs["bits_shape"] = np.stack([(ends - starts)[:, 0], num_bytes * 8, np.ones_like(num_bytes)], axis=1).astype(
            np.int32
        )
        inputs["bits_start"] = np.stack([np.zeros_like(first_bit), first_bit], axis=1).astype(np.int32)
        inputs["bits_size"] = (ends - starts).astype(np.int32)
    return inputs


def block_inputs(numbers: Augmentation, stored_hw: np.ndarray, feed: FeedPlan) -> dict[str, np.ndarray]:
    """Lay out what a pipeline needs to cut inflated blocks into images and mask boxes; arguments as in `number_inputs`."""
    inputs: dict[str, np.ndarray] = {}
    one = np.ones(len(stored_hw), dtype=np.int64)
    if feed.images == "blocks":
        inputs["image_bytes"] = (3 * stored_hw.prod(axis=1, keepdims=True)).astype(np.int32)
        inputs["image_shape"] = np.stack([stored_hw[:, 0], stored_hw[:, 1], 3 * one], axis=1).astype(np.int32)
    if feed.masks == "blocks":
        row_bytes = (stored_hw[:, 1] + 7) // 8 if feed.packed else stored_hw[:, 1] * feed.mask_bytes
        inputs["mask_bytes"] = (stored_hw[:, 0] * row_bytes)[:, None].astype(np.int32)
        inputs["mask_shape"] = np.stack([stored_hw[:, 0], row_bytes // feed.mask_bytes, one], axis=1).astype(np.int32)
        starts, ends = numbers.crop_yxyx[:, :2].copy(), numbers.crop_yxyx[:, 2:].copy()
        if feed.packed:
            starts[:, 1], ends[:, 1] = starts[:, 1] // 8, (ends[:, 1] + 7) // 8
        inputs["box_start"], inputs["box_size"] = starts.astype(np.int32), (ends - starts).astype(np.int32)
    return inputs
