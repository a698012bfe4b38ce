"""A split's pixels on a device: decoded once by the CPU backend's decoder, kept as uint8, images and masks one after another.

An image is kept at its stored size. Where no crop and no zoom-in is ever drawn, its resize is the same every time: then it is
kept at the target's size, as the CPU backend makes it, bit for bit. Masks are always kept at their stored size, since they are
looked up once through all steps; with two classes and no ignored pixels as one bit a pixel.

Axis letters: H height, W width, C channels.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from unetfast.config import LoaderConfig
from unetfast.data.reader import SplitReader
from unetfast.errors import CorruptShardError, UserError
from unetfast.loader.jpegfile import has_jpegs
from unetfast.loader.kernels.find import find_kernel
from unetfast.loader.pinned import CopyMark
from unetfast.loader.pixels import choose_jpeg_reduction, decode_sample, resize_box
from unetfast.loader.plainresize import resize_by_libraries
from unetfast.loader.stream import SampleStream

_STAGE_BYTES = 128 << 20  # of a piece that is copied to the device at once
_NUM_STAGES = 3  # pieces in the making: threads need not wait for each other at the end of one
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each sample's pixels lie; computed from the index alone, before anything is read.

    Args:
        image_hw: height and width of each image as it is kept, int64, (n, 2).
        image_starts: first byte of each image, and the number of bytes of all, int64, (n + 1,).
        mask_starts: first element of each mask (a byte, or two with 16 bits), and the number of all, int64, (n + 1,).
        mask_bits: 1, 8 or 16.
        are_resized: whether images are kept at the target's size.
    """

    image_hw: np.ndarray
    image_starts: np.ndarray
    mask_starts: np.ndarray
    mask_bits: int
    are_resized: bool

    @property
    def byte_starts(self) -> np.ndarray:
        """Bytes of the images and masks before each sample, and of all, int64, (n + 1,)."""
        starts: np.ndarray = self.image_starts + self.mask_starts * (2 if self.mask_bits == 16 else 1)
        return starts

    @property
    def num_bytes(self) -> int:
        return int(self.byte_starts[-1])


def lay_out(stored_hw: np.ndarray, mask_bits: int, fixed_hw: tuple[int, int] | None) -> Layout:
    """Lay out a split.

    Args:
        stored_hw: heights and widths of all samples, pixels, int64, (n, 2).
        mask_bits: 1, 8 or 16.
        fixed_hw: size at which images are kept, pixels; None: their own.
    """
    image_hw = stored_hw if fixed_hw is None else np.broadcast_to(np.array(fixed_hw, dtype=np.int64), stored_hw.shape)
    height, width = stored_hw.T
    mask_sizes = height * (-(-width // 8) if mask_bits == 1 else width)
    return Layout(image_hw, _starts(3 * image_hw.prod(axis=1)), _starts(mask_sizes), mask_bits, fixed_hw is not None)


def mask_dtype(mask_bits: int) -> torch.dtype:
    """Return the type of the elements that masks lie in; int16 holds the bits of uint16."""
    return torch.int16 if mask_bits == 16 else torch.uint8


def _starts(sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes, dtype=np.int64)])


def check_room(num_bytes: int, free_bytes: int, cache_mib: int, *, device: torch.device, what: str) -> None:
    """Refuse a split that takes more than may be taken.

    Args:
        num_bytes: that it takes.
        free_bytes: of the device.
        cache_mib: `loader.cache_mib`; 0: half of what is free.
        device: for the message.
        what: for the message, such as "split train at 160x240".

    Raises:
        UserError: it does not fit; says what it takes, what is free and what to do.
    """
    allowed = cache_mib << 20 if cache_mib else free_bytes // 2
    if num_bytes <= min(allowed, free_bytes):
        return
    limit = f"loader.cache_mib allows {cache_mib / 1024:.2f} GiB" if cache_mib else "half of that may be taken"
    more = f"more by --set loader.cache_mib={-(-num_bytes // (1 << 20))}, " if num_bytes <= free_bytes else ""
    raise UserError(
        f'loader.cache = "gpu": {what} takes {num_bytes / _GIB:.2f} GiB; {free_bytes / _GIB:.2f} GiB are free on {device}, '
        f"and {limit}\n"
        f"  take {more}--set loader.cache=ram or --set loader.cache=off, or pack smaller images (unetfast shard --size)"
    )


