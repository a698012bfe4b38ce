"""The DALI pipeline: one batch's encoded members and numbers -> pixels. The only file that imports DALI.

On a GPU, JPEGs are decoded there, by its JPEG unit where it has one. On a CPU the same pipeline runs without a GPU, so that all
but the GPU's kernels can be tested on any machine. Nothing is decided here: what an image becomes stands in augment.py.

Axis letters: N batch, H height, W width, C channels, B bytes of 8 packed pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types
from torch.utils.dlpack import from_dlpack

from unetfast.config import DaliConfig
from unetfast.loader.encoded import EncodedSample, FeedPlan
from unetfast.loader.lz4blocks import BLOCK_BYTES

_DTYPES = {"float32": types.FLOAT, "int32": types.INT32}


@dataclass(frozen=True, slots=True)
class DaliSite:
    """Where and how a pipeline runs.

    Args:
        device: with its index, where it is a GPU.
        num_threads: of the pipeline; on a GPU nvImageCodec takes as many again, each with 16 MiB of device and pinned memory.
        target_hw: height and width of batches, pixels.
        usual_hw: size for which the JPEG unit takes memory beforehand, for a whole batch; (0, 0): none.
        ignore_index: of masks.
        config: the [dali] section.
    """

    device: torch.device
    num_threads: int
    target_hw: tuple[int, int]
    usual_hw: tuple[int, int]
    ignore_index: int
    config: DaliConfig


class DaliGraph:
    """A built pipeline, and the batches that were fed to it and not taken yet.

    Args:
        batch_size: most samples of a batch.
        feed: what it is fed with.
        site: where it runs.
    """

    def __init__(self, batch_size: int, feed: FeedPlan, site: DaliSite) -> None:
        self._feed = feed
        self._site = site
        self._on_gpu = site.device.type == "cuda"
        # a queue of one: batches are scheduled one by one, and how many are under way is for the loader to say
        self._pipe = Pipeline(
            batch_size=batch_size,
            num_threads=site.num_threads,
            device_id=site.device.index if self._on_gpu else None,
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        with self._pipe:
            self._pipe.set_outputs(self._define_image(), self._define_mask())
        with warnings.catch_warnings():
            # before any GPU pipeline DALI asks for NPP and cuFFT, which its wheels do not bring: remap, debayering, the old
            # colour twist and spectra want them, and nothing here
            warnings.filterwarnings("ignore", message=".*is no longer shipped with CUDA runtime")
            self._pipe.build()

    def schedule(self, samples: Sequence[EncodedSample], numbers: dict[str, np.ndarray]) -> None:
        """Feed a batch and let it run; returns when its bytes are copied."""
        self._pipe.feed_input("image", [sample.image for sample in samples])
        self._pipe.feed_input("mask", [sample.mask for sample in samples])
        if self._feed.images == "blocks":
            self._pipe.feed_input("image_blocks", [sample.image_blocks for sample in samples])
        if self._feed.masks == "blocks":
            self._pipe.feed_input("mask_blocks", [sample.mask_blocks for sample in samples])
        for name, values in numbers.items():
            self._pipe.feed_input(name, values)
        self._pipe.schedule_run()

    def take(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the oldest scheduled batch: image_NHWC uint8 and mask_NHW, in DALI's own memory.

        On a GPU they are bound to the current stream, which waits for them; the host does not.
        """
        stream = torch.cuda.current_stream(self._site.device) if self._on_gpu else None
        image, mask = (from_dlpack(batch.as_tensor()) for batch in self._pipe.outputs(stream))
        return image, mask.squeeze(-1)

    def _define_image(self) -> Any:
        if self._feed.images == "encoded":
            image = self._decode(fn.external_source(name="image", ndim=1, dtype=types.UINT8))
        elif self._feed.images == "blocks":
            image = _inflate("image", types.UINT8)
        else:
            image = self._place(fn.external_source(name="image", ndim=3, dtype=types.UINT8, layout="HWC"))
        image = fn.resize(
            image,
            size=self._site.target_hw,
            roi_start=_number_input("roi_start", 1),
            roi_end=_number_input("roi_end", 1),
            interp_type=types.INTERP_LINEAR,
            antialias=True,
        )
        if self._feed.warp:
            image = fn.warp_affine(
                image,
                matrix=_number_input("warp", 2),
                size=self._site.target_hw,
                fill_value=0,
                interp_type=types.INTERP_LINEAR,
            )
        if self._feed.color:
            factors = {name: _number_input(name, 0) for name in ("brightness", "contrast", "saturation", "hue")}
            image = fn.color_twist(image, **factors)
        return image

    def _decode(self, encoded: Any) -> Any:
        """Decode at full size, or the region that the crop needs; upsampling chroma as libjpeg does."""
        settings: dict[str, Any] = {
            "device": "cpu",
            "output_type": types.RGB,
            "adjust_orientation": False,
            "jpeg_fancy_upsampling": True,
        }
        if self._on_gpu:
            height, width = self._site.usual_hw
            settings |= {
                "device": "mixed",
                "hw_decoder_load": self._site.config.hw_decoder_load,
                "preallocate_height_hint": height,
                "preallocate_width_hint": width,
                "affine": False,  # DALI would tie threads to cores that this process may not have
            }
        if not self._feed.region:
            return fn.decoders.image(encoded, **settings)
        region = {"start": _number_input("region_start", 1, "int32"), "shape": _number_input("region_shape", 1, "int32")}
        return fn.decoders.image_slice(encoded, axis_names="HW", **region, **settings)

    def _define_mask(self) -> Any:
        dtype = types.INT16 if self._feed.mask_bytes == 2 else types.UINT8
        if self._feed.masks == "blocks":
            mask = _inflate("mask", dtype)
            mask = _slice(mask, _number_input("box_start", 1, "int32"), _number_input("box_size", 1, "int32"))
        else:
            mask = self._place(fn.external_source(name="mask", ndim=3, dtype=dtype, layout="HWC"))
        if self._feed.packed:
            mask = self._unpack_bits(mask)
        # DALI warps no uint16: its bits travel as int16, 65535 as -1
        ignore_index = self._site.ignore_index - 65536 * (self._feed.mask_bytes == 2 and self._site.ignore_index > 32767)
        return fn.warp_affine(
            mask,
            matrix=_number_input("mask_matrix", 2),
            size=self._site.target_hw,
            fill_value=ignore_index,
            interp_type=types.INTERP_NN,
        )

    def _unpack_bits(self, bytes_HB1: Any) -> Any:
        """Turn (H, B, 1) bytes into the crop box's (h, w, 1) class ids 0 and 1; the most significant bit comes first."""
        place = types.Constant(np.array([128, 64, 32, 16, 8, 4, 2, 1], dtype=np.uint8), device=self._placement)
        bits_HB8 = fn.cast((bytes_HB1 & place) != 0, dtype=types.UINT8)
        bits_HW1 = fn.reshape(bits_HB8, shape=_number_input("bits_shape", 1, "int32"), layout="HWC")
        return _slice(bits_HW1, _number_input("bits_start", 1, "int32"), _number_input("bits_size", 1, "int32"))

    @property
    def _placement(self) -> str:
        return "gpu" if self._on_gpu else "cpu"

    def _place(self, data: Any) -> Any:
        return data.gpu() if self._on_gpu else data


