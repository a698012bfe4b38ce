"""The CPU backend: threads read, check, decode and change the samples of the next batches while the current one is used.

Threads, not processes: every costly step releases the GIL, and nothing is copied between processes. A batch's samples are
written straight into the rows of a reused buffer, so the result does not depend on which thread does which sample.

Axis letters: N batch, H height, W width, C channels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
import torch

from unetfast.config import LoaderConfig
from unetfast.data.codecs import decode_mask, inflate_bits
from unetfast.data.indexrow import IndexRow
from unetfast.data.reader import SplitReader
from unetfast.data.sample import MASK_CODECS
from unetfast.errors import CorruptShardError
from unetfast.loader.batch import Batch
from unetfast.loader.foreground import CropRule
from unetfast.loader.jpegfile import has_jpegs
from unetfast.loader.kernels.find import find_kernel
from unetfast.loader.masklookup import StoredMask, gather_mask
from unetfast.loader.packed import LZ4_MASK, Done, inflate_mask, is_packed, load_packed
from unetfast.loader.pinned import CopyMark
from unetfast.loader.pixels import (
    choose_jpeg_reduction,
    decode_sample,
    flip_image,
    resize_box,
    transform_color,
    warp_image,
)
from unetfast.loader.plainresize import resize_by_libraries
from unetfast.loader.prefetch import Job, PrefetchLoader
from unetfast.loader.ramcache import RamCache, allow_bytes, count_need, describe_cache
from unetfast.loader.scratch import scratch_array
from unetfast.loader.stream import BatchPlan, SampleStream


class _Slot:
    """Memory of one batch, used again and again; pinned where batches go to a GPU."""

    def __init__(self, size: int, hw: tuple[int, int], mask_dtype: torch.dtype, device: torch.device) -> None:
        self.copied = CopyMark(device)
        self.image_NHWC = torch.empty((size, *hw, 3), dtype=torch.uint8, pin_memory=self.copied.is_pinned)
        self.mask_NHW = torch.empty((size, *hw), dtype=mask_dtype, pin_memory=self.copied.is_pinned)
        self.images, self.masks = list(self.image_NHWC.numpy()), list(self.mask_NHW.numpy())  # row by row
        self._whole = self._view(size)  # a full batch, which nearly all are

    def _view(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.image_NHWC[:size].permute(0, 3, 1, 2), self.mask_NHW[:size]

    def hand_out(self, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image and mask on the device; a copy to the GPU runs on the current stream, and nobody waits for it here."""
        image_NCHW, mask_NHW = self._whole if size == len(self.masks) else self._view(size)
        if not self.copied.is_pinned:
            return image_NCHW, mask_NHW
        image_NCHW, mask_NHW = image_NCHW.to(device, non_blocking=True), mask_NHW.to(device, non_blocking=True)
        self.copied.set()
        return image_NCHW, mask_NHW


@dataclass(slots=True)
class _Job(Job):
    """A batch in the making, in its memory; what is the same for all rows of a kind is computed for all of them at once.

    Args:
        slot: its memory.
        sample_ids: of its rows.
        flips: of each row: left to right, top to bottom.
        warp_maps: of each row, (2, 3); None where it is not warped.
        color_matrices: of each row, (3, 4); None where its colours stay.
    """

    slot: _Slot = field(kw_only=True)
    sample_ids: list[int] = field(kw_only=True)
    flips: list[tuple[bool, bool]] = field(kw_only=True)
    warp_maps: list[np.ndarray | None] = field(kw_only=True)
    color_matrices: list[np.ndarray | None] = field(kw_only=True)


def _make_job(plan: BatchPlan, slot: _Slot) -> _Job:
    numbers = plan.augmentation
    return _Job(
        plan,
        slot=slot,
        sample_ids=plan.places.sample_ids.tolist(),
        flips=list(zip(numbers.hflip.tolist(), numbers.vflip.tolist(), strict=True)),
        warp_maps=_take_where(numbers.image_matrix, numbers.has_warp),
        color_matrices=_take_where(numbers.color_matrix, numbers.has_color),
    )


