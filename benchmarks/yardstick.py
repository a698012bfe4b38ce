"""The yardstick: the same job as DALI's own examples would write it. Our re-creation of that idiom, not anybody's program.

`fn.readers.webdataset` over tars with PNG masks, `fn.decoders.image`, DALI's random operators, `DALIGenericIterator`. Its order
and augmentation are DALI's own, so its batches are not those of our loaders; the kinds of changes and their odds are. Masks are
resized and rotated by the nearest neighbour, in two steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nvidia.dali import fn, pipeline_def, types
from nvidia.dali.plugin.base_iterator import LastBatchPolicy
from nvidia.dali.plugin.pytorch import DALIGenericIterator

from unetfast.config import AugmentConfig

IMAGE_EXTENSIONS = "jpg;image.png"
MASK_EXTENSION = "mask.png"
MIN_EPOCH = 4096  # samples; Carvana has 4,576
SUPPORTED = ("resized_crop", "hflip", "vflip", "rotation")


def build_yardstick(
    split_folder: Path,
    augment: AugmentConfig,
    *,
    size_hw: tuple[int, int],
    batch_size: int,
    num_threads: int,
    device_id: int | None,
    seed: int = 0,
    shuffle: bool = True,
) -> Any:
    """Build the iterator: dicts with `image` (N, H, W, 3) and `mask` (N, H, W, 1), uint8, endless.

    Args:
        split_folder: holds NNNNNN.tar and .idx, images JPEG or PNG, masks PNG.
        augment: odds and ranges of resized_crop, hflip, vflip and rotation.
        size_hw: of the batches, pixels.
        batch_size: samples.
        num_threads: of DALI.
        device_id: GPU; None runs DALI on the CPU.
        seed: of order and augmentation.
        shuffle: else in the order of the tars.

    Raises:
        ValueError: the augmentation has other changes, or there is no shard.
    """
    # settings that are no augmentation of their own have no probability
    probs = {name: getattr(getattr(augment, name), "prob", 0.0) for name in type(augment).model_fields}
    others = [name for name, prob in probs.items() if name not in SUPPORTED and prob > 0]
    if augment.max_class_share < 1:
        others.append("max_class_share")
    if others:
        raise ValueError(f"the yardstick knows no {', '.join(others)}; leave them out")
    tars = _repeat(sorted(split_folder.glob("*.tar")))
    if not tars:
        raise ValueError(f"{split_folder}: no shards")
    on_gpu = device_id is not None

    @pipeline_def(batch_size=batch_size, num_threads=num_threads, device_id=device_id, seed=seed)
    def pipeline() -> Any:
        encoded, encoded_mask = fn.readers.webdataset(
            paths=[str(tar) for tar in tars],
            index_paths=[str(tar.with_suffix(".idx")) for tar in tars],
            ext=[IMAGE_EXTENSIONS, MASK_EXTENSION],
            missing_component_behavior="error",
            random_shuffle=shuffle,
            initial_fill=min(1024, 16 * batch_size),
            pad_last_batch=True,
            name="reader",
        )
        image = fn.decoders.image(encoded, device="mixed" if on_gpu else "cpu", output_type=types.RGB)
        mask = fn.decoders.image(encoded_mask, device="cpu", output_type=types.GRAY)
        mask = mask.gpu() if on_gpu else mask
        return _augment_pair(image, mask, augment, size_hw, encoded)

    return DALIGenericIterator(
        [pipeline()],
        ["image", "mask"],
        reader_name="reader",
        last_batch_policy=LastBatchPolicy.PARTIAL,
        auto_reset=True,
    )


def _repeat(tars: list[Path]) -> list[Path]:
    """List the same tars so often that epochs end as rarely as in a large set."""
    num_samples = sum(int(tar.with_suffix(".idx").read_text().split(maxsplit=2)[1]) for tar in tars)
    return tars * -(-MIN_EPOCH // num_samples) if num_samples else []


def _augment_pair(image: Any, mask: Any, augment: AugmentConfig, size_hw: tuple[int, int], encoded: Any) -> tuple[Any, Any]:
    """Resize, flip and rotate an image and its mask alike, each step only where it has odds."""
    mirrored = fn.random.coin_flip(probability=augment.hflip.prob)
    turned_over = fn.random.coin_flip(probability=augment.vflip.prob)
    angle = fn.random.coin_flip(probability=augment.rotation.prob) * fn.random.uniform(range=augment.rotation.degrees)
    box = _random_box(encoded, augment) if augment.resized_crop.prob > 0 else {}

    def resize_and_turn(pixels: Any, interpolation: Any, antialias: bool) -> Any:
        pixels = fn.resize(pixels, size=list(size_hw), antialias=antialias, interp_type=interpolation, **box)
        if augment.hflip.prob > 0 or augment.vflip.prob > 0:
            pixels = fn.flip(pixels, horizontal=mirrored, vertical=turned_over)
        if augment.rotation.prob > 0:
            pixels = fn.rotate(pixels, angle=angle, keep_size=True, fill_value=0, interp_type=interpolation)
        return pixels

    return resize_and_turn(image, types.INTERP_LINEAR, True), resize_and_turn(mask, types.INTERP_NN, False)


def _random_box(encoded: Any, augment: AugmentConfig) -> dict[str, Any]:
    """Draw a region of interest for `fn.resize`: with the odds of resized_crop a random box, else the whole image."""
    image_shape = fn.peek_image_shape(encoded)
    start, shape = fn.random_crop_generator(
        image_shape,
        random_area=list(augment.resized_crop.area),
        random_aspect_ratio=list(augment.resized_crop.aspect),
    )
    whole = fn.slice(image_shape, start=0, shape=2, axes=[0])
    drawn = fn.random.coin_flip(probability=augment.resized_crop.prob)
    return {
        "roi_start": fn.cast(start * drawn, dtype=types.FLOAT),
        "roi_end": fn.cast((start + shape) * drawn + whole * (1 - drawn), dtype=types.FLOAT),
    }