def _number_input(name: str, ndim: int, dtype: str = "float32") -> Any:
    return fn.external_source(name=name, ndim=ndim, dtype=_DTYPES[dtype])


def _slice(data: Any, start: Any, size: Any) -> Any:
    """Cut (h, w, C) out of (H, W, C)."""
    return fn.slice(data, start=start, shape=size, axis_names="HW")


def _inflate(name: str, dtype: Any) -> Any:
    """Inflate a frame on the GPU and lay it out as (H, W, C)."""
    # the last block is not full: what stands behind its end is left out
    content = fn.slice(
        fn.reshape(_inflate_blocks(name), shape=[-1]),
        start=[0],
        shape=_number_input(f"{name}_bytes", 1, "int32"),
        axes=[0],
    )
    return fn.reinterpret(content, shape=_number_input(f"{name}_shape", 1, "int32"), dtype=dtype, layout="HWC")


def _inflate_blocks(name: str) -> Any:
    """Inflate a frame's blocks, each into a row of 64 KiB."""
    return fn.decoders.inflate(
        fn.external_source(name=name, ndim=1, dtype=types.UINT8).gpu(),
        chunk_sizes=fn.external_source(name=f"{name}_blocks", ndim=1, dtype=types.INT32),
        shape=[BLOCK_BYTES],
        check_output_size=True,
    )
