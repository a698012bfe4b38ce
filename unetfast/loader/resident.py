"""The resident backend (`loader.cache = "gpu"`): the split's pixels lie on the GPU, decoded once; a batch is made there.

Order, chance, position and resume are those of every other backend (stream.py, prefetch.py): per batch, a few hundred bytes of
drawn numbers a sample go to the GPU, and one or two kernels (resident_kernel.py) write the batch. The host decodes nothing
after the start; only where masks choose their crops (`augment.max_class_share`) does it read them from the shards each time.

Axis letters: N batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch

from unetfast.config import Config
from unetfast.data.reader import SplitReader
from unetfast.errors import UserError, say_briefly
from unetfast.loader.augment import Augmentation
from unetfast.loader.batch import Batch
from unetfast.loader.foreground import CropRule
from unetfast.loader.pinned import CopyMark
from unetfast.loader.prefetch import Job, PrefetchLoader
from unetfast.loader.resident_kernel import NUM_COLUMNS, lay_out_numbers, render_batch
from unetfast.loader.resident_pixels import ResidentPixels, mask_dtype
from unetfast.loader.stream import BatchPlan, SampleStream

_TRIAL_SIZE = 64  # elements that the kernels are tried on; an empty crop reads the first three at most


class _Slot:
    """Host memory of one batch's numbers, used again; pinned, so that its copy to the GPU waits for nothing."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.copied = CopyMark(device)
        self.numbers = torch.empty((size, NUM_COLUMNS), dtype=torch.float64, pin_memory=self.copied.is_pinned)

    def to_device(self, size: int, device: torch.device) -> torch.Tensor:
        numbers = self.numbers[:size].to(device, non_blocking=True)
        self.copied.set()
        return numbers


@dataclass(slots=True)
class _Job(Job):
    """A batch in the making."""

    slot: _Slot = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class _Work:
    """What worker threads need: nothing but the masks that choose a crop."""

    reader: SplitReader
    rule: CropRule

    def begin(self, job: _Job) -> None:
        """Wait until the last copy to the GPU has read the job's memory."""
        job.slot.copied.wait()

    def load(self, job: _Job, row: int) -> None:
        """Let a row's mask choose its crop box, where there is a choice."""
        numbers: Augmentation = job.plan.augmentation
        if numbers.has_candidates:
            self.rule.settle(numbers, row, self.reader.decode_mask(int(job.plan.places.sample_ids[row])))