class ResidentPixels:
    """The pixels of a split on a device; filled by the constructor.

    Args:
        stream: of the loader; bad samples are left out of it where `loader.on_bad` is "skip".
        config: decode, on_bad, cache_mib.
        num_threads: that decode.
        device: where the pixels lie.

    Attributes:
        layout: where each sample's pixels are.
        images: uint8, flat.
        masks: uint8, or int16 (the bits of uint16), flat.
        seconds: that filling took.

    Raises:
        UserError: the split does not fit on the device.
        CorruptShardError: a sample cannot be decoded and `loader.on_bad` is "error"; of several the first in the index.
    """

    def __init__(
        self,
        stream: SampleStream,
        config: LoaderConfig,
        *,
        num_threads: int,
        device: torch.device,
    ) -> None:
        reader = stream.reader
        rows = reader.rows
        stored_hw = np.stack([rows["height"], rows["width"]], axis=1).astype(np.int64)
        # a row that claims more than the manifest's largest sample takes no memory by it; the reader refuses to decode it
        stored_hw = np.minimum(stored_hw, np.array(reader.split.max_hw))
        fixed_hw = stream.target_hw if stream.boxes_are_fixed else None
        self.layout = lay_out(stored_hw, reader.manifest.mask_bits, fixed_hw)
        self.seconds = 0.0
        self.images, self.masks = self._take_memory(config, device, f"split {reader.name}")
        self._fill(stream, config, num_threads)

    def _take_memory(self, config: LoaderConfig, device: torch.device, what: str) -> tuple[torch.Tensor, torch.Tensor]:
        layout = self.layout
        if device.type == "cuda":
            torch.cuda.empty_cache()  # what torch holds in reserve can be had too
            free_bytes = torch.cuda.mem_get_info(device)[0]
            check_room(layout.num_bytes, free_bytes, config.cache_mib, device=device, what=what)
        images = torch.empty(int(layout.image_starts[-1]), dtype=torch.uint8, device=device)
        return images, torch.empty(int(layout.mask_starts[-1]), dtype=mask_dtype(layout.mask_bits), device=device)

    def _fill(self, stream: SampleStream, config: LoaderConfig, num_threads: int) -> None:
        """Decode every sample and copy it to the device, in pieces: while one is copied, the next ones are decoded."""
        began_s = time.perf_counter()
        resize = resize_box if stream.training else resize_by_libraries
        work = _Decoding(stream.reader, config, self.layout, stream.target_hw, resize)
        if self.layout.are_resized:
            find_kernel("resize")  # compiled here, not by all threads at once
        if has_jpegs(stream.reader.rows["image_codec"]):
            find_kernel("jpeg")
        free = deque(_Stage(self.images.device) for _ in range(_NUM_STAGES))
        under_way: deque[tuple[_Stage, range, list[Future[None]]]] = deque()

        def finish_first() -> None:
            stage, part, futures = under_way.popleft()
            for sample_id, future in zip(part, futures, strict=True):
                try:
                    future.result()
                except CorruptShardError as error:
                    if config.on_bad != "skip":
                        raise
                    stream.leave_out(sample_id, error)
            stage.copy()
            free.append(stage)

        with ThreadPoolExecutor(num_threads, thread_name_prefix="unetfast-resident") as pool:
            try:
                for part in _cut(self.layout):
                    if not free:
                        finish_first()
                    stage = free.popleft()
                    pieces = stage.open(self._slices(part))
                    under_way.append((stage, part, [pool.submit(work.decode, sample_id, part, pieces) for sample_id in part]))
                while under_way:
                    finish_first()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        for stage in free:
            stage.copied.wait()
        self.seconds = time.perf_counter() - began_s

    def _slices(self, part: range) -> list[torch.Tensor]:
        starts = (self.layout.image_starts, self.layout.mask_starts)
        ends = [(int(start[part.start]), int(start[part.stop])) for start in starts]
        return [whole[first:last] for whole, (first, last) in zip((self.images, self.masks), ends, strict=True)]