def _take_where(matrices: np.ndarray, are_used: np.ndarray) -> list[np.ndarray | None]:
    return [matrix if is_used else None for matrix, is_used in zip(matrices, are_used.tolist(), strict=True)]


class _Source(NamedTuple):
    """An image before it is resized.

    Args:
        sample_id: of the sample.
        row: of the index.
        data: the member, where it is read already.
        crop_yxyx: its crop box, stored pixels.
        rgb_HWC: the image as it is stored, where it is decoded already.
    """

    sample_id: int
    row: IndexRow
    data: bytes | memoryview | None
    crop_yxyx: list[int]
    rgb_HWC: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class _Work:
    """What worker threads need; it does not hold the loader, which can so be collected while they run.

    Args:
        reader: the split.
        config: of the loader.
        rule: how masks choose their crops.
        cache: keeps what is the same every time; None: nothing is kept.
        boxes_are_fixed: whether every crop box is the whole image, so that images are kept at the batch's size.
        resize: how; what is scored is resized as `predict` and exported models do it.
    """

    reader: SplitReader
    config: LoaderConfig
    rule: CropRule
    cache: RamCache | None = None
    boxes_are_fixed: bool = False
    resize: Callable[[np.ndarray, Sequence[float], np.ndarray], None] = resize_box

    def begin(self, job: _Job) -> None:
        """Wait until the last copy to a GPU has read the job's memory."""
        job.slot.copied.wait()

    def load(self, job: _Job, row: int) -> None:
        """Load one row of a batch."""
        sample_id, numbers = job.sample_ids[row], job.plan.augmentation
        index_row = self.reader.row(sample_id)
        image_data, mask_data = (None, None) if self.cache is not None else self.reader.read_pair(sample_id, index_row)
        source = _Source(sample_id, index_row, image_data, numbers.crop_yxyx[row].tolist())
        if mask_data is not None and is_packed(index_row) and self._load_at_once(job, row, source, mask_data):
            return
        mask = self._find_mask(sample_id, index_row, mask_data)
        if numbers.has_candidates:
            self.rule.settle(numbers, row, mask.unpack())
            source = source._replace(crop_yxyx=numbers.crop_yxyx[row].tolist())
        self._place_image(job, row, source)
        self._change_colors(job, row)
        gather_mask(mask.stored, *self._tell_lookup(job, row), is_packed=mask.is_packed)

    def _load_at_once(self, job: _Job, row: int, source: _Source, mask_data: bytes | memoryview) -> bool:
        """Load a row from LZ4 frames in one call, or as much of it as that call does; says whether it was done.

        It is not where a frame is damaged: the way by steps says what is wrong with it.
        """
        out_HWC, warp_map = job.slot.images[row], job.warp_maps[row]
        if source.data is None or job.plan.augmentation.has_candidates:
            return False
        stored_hw = (source.row.height, source.row.width)
        is_sized = stored_hw == out_HWC.shape[:2] and source.crop_yxyx == [0, 0, *stored_hw]
        is_copied = is_sized and warp_map is None and job.flips[row] == (False, False)
        rgb_HWC = out_HWC if is_copied else scratch_array("inflated", (*stored_hw, 3), np.uint8)
        warp = (warp_map, out_HWC) if is_sized and warp_map is not None else None
        done = load_packed(source.row, source.data, mask_data, rgb_HWC, warp, self._tell_lookup(job, row))
        if done is Done.NOTHING:
            return False
        if not is_copied and (warp is None or done is not Done.ALL):
            self._place_image(job, row, source._replace(rgb_HWC=rgb_HWC))
        self._change_colors(job, row)
        return True

    def _tell_lookup(self, job: _Job, row: int) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
        numbers = job.plan.augmentation
        return numbers.mask_matrix[row], numbers.crop_yxyx[row], self.rule.ignore_index, job.slot.masks[row]

    def _place_image(self, job: _Job, row: int, source: _Source) -> None:
        """Resize, flip and warp an image into its row."""
        out_HWC, warp_map = job.slot.images[row], job.warp_maps[row]
        hflip, vflip = job.flips[row]
        if warp_map is not None:
            warp_image(self._resize(source, scratch_array("resized", out_HWC.shape, np.uint8)), warp_map, out_HWC)
        elif hflip or vflip:
            flip_image(self._resize(source, scratch_array("resized", out_HWC.shape, np.uint8)), hflip, vflip, out_HWC)
        elif (resized_HWC := self._resize(source, out_HWC)) is not out_HWC:
            out_HWC[...] = resized_HWC

    def _change_colors(self, job: _Job, row: int) -> None:
        if (color_matrix := job.color_matrices[row]) is not None:
            transform_color(job.slot.images[row], color_matrix)

    def _resize(self, source: _Source, buffer_HWC: np.ndarray) -> np.ndarray:
        """Return the crop at target size: in the buffer, or where it lies if it is there already."""
        if self.cache is None or not self.boxes_are_fixed:
            return self._resize_anew(source, buffer_HWC)
        resized_HWC = self.cache.find(("image", source.sample_id))
        if resized_HWC is None:
            resized_HWC = self._resize_anew(source, buffer_HWC)
            self.cache.keep(("image", source.sample_id), resized_HWC)
        return resized_HWC

    def _resize_anew(self, source: _Source, buffer_HWC: np.ndarray) -> np.ndarray:
        rgb_HWC, reduction = self._decode(source, buffer_HWC.shape[:2])
        if rgb_HWC.shape == buffer_HWC.shape and source.crop_yxyx == [0, 0, *rgb_HWC.shape[:2]]:
            return rgb_HWC
        self.resize(rgb_HWC, [edge / reduction for edge in source.crop_yxyx], buffer_HWC)
        return buffer_HWC

    def _decode(self, source: _Source, target_hw: tuple[int, ...]) -> tuple[np.ndarray, int]:
        """Return an image decoded as far as its crop needs it, and by what it is reduced."""
        sample_id, row, reduction = source.sample_id, source.row, 1
        if source.rgb_HWC is not None:
            return source.rgb_HWC, reduction
        if row.image_codec_name == "jpeg":
            top, left, bottom, right = source.crop_yxyx
            reduction = choose_jpeg_reduction((bottom - top, right - left), (target_hw[0], target_hw[1]), self.config.decode)
        if self.cache is None or self.boxes_are_fixed:
            return decode_sample(self.reader, sample_id, reduction, source.data, row), reduction
        rgb_HWC = self.cache.find((sample_id, reduction))
        if rgb_HWC is None:
            rgb_HWC = decode_sample(self.reader, sample_id, reduction, row=row)
            self.cache.keep((sample_id, reduction), rgb_HWC)
        return rgb_HWC, reduction

    def _find_mask(self, sample_id: int, row: IndexRow, data: bytes | memoryview | None) -> StoredMask:
        """Return a mask, inflated; one of bits stays packed. `data` is its member, where that is read already."""
        if self.cache is None:
            return self._decode_mask(sample_id, row, data)
        stored = self.cache.find(("mask", sample_id))
        if stored is None:
            mask = self._decode_mask(sample_id, row, None)
            self.cache.keep(("mask", sample_id), mask.stored)
            return mask
        return StoredMask(stored, _packed_width(row))

    def _decode_mask(self, sample_id: int, row: IndexRow, data: bytes | memoryview | None) -> StoredMask:
        width = _packed_width(row)
        if data is None:
            data = self.reader.read_mask(sample_id)
        if row.mask_codec == LZ4_MASK and (stored := inflate_mask(row, data)) is not None:
            return StoredMask(stored, width)
        try:
            if width:
                return StoredMask(inflate_bits(data, height=row.height, width=width), width)
            codec = MASK_CODECS[row.mask_codec]
            return StoredMask(decode_mask(data, codec, row.mask_bits, height=row.height, width=row.width))
        except (ValueError, IndexError) as error:
            raise CorruptShardError(self.reader.describe(sample_id, "mask"), f"cannot be decoded ({error})") from None


