"""The CPU backend: threads read, check, decode and change the samples of the next batches while the current one is used.

Threads, not processes: every costly step releases the GIL, and nothing is copied between processes. A batch's samples are
written straight into the rows of a reused buffer, so the result does not depend on which thread does which sample.

Axis letters: N batch, H height, W width, C channels.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Self

import cv2
import numpy as np
import torch

from unetfast.config import LoaderConfig
from unetfast.data.reader import SplitReader
from unetfast.data.sample import IMAGE_CODECS
from unetfast.errors import CorruptShardError, UserError
from unetfast.loader.augment import Augmentation
from unetfast.loader.batch import Batch
from unetfast.loader.pixels import (
    choose_jpeg_reduction,
    decode_reduced,
    flip_image,
    flip_matrix,
    gather_mask,
    resize_box,
    transform_color,
    warp_image,
)
from unetfast.loader.stream import BatchPlan, SampleStream


class _Slot:
    """Memory of one batch, used again and again; pinned where batches go to a GPU."""

    def __init__(self, size: int, hw: tuple[int, int], mask_dtype: torch.dtype, device: torch.device) -> None:
        pinned = device.type == "cuda"
        self.image_NHWC = torch.empty((size, *hw, 3), dtype=torch.uint8, pin_memory=pinned)
        self.mask_NHW = torch.empty((size, *hw), dtype=mask_dtype, pin_memory=pinned)
        self._copied = torch.cuda.Event() if pinned else None  # type: ignore[no-untyped-call]

    def hand_out(self, size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image and mask on the device; a copy to the GPU runs on the current stream, and nobody waits for it here."""
        image_NCHW, mask_NHW = self.image_NHWC[:size].permute(0, 3, 1, 2), self.mask_NHW[:size]
        if self._copied is None:
            return image_NCHW, mask_NHW
        image_NCHW, mask_NHW = image_NCHW.to(device, non_blocking=True), mask_NHW.to(device, non_blocking=True)
        self._copied.record(torch.cuda.current_stream(device))
        return image_NCHW, mask_NHW

    def wait_until_free(self) -> None:
        """Wait, in a worker thread, until the last copy to the GPU has read this memory."""
        if self._copied is not None:
            self._copied.synchronize()


@dataclass(slots=True)
class _Job:
    """A batch in the making."""

    plan: BatchPlan
    slot: _Slot
    rows: Iterator[int]  # the next row that nobody works on yet; itertools.count's step is atomic
    futures: list[Future[None]] = field(default_factory=list)
    bad: dict[int, CorruptShardError] = field(default_factory=dict)  # by row


