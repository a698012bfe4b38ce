"""One stream through both backends, compared file by file.

The bounds are those of the project's contract: with `decode = exact`, masks are equal but for a thousandth of each file's
pixels, and are equal wherever nothing is resized or turned; each image is within 45 dB. Every comparison is made for each file
alone and names it: an average would hide the one file that is wrong.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loader_shards import MadeSample, make_labels
from torch import Tensor

from unetfast.config import build_config
from unetfast.data.codecs import encode_image, encode_mask
from unetfast.data.labels import LabelTable
from unetfast.data.reader import SplitReader, open_shards
from unetfast.data.sample import IMAGE_CODECS, Sample
from unetfast.loader.augment import Augmentation
from unetfast.loader.batch import Loader
from unetfast.loader.build import build_loader
from unetfast.loader.stream import SampleStream

LEAST_PSNR = 45.0  # decibels, of each file
MOST_MASK_SHARE = 0.001  # of each file's pixels

# each one alone, always applied, and all together; crop and resized_crop exclude each other
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "resized_crop": {"resized_crop": {"prob": 1.0, "area": [0.2, 1.0]}},
    "crop": {"crop": {"prob": 1.0}},
    "scale": {"scale": {"prob": 1.0, "range": [0.6, 1.7]}},
    "hflip": {"hflip": {"prob": 1.0}},
    "vflip": {"vflip": {"prob": 1.0}},
    "rotation": {"rotation": {"prob": 1.0}},
    "brightness": {"brightness": {"prob": 1.0}},
    "contrast": {"contrast": {"prob": 1.0}},
    "saturation": {"saturation": {"prob": 1.0}},
    "hue": {"hue": {"prob": 1.0}},
}
AUGMENTATIONS["all"] = {name: {"prob": 0.5} for name in AUGMENTATIONS if name not in ("none", "crop")}
AUGMENTATIONS["all with crop"] = {name: {"prob": 0.5} for name in AUGMENTATIONS["all"] if name != "resized_crop"} | {
    "crop": {"prob": 0.5}
}
FLIPS = {"hflip": {"prob": 0.5}, "vflip": {"prob": 0.5}}

TARGET_HW = (96, 128)
IMAGE_KINDS = ["jpeg", "jpeg420", "gray", "progressive", "lz4", "png"]
# labels that make masks of 8 bits, of 1 bit packed, and of 16 bits
LABELS = {
    "8 bits": make_labels(),
    "1 bit": make_labels(2, has_ignore=False),
    "16 bits": make_labels(300),
}

# where the DALI backend runs: without a GPU on any machine, and with one
DEVICES = [pytest.param("cpu", id="dali-cpu"), pytest.param("cuda", id="dali-gpu", marks=pytest.mark.gpu)]


def device_or_skip(name: str) -> torch.device:
    """Return the device; skips, with the reason, where it is not there."""
    pytest.importorskip("nvidia.dali", reason="needs the extra dali")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    return torch.device("cuda", 0) if name == "cuda" else torch.device("cpu")


@dataclass(frozen=True)
class FileParity:
    """How far two backends are apart on one sample.

    Args:
        sample_id: place in the split's index.
        codec: of the image.
        psnr: of one image against the other, decibels; infinite where they are equal.
        max_difference: of the images, grey levels.
        mask_share: share of mask pixels that differ.
        num_pixels: of the batch's mask.
    """

    sample_id: int
    codec: str
    psnr: float
    max_difference: int
    mask_share: float
    num_pixels: int


def make_config(backend: str, size_hw: tuple[int, int], augment: dict[str, Any], **settings: Any) -> Any:
    """Build a config; a setting named `dali` is the section [dali], every other one belongs to [loader]."""
    dali = settings.pop("dali", {})
    section = {"backend": backend, "size_hw": list(size_hw), "batch_size": 8, "threads": 1, "decode": "exact", **settings}
    return build_config({"loader": section, "augment": augment, "dali": dali})


def build(backend: str, reader: SplitReader, config: Any, *, training: bool, device: torch.device) -> Loader:
    """Build one loader; the CPU backend stays on the host."""
    loader = build_loader(reader, config, training=training, device=device if backend == "dali" else torch.device("cpu"))
    assert loader.backend == backend
    return loader


def compare_backends(
    folder: Path,
    size_hw: tuple[int, int],
    augment: dict[str, Any],
    *,
    split: str = "train",
    training: bool = True,
    device: torch.device,
    num_batches: int = 0,
    **settings: Any,
) -> list[FileParity]:
    """Run a split through both backends, and compare every row of every batch.

    Args:
        folder: shard folder.
        size_hw: height and width of the batches, pixels.
        augment: the section [augment].
        split: of the folder.
        training: an epoch of the endless stream, its last batch full; else the validation pass.
        device: where the DALI backend runs.
        num_batches: 0 takes an epoch.
        settings: of [loader]; `dali` is the section [dali].
    """
    found: list[FileParity] = []
    with open_shards(folder).split(split) as reader:
        configs = {name: make_config(name, size_hw, augment, **settings) for name in ("cpu", "dali")}
        codecs = [IMAGE_CODECS[code] for code in reader.rows["image_codec"]]
        with (
            build("cpu", reader, configs["cpu"], training=training, device=device) as one,
            build("dali", reader, configs["dali"], training=training, device=device) as other,
        ):
            count = num_batches or one.num_batches
            pairs = itertools.zip_longest(itertools.islice(one, count), itertools.islice(other, count))
            for mine, theirs in pairs:
                assert mine is not None, "the DALI backend has more batches"
                assert theirs is not None, "the DALI backend has fewer batches"
                assert mine.sample_ids.tolist() == theirs.sample_ids.tolist(), "other samples, or another order"
                assert one.state_dict() == other.state_dict()
                check_layout(theirs.image_NCHW, theirs.mask_NHW, mine.image_NCHW, mine.mask_NHW, device)
                images, masks = theirs.image_NCHW.cpu(), theirs.mask_NHW.cpu()
                for row, sample_id in enumerate(mine.sample_ids.tolist()):
                    sides = mine.image_NCHW[row], images[row], mine.mask_NHW[row], masks[row]
                    found.append(compare_sample(sample_id, codecs[sample_id], *sides))
            if num_batches == 0:
                assert {file.sample_id for file in found} == set(range(reader.num_samples))
    return found


def check_layout(image_NCHW: Tensor, mask_NHW: Tensor, like_image: Tensor, like_mask: Tensor, device: torch.device) -> None:
    """Hold a batch against the contract, and against the other backend's."""
    assert (image_NCHW.shape, mask_NHW.shape) == (like_image.shape, like_mask.shape)
    assert (image_NCHW.dtype, mask_NHW.dtype) == (torch.uint8, like_mask.dtype)
    assert (image_NCHW.device, mask_NHW.device) == (device, device)
    assert image_NCHW.is_contiguous(memory_format=torch.channels_last)
    assert mask_NHW.is_contiguous()