class ResidentLoader(PrefetchLoader[_Job]):
    """Batches of one split whose pixels lie on the device; see `unetfast.loader.batch.Loader`.

    Making one compiles the kernels and decodes the whole split, seconds to minutes. Memory of the device: the split's pixels
    (`ResidentPixels`), and a finished batch or two of PyTorch's own memory. A batch is made on the stream that is current when
    it is asked for.

    Args:
        stream: the order of samples, and where it goes on.
        config: the loader and augment sections.
        num_threads: that decode at the start.
        device: where the pixels lie and batches are made.

    Raises:
        UserError: the split does not fit on the device (says what it takes and what is free), or Triton does not work here.
        CorruptShardError: a sample cannot be decoded and `loader.on_bad` is "error".
    """

    backend = "resident"

    def __init__(self, stream: SampleStream, config: Config, *, num_threads: int, device: torch.device) -> None:
        self._device = device
        self._ignore_index = stream.reader.manifest.labels.ignore_index
        self._target_hw = stream.target_hw
        try:
            self._try_kernels(stream)
            self._pixels = ResidentPixels(stream, config.loader, num_threads=num_threads, device=device)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f'loader.cache = "gpu": memory of {device} ran out while the data set was put there ({say_briefly(error)})\n'
                "  take --set loader.cache=ram or --set loader.cache=off"
            ) from None
        work = _Work(stream.reader, stream.crop_rule)
        chooses = stream.training and config.augment.max_class_share < 1
        num_ahead = config.loader.prefetch_batches
        super().__init__(stream, config.loader, work, num_threads=num_threads if chooses else 1, num_ahead=num_ahead)
        self._free = deque(_Slot(max(stream.max_part, 1), device) for _ in range(num_ahead + 3))
        self._handed_out: _Slot | None = None

    @property
    def facts(self) -> str:
        """What lies on the device, for people."""
        layout = self._pixels.layout
        size = "at batch size" if layout.are_resized else "at stored size"
        held = f"cache {layout.num_bytes / 2**30:.2f} GiB on {self._device}"
        return f"{held}, images {size}, filled in {self._pixels.seconds:.1f} s"

    def close(self) -> None:
        """Stop all threads and let go of the pixels; may be called twice. Batches that were handed out stay valid."""
        super().close()
        empty = torch.empty(0, dtype=torch.uint8)
        self._pixels.images, self._pixels.masks = empty, empty

    def _next(self) -> Batch | None:
        if self._handed_out is not None:
            slot, self._handed_out = self._handed_out, None
            self._free.append(slot)
        return super()._next()

    def _open_job(self, plan: BatchPlan) -> _Job | None:
        return _Job(plan, slot=self._free.popleft()) if self._free else None

    def _complete(self, job: _Job) -> None:
        """Write down the numbers of a batch whose crops are chosen."""
        pixels, sample_ids = self._pixels, job.plan.places.sample_ids
        numbers = lay_out_numbers(
            job.plan.augmentation,
            pixels.layout.image_starts[sample_ids],
            pixels.layout.mask_starts[sample_ids],
            self._stream.stored_hw(job.plan.places),
            self._stream.target_hw,
        )
        job.slot.numbers[: len(job)].numpy()[...] = numbers

    def _hand_out(self, job: _Job) -> tuple[torch.Tensor, torch.Tensor]:
        self._handed_out = job.slot
        pixels, numbers = self._pixels, job.slot.to_device(len(job), self._device)
        are_resized, mask_bits = pixels.layout.are_resized, pixels.layout.mask_bits
        image_NHWC, mask_NHW = self._render(pixels.images, pixels.masks, numbers, are_resized=are_resized, mask_bits=mask_bits)
        is_wide = mask_bits == 16
        return image_NHWC.permute(0, 3, 1, 2), mask_NHW.view(torch.uint16) if is_wide else mask_NHW

    def _render(
        self, images: torch.Tensor, masks: torch.Tensor, numbers: torch.Tensor, *, are_resized: bool, mask_bits: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext():
            return render_batch(
                images,
                masks,
                numbers,
                self._target_hw,
                are_resized=are_resized,
                mask_bits=mask_bits,
                ignore_index=self._ignore_index,
            )

    def _try_kernels(self, stream: SampleStream) -> None:
        """Compile the kernels and run them once: what they lack (a C compiler, a newer GPU) is told before pixels are decoded.

        Raises:
            UserError: they cannot be compiled or run here.
        """
        mask_bits = stream.reader.manifest.mask_bits
        try:
            self._render(
                torch.zeros(_TRIAL_SIZE, dtype=torch.uint8, device=self._device),
                torch.zeros(_TRIAL_SIZE, dtype=mask_dtype(mask_bits), device=self._device),
                torch.zeros((1, NUM_COLUMNS), dtype=torch.float64, device=self._device),  # an empty crop: all is outside
                are_resized=stream.boxes_are_fixed,
                mask_bits=mask_bits,
            )
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler may raise anything
            raise UserError(
                f'loader.cache = "gpu": Triton cannot make its kernels here ({say_briefly(error)}); '
                "take --set loader.cache=ram or --set loader.cache=off"
            ) from error

    def _give_up(self, jobs: list[_Job]) -> None:
        for job in jobs:
            if job.slot is not self._handed_out and job.slot not in self._free:
                self._free.append(job.slot)