def _packed_width(row: IndexRow) -> int:
    """Return the width of a mask whose bits are packed, pixels; 0 for another mask."""
    return row.width if row.mask_bits == 1 and row.mask_codec == LZ4_MASK else 0


class CpuLoader(PrefetchLoader[_Job]):
    """Batches of one split, made on the CPU; see `unetfast.loader.batch.Loader`.

    Memory: `loader.prefetch_batches` + 1 batches (+ 2 for a GPU, while copies run), and a thread one decoded image and, for
    JPEGs by compiled code, its components: another 3 bytes a pixel of its full size.

    With `loader.cache` = "ram", and for training alone, also what `unetfast.loader.ramcache` keeps.

    OpenCV is told to use one thread a call, in the whole process: the threads here are the parallelism.

    Args:
        stream: the order of samples, and where it goes on.
        config: prefetch_batches, decode, on_bad, cache, cache_mib.
        num_threads: worker threads.
        device: where batches are wanted.
        local_size: processes on this machine, which share its memory.

    Raises:
        UserError: the cache may take more memory than is free.
    """

    backend = "cpu"

    def __init__(
        self, stream: SampleStream, config: LoaderConfig, *, num_threads: int, device: torch.device, local_size: int = 1
    ) -> None:
        labels = stream.reader.manifest.labels
        cache, kept = _open_cache(stream, config, local_size)
        # compiled here, before the first batch is asked for
        ids = np.dtype(labels.mask_dtype)
        kernels = [find_kernel("mask", ids), find_kernel("resize"), find_kernel("warp"), find_kernel("lz4")]
        kernels.append(find_kernel("packed", ids))
        if has_jpegs(stream.reader.rows["image_codec"]):
            kernels.append(find_kernel("jpeg"))
        problems = "; ".join(dict.fromkeys(kernel.problem for kernel in kernels if kernel.problem))
        lacking = problems and f"without compiled steps, so samples take longer: {problems}"
        self._facts = ", ".join(filter(None, [kept and f"cache {kept}", lacking]))
        resize = resize_box if stream.training else resize_by_libraries
        work = _Work(stream.reader, config, stream.crop_rule, cache, stream.boxes_are_fixed, resize)
        super().__init__(stream, config, work, num_threads=num_threads, num_ahead=config.prefetch_batches)
        self._device = device
        mask_dtype = torch.uint8 if labels.mask_dtype == np.uint8 else torch.uint16
        num_slots = config.prefetch_batches + (3 if device.type == "cuda" else 1)
        self._free = deque(_Slot(stream.max_part, stream.target_hw, mask_dtype, device) for _ in range(num_slots))
        self._handed_out: _Slot | None = None
        cv2.setNumThreads(1)

    @property
    def facts(self) -> str:
        return self._facts

    def _next(self) -> Batch | None:
        if self._handed_out is not None:
            slot, self._handed_out = self._handed_out, None
            self._free.append(slot)
        return super()._next()

    def _open_job(self, plan: BatchPlan) -> _Job | None:
        return _make_job(plan, self._free.popleft()) if self._free else None

    def _complete(self, job: _Job) -> None:
        """Do nothing: what the threads have written is the batch."""

    def _hand_out(self, job: _Job) -> tuple[torch.Tensor, torch.Tensor]:
        self._handed_out = job.slot
        return job.slot.hand_out(len(job), self._device)

    def _give_up(self, jobs: list[_Job]) -> None:
        for job in jobs:
            if job.slot is not self._handed_out and job.slot not in self._free:
                self._free.append(job.slot)


def _open_cache(stream: SampleStream, config: LoaderConfig, local_size: int) -> tuple[RamCache | None, str]:
    """Open the cache that the config asks for, and say what it will hold; a pass over each sample once has none."""
    if config.cache != "ram" or not stream.training:
        return None, ""
    reader = stream.reader
    # a damaged row may claim any size, and is refused when its sample is read
    stored_hw = np.minimum(np.stack([reader.rows["height"], reader.rows["width"]], axis=1), reader.split.max_hw)
    need = count_need(stored_hw, reader.manifest.mask_bits, stream.target_hw, are_resized=stream.boxes_are_fixed)
    max_bytes = allow_bytes(config, need, local_size=local_size)
    return RamCache(max_bytes, slab_bytes=need.slab_bytes), describe_cache(max_bytes, need)