def compare_sample(sample_id: int, codec: str, image: Tensor, other_image: Tensor, mask: Tensor, other: Tensor) -> FileParity:
    """Compare one row of two batches, both on the host."""
    # numpy: torch would spread each small step over threads, which costs more than the work
    difference = np.subtract(image.numpy(), other_image.numpy(), dtype=np.int16)
    error = np.square(difference, dtype=np.int32).sum(dtype=np.int64) / difference.size
    return FileParity(
        sample_id=sample_id,
        codec=codec,
        psnr=float("inf") if error == 0 else 10 * float(np.log10(255**2 / error)),
        max_difference=int(np.abs(difference).max()),
        mask_share=float(np.mean(mask.numpy() != other.numpy())),
        num_pixels=mask.numel(),
    )


def check_parity(
    files: Sequence[FileParity],
    names: Sequence[str],
    *,
    masks_equal: bool = False,
    images_equal: Iterable[str] = (),
    least_psnr: float = LEAST_PSNR,
) -> FileParity:
    """Hold every file to the bounds, and return the one whose images are furthest apart.

    Args:
        files: of `compare_backends`.
        names: of the split's samples, by id, for the message.
        masks_equal: no pixel may differ.
        images_equal: codecs of which no pixel may differ.
        least_psnr: decibels.
    """
    assert files, "nothing was compared"
    most, equal_codecs = 0.0 if masks_equal else MOST_MASK_SHARE, set(images_equal)
    bad = [
        f"{names[file.sample_id]} ({file.codec}): {file.psnr:.1f} dB (least {least_psnr}), images differ by up to "
        f"{file.max_difference} levels, masks on {100 * file.mask_share:.4f} % of {file.num_pixels} (most {100 * most} %)"
        for file in files
        if file.psnr < least_psnr or file.mask_share > most or (file.codec in equal_codecs and file.max_difference)
    ]
    assert not bad, f"{len(bad)} of {len(files)} apart:\n" + "\n".join(bad)
    return min(files, key=lambda file: file.psnr)


def plan_numbers(folder: Path, config: Any, count: int, *, split: str = "train") -> tuple[list[int], Augmentation]:
    """Plan the first `count` samples of the training stream without any loader: their ids and their numbers."""
    with open_shards(folder).split(split) as reader:
        stream = SampleStream(reader, config, training=True, target_hw=config.loader.size_hw, batch_size=count)
        plan = stream.plan(0)
    assert plan is not None
    return plan.places.sample_ids.tolist(), plan.augmentation


def names_of(made: Sequence[MadeSample]) -> list[str]:
    return [f"{one.sample.key} {one.mask.shape[0]}x{one.mask.shape[1]} {one.sample.source_path}" for one in made]


def make_lossless(number: int, image_HWC: np.ndarray, mask_HW: np.ndarray, labels: LabelTable) -> MadeSample:
    """Make a sample of given pixels."""
    height, width = mask_HW.shape
    sample = Sample(
        key=f"sample{number:03}",
        image=encode_image(image_HWC, "lz4"),
        image_codec="lz4",
        mask=encode_mask(mask_HW, "lz4", labels.mask_bits),
        mask_codec="lz4",
        height=height,
        width=width,
        mask_bits=labels.mask_bits,
        source_path=f"sample{number:03}.lz4",
    )
    return MadeSample(sample, image_HWC, mask_HW)