@dataclass(frozen=True, slots=True)
class _Work:
    """What worker threads need; it does not hold the loader, which can so be collected while they run."""

    reader: SplitReader
    config: LoaderConfig
    ignore_index: int

    def run(self, job: _Job) -> None:
        """Load rows of a batch until none is left."""
        job.slot.wait_until_free()
        sample_ids = job.plan.places.sample_ids
        while (row := next(job.rows)) < len(sample_ids):
            try:
                self._load(int(sample_ids[row]), job.plan.augmentation, row, job.slot)
            except CorruptShardError as error:
                job.bad[row] = error

    def _load(self, sample_id: int, numbers: Augmentation, row: int, slot: _Slot) -> None:
        self._load_image(sample_id, numbers, row, slot.image_NHWC[row].numpy())
        mask_HW = self.reader.decode_mask(sample_id)
        out_HW = slot.mask_NHW[row].numpy()
        gather_mask(mask_HW, numbers.mask_matrix[row], numbers.crop_yxyx[row], self.ignore_index, out_HW)

    def _load_image(self, sample_id: int, numbers: Augmentation, row: int, out_HWC: np.ndarray) -> None:
        rgb_HWC, box_yxyx = self._decode(sample_id, numbers.crop_yxyx[row], (out_HWC.shape[0], out_HWC.shape[1]))
        hflip, vflip, has_warp = bool(numbers.hflip[row]), bool(numbers.vflip[row]), bool(numbers.has_warp[row])
        resized_HWC = np.empty_like(out_HWC) if has_warp or hflip or vflip else out_HWC
        resize_box(rgb_HWC, box_yxyx, resized_HWC)
        if has_warp:
            warp_image(resized_HWC, flip_matrix(numbers.warp_matrix[row], hflip, vflip, out_HWC.shape[:2]), out_HWC)
        elif hflip or vflip:
            flip_image(resized_HWC, hflip, vflip, out_HWC)
        if numbers.has_color[row]:
            transform_color(out_HWC, numbers.color_matrix[row])

    def _decode(self, sample_id: int, crop_yxyx: np.ndarray, target_hw: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Decode an image as far as its crop needs it, and return the crop box in pixels of the result."""
        record = self.reader.rows[sample_id]
        data = self.reader.read_image(sample_id)
        codec = IMAGE_CODECS[record["image_codec"]] if record["image_codec"] < len(IMAGE_CODECS) else "unknown"
        top, left, bottom, right = crop_yxyx.tolist()
        reduction = choose_jpeg_reduction((bottom - top, right - left), target_hw, self.config.decode) if codec == "jpeg" else 1
        try:
            rgb_HWC = decode_reduced(data, codec, (int(record["height"]), int(record["width"])), reduction)
        except ValueError as error:
            raise CorruptShardError(self.reader.describe(sample_id, "image"), f"cannot be decoded ({error})") from None
        return rgb_HWC, crop_yxyx / reduction


class CpuLoader:
    """Batches of one split, made on the CPU; see `unetfast.loader.batch.Loader`.

    Memory: `loader.prefetch_batches` + 1 batches (+ 2 for a GPU, while copies run), and one decoded image a thread.

    OpenCV is told to use one thread a call, in the whole process: the threads here are the parallelism.

    Args:
        stream: the order of samples, and where it goes on.
        config: threads, prefetch_batches, decode, on_bad.
        num_threads: worker threads.
        device: where batches are wanted.
    """

    backend = "cpu"

    def __init__(self, stream: SampleStream, config: LoaderConfig, *, num_threads: int, device: torch.device) -> None:
        labels = stream.reader.manifest.labels
        self._stream = stream
        self._skip = config.on_bad == "skip"
        self._device = device
        self._work = _Work(stream.reader, config, labels.ignore_index)
        self._prefetch = config.prefetch_batches
        self._num_threads = num_threads
        mask_dtype = torch.uint8 if labels.mask_dtype == np.uint8 else torch.uint16
        num_slots = self._prefetch + (3 if device.type == "cuda" else 1)
        self._free = deque(_Slot(stream.max_part, stream.target_hw, mask_dtype, device) for _ in range(num_slots))
        self._handed_out: _Slot | None = None
        self._jobs: deque[_Job] = deque()
        self._planned = 0  # position behind the last batch in the making
        self._resumed = False
        cv2.setNumThreads(1)
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(num_threads, thread_name_prefix="unetfast-loader")

    @property
    def num_samples(self) -> int:
        return self._stream.num_samples

    @property
    def num_batches(self) -> int:
        return self._stream.num_batches

    @property
    def position(self) -> int:
        return self._stream.position

    @property
    def skipped(self) -> list[str]:
        """Keys of the samples left out so far under on_bad = "skip", each once."""
        return list(self._stream.skipped)

    @property
    def num_skipped(self) -> int:
        return len(self._stream.skipped)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches: in training from where the stream stands; in validation a whole pass, or the rest of a resumed one.

        Raises:
            CorruptShardError: a sample cannot be loaded and `loader.on_bad` is "error"; names key, shard and offset.
        """
        if not self._stream.training and not self._resumed and self._stream.position:
            self._drop_jobs()
            self._stream.position = 0
        self._resumed = False
        while (batch := self._next()) is not None:
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position behind the last batch handed out, and what it depends on."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batch that `state` was taken behind.

        Raises:
            UserError: the state is of other data or settings; lists the fields that differ.
        """
        self._stream.load_state_dict(state)
        self._drop_jobs()
        self._resumed = True

    def close(self) -> None:
        """Stop all threads; may be called twice."""
        pool, self._pool = self._pool, None
        if pool is not None:
            for job in self._jobs:
                job.rows = itertools.repeat(len(job.plan.places))
            pool.shutdown(wait=True, cancel_futures=True)
            self._jobs.clear()

    def _next(self) -> Batch | None:
        if self._handed_out is not None:
            self._free.append(self._handed_out)
            self._handed_out = None
        job = self._finish_job()
        if job is None:
            self._stream.finish()
            return None
        self._stream.advance(job.plan)
        self._handed_out = job.slot
        size = len(job.plan.places)
        if size == 0:  # the last batch of a pass was too small for all ranks
            return self._next()
        image_NCHW, mask_NHW = job.slot.hand_out(size, self._device)
        self._submit_jobs(self._prefetch)
        return Batch(image_NCHW, mask_NHW, job.plan.places.sample_ids.copy())

    def _finish_job(self) -> _Job | None:
        """Wait for the next batch; None behind the last. Bad samples raise, or the batches are planned anew without them."""
        while True:
            self._submit_jobs(self._prefetch + 1)
            if not self._jobs:
                return None
            job = self._jobs[0]
            try:
                for future in job.futures:
                    future.result()
            except BaseException:
                self._drop_jobs()
                raise
            if not job.bad:
                return self._jobs.popleft()
            self._drop_jobs()
            for row in sorted(job.bad):
                if not self._skip:
                    raise job.bad[row]
                self._stream.leave_out(int(job.plan.places.sample_ids[row]), job.bad[row])

    def _submit_jobs(self, num_jobs: int) -> None:
        """Have `num_jobs` batches in the making, as far as the stream goes."""
        if self._pool is None:
            raise UserError("this loader is closed; build another with build_loader")
        if not self._jobs:
            self._planned = self._stream.position
        while len(self._jobs) < num_jobs and self._free:
            plan = self._stream.plan(self._planned)
            if plan is None:
                return
            job = _Job(plan, self._free.popleft(), itertools.count())
            for _ in range(min(self._num_threads, len(plan.places))):
                job.futures.append(self._pool.submit(self._work.run, job))
            self._jobs.append(job)
            self._planned = plan.end

    def _drop_jobs(self) -> None:
        """Give up all batches in the making; their memory is free when their threads have left it."""
        for job in self._jobs:
            job.rows = itertools.repeat(len(job.plan.places))
        for job in self._jobs:
            wait(job.futures)
            self._free.append(job.slot)
        self._jobs.clear()