def _cut(layout: Layout) -> Iterator[range]:
    """Cut the samples into runs of at most `_STAGE_BYTES`, images and masks, each of one sample at least."""
    first, num, starts = 0, len(layout.image_hw), layout.byte_starts
    while first < num:
        last = int(np.searchsorted(starts, starts[first] + _STAGE_BYTES, side="right")) - 1
        last = min(max(last, first + 1), num)
        yield range(first, last)
        first = last


class _Stage:
    """Host memory for one piece, used again; pinned where it is copied to a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.copied = CopyMark(device)
        self._memory: list[torch.Tensor] = []
        self._pairs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def open(self, targets: list[torch.Tensor]) -> list[np.ndarray]:
        """Return memory for each of the targets, after the last copy has read it; it holds anything."""
        self.copied.wait()
        if not self._memory or any(len(old) < len(new) for old, new in zip(self._memory, targets, strict=True)):
            pinned = self.copied.is_pinned
            self._memory = [torch.empty(len(target), dtype=target.dtype, pin_memory=pinned) for target in targets]
        self._pairs = [(target, memory[: len(target)]) for target, memory in zip(targets, self._memory, strict=True)]
        return [source.numpy() for _, source in self._pairs]

    def copy(self) -> None:
        for target, source in self._pairs:
            target.copy_(source, non_blocking=True)
        self.copied.set()


@dataclass(frozen=True, slots=True)
class _Decoding:
    """What the filling threads do."""

    reader: SplitReader
    config: LoaderConfig
    layout: Layout
    target_hw: tuple[int, int]
    resize: Callable[[np.ndarray, np.ndarray, np.ndarray], None]  # as in the CPU backend

    def decode(self, sample_id: int, part: range, pieces: list[np.ndarray]) -> None:
        """Decode one sample into its places within a piece.

        Raises:
            CorruptShardError: it cannot be read or decoded.
        """
        layout = self.layout
        images, masks = pieces
        mask_HW = self.reader.decode_mask(sample_id)
        mask = np.packbits(mask_HW, axis=1) if layout.mask_bits == 1 else mask_HW
        _place(masks, layout.mask_starts, sample_id, part)[...] = mask.view(masks.dtype).reshape(-1)
        height, width = layout.image_hw[sample_id].tolist()
        self._decode_image(sample_id, _place(images, layout.image_starts, sample_id, part).reshape(height, width, 3))

    def _decode_image(self, sample_id: int, out_HWC: np.ndarray) -> None:
        if not self.layout.are_resized:
            out_HWC[...] = self.reader.decode_image(sample_id)
            return
        row = self.reader.rows[sample_id]
        stored_hw = int(row["height"]), int(row["width"])
        is_jpeg = self.reader.image_codec(sample_id) == "jpeg"
        reduction = choose_jpeg_reduction(stored_hw, self.target_hw, self.config.decode) if is_jpeg else 1
        rgb_HWC = decode_sample(self.reader, sample_id, reduction)
        self.resize(rgb_HWC, np.array([0, 0, *stored_hw]) / reduction, out_HWC)


def _place(piece: np.ndarray, starts: np.ndarray, sample_id: int, part: range) -> np.ndarray:
    """Return the elements of one sample within a piece that holds the samples `part`."""
    return piece[starts[sample_id] - starts[part.start] : starts[sample_id + 1] - starts[part.start]]
