"""The DALI backend: encoded bytes go to the GPU, and decode, resize and augmentation happen there.

The host decides what is in a batch and with which numbers (stream.py), reads and checks the members on threads (encoded.py) and
feeds them to a pipeline (dali.py), which only decodes and applies. Its results go to torch by DLPack without a copy.

DALI loses a batch when one image cannot be decoded; the loader then finds the sample that is at fault.

Axis letters: N batch, H height, W width, C channels.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from unetfast.config import Config
from unetfast.data.reader import SplitReader
from unetfast.errors import CorruptShardError, UserError
from unetfast.loader.dali import DaliGraph, DaliSite
from unetfast.loader.encoded import (
    EncodedSample,
    FeedPlan,
    block_inputs,
    load_encoded,
    number_inputs,
    plan_feed,
)
from unetfast.loader.prefetch import Job, PrefetchLoader
from unetfast.loader.stream import BatchPlan, SampleStream

# samples whose crop boxes decide whether regions are decoded
_NUM_PEEKED = 256


@dataclass(slots=True)
class _Job(Job):
    """A batch in the making: its samples as the threads leave them, then the tensors as the pipeline does."""

    samples: list[EncodedSample | None] = field(default_factory=list)
    is_scheduled: bool = False
    tensors: tuple[torch.Tensor, torch.Tensor] | None = None


@dataclass(frozen=True, slots=True)
class _Work:
    """What worker threads need; it does not hold the loader, which can so be collected while they run."""

    reader: SplitReader
    feed: FeedPlan

    def begin(self, job: _Job) -> None:
        """Do nothing: every sample has memory of its own."""

    def load(self, job: _Job, row: int) -> None:
        """Read and check one sample of a batch."""
        sample_id = int(job.plan.places.sample_ids[row])
        job.samples[row] = load_encoded(self.reader, sample_id, job.plan.augmentation.crop_yxyx[row], self.feed)


class DaliLoader(PrefetchLoader[_Job]):
    """Batches of one split, decoded and augmented by DALI; see `unetfast.loader.batch.Loader`.

    A batch stays valid as long as somebody holds it, on the stream that was current when it was asked for. When the next one is
    asked for, the loader keeps the last one until the current stream has passed that point, so DALI does not use its memory
    again while a kernel may still read it.

    With P = `loader.prefetch_batches`, memory of the host: the encoded bytes (of raw images: the pixels) of 2 P + 1 batches. Of
    the device: for each of P + 1 batches under way its images at stored size and the finished batch, and up to P + 2 finished
    ones that the device is still using. DALI keeps what it took for the next batches.

    Args:
        stream: the order of samples, and where it goes on.
        config: the loader, augment and dali sections.
        num_threads: threads that read, and as many of DALI's own.
        device: where batches are made.

    Raises:
        UserError: the settings ask for what the device cannot do.
    """

    backend = "dali"

    def __init__(self, stream: SampleStream, config: Config, *, num_threads: int, device: torch.device) -> None:
        if config.dali.inflate == "gpu" and device.type != "cuda":
            raise UserError('dali.inflate = "gpu" needs a GPU; take --set dali.inflate=host')
        reader = stream.reader
        numbers, stored_hw = stream.peek(_NUM_PEEKED)
        self._feed = plan_feed(
            reader,
            config,
            training=stream.training,
            on_gpu=device.type == "cuda",
            numbers=numbers,
            stored_hw=stored_hw,
        )
        labels = reader.manifest.labels
        self._site = DaliSite(device, num_threads, stream.target_hw, reader.split.max_hw, labels.ignore_index, config.dali)
        self._num_scheduled = config.loader.prefetch_batches  # at most, while one is used
        super().__init__(
            stream,
            config.loader,
            _Work(reader, self._feed),
            num_threads=num_threads,
            num_ahead=2 * config.loader.prefetch_batches,
        )
        self._graph: DaliGraph | None = DaliGraph(max(stream.max_part, 1), self._feed, self._site)
        self._current: tuple[torch.Tensor, torch.Tensor] | None = None
        self._in_use: deque[tuple[Any, tuple[torch.Tensor, torch.Tensor]]] = deque()

    def close(self) -> None:
        """Stop all threads, DALI's among them; may be called twice. Batches that were handed out stay valid."""
        super().close()
        self._graph = None
        for event, _ in self._in_use:
            event.synchronize()
        self._in_use.clear()
        if self._current is not None and self._site.device.type == "cuda":
            torch.cuda.current_stream(self._site.device).synchronize()
        self._current = None

    def _next(self) -> Any:
        self._retire()
        return super()._next()

    def _retire(self) -> None:
        """Let go of the batches that the device has done with."""
        if self._site.device.type == "cuda" and self._current is not None:
            event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._site.device))
            self._in_use.append((event, self._current))
        self._current = None
        while self._in_use and (len(self._in_use) > self._num_scheduled + 2 or self._in_use[0][0].query()):
            self._in_use[0][0].synchronize()
            self._in_use.popleft()

    def _open_job(self, plan: BatchPlan) -> _Job:
        return _Job(plan, samples=[None] * len(plan.places))

    def _go_ahead(self) -> None:
        """Schedule the batches that are read, in their order."""
        num_scheduled = sum(job.is_scheduled for job in self._jobs)
        for job in self._jobs:
            if num_scheduled >= self._num_scheduled or (not job.is_scheduled and (not job.is_loaded or job.bad)):
                return
            if not job.is_scheduled and len(job) and all(sample is not None for sample in job.samples):
                self._schedule(job)
                num_scheduled += 1

    def _schedule(self, job: _Job) -> None:
        if self._graph is None:
            self._graph = DaliGraph(max(self._stream.max_part, 1), self._feed, self._site)
        self._graph.schedule([sample for sample in job.samples if sample is not None], self._lay_out(job.plan))
        job.is_scheduled = True
        job.samples = []

    def _lay_out(self, plan: BatchPlan) -> dict[str, np.ndarray]:
        rows = self._stream.reader.rows[plan.places.sample_ids]
        stored_hw = np.stack([rows["height"], rows["width"]], axis=1).astype(np.int64)
        numbers = number_inputs(plan.augmentation, stored_hw, self._stream.target_hw, self._feed)
        return numbers | block_inputs(plan.augmentation, stored_hw, self._feed)

    def _complete(self, job: _Job) -> None:
        if not job.is_scheduled:
            self._schedule(job)
        assert self._graph is not None
        try:
            job.tensors = self._graph.take()
        except Exception as error:  # DALI raises many kinds, and its pipeline is lost
            self._graph = None
            job.bad = self._find_bad(job.plan, error)

    def _hand_out(self, job: _Job) -> tuple[torch.Tensor, torch.Tensor]:
        assert job.tensors is not None
        self._current = job.tensors
        image_NHWC, mask_NHW = job.tensors
        return image_NHWC.permute(0, 3, 1, 2), mask_NHW.view(torch.uint16) if self._feed.mask_bytes == 2 else mask_NHW

    def _give_up(self, jobs: list[_Job]) -> None:
        """Let DALI finish what was scheduled, and drop it."""
        for job in jobs:
            if job.is_scheduled and job.tensors is None and self._graph is not None:
                try:
                    self._graph.take()
                except Exception:  # a bad batch that nobody will see; the next ones are read again
                    self._graph = None

    def _find_bad(self, plan: BatchPlan, batch_error: Exception) -> dict[int, CorruptShardError]:
        """Find the samples for which DALI lost a batch: first by the CPU backend's decoder, then by DALI, one by one.

        Raises:
            UserError: no sample is at fault: DALI fails on the batch alone, or on each of its sound samples.
        """
        sample_ids = plan.places.sample_ids.tolist()
        bad: dict[int, CorruptShardError] = {}
        for row, sample_id in enumerate(sample_ids):
            try:
                self._stream.reader.decode_image(sample_id)
            except CorruptShardError as error:
                bad[row] = error
        if not bad:
            for row, sample_id in enumerate(sample_ids):
                if reason := self._try_alone(plan, row):
                    where = self._stream.reader.describe(sample_id, "image")
                    bad[row] = CorruptShardError(where, f"DALI cannot decode it ({reason})")
            if not bad or len(bad) == len(sample_ids) > 1:
                raise UserError(
                    f"DALI failed on a batch of sound samples: {_pick_line(batch_error)}\n"
                    "  take a smaller loader.batch_size where memory is short, or --set loader.backend=cpu"
                ) from batch_error
        return bad

    def _try_alone(self, plan: BatchPlan, row: int) -> str:
        """Run one sample through a pipeline of its own; returns the error, or ""."""
        part = np.array([row])
        alone = BatchPlan(plan.places[part], plan.augmentation[part], plan.end, plan.left_out)
        sample_id = int(alone.places.sample_ids[0])
        sample = load_encoded(self._stream.reader, sample_id, alone.augmentation.crop_yxyx[0], self._feed)
        numbers = self._lay_out(alone)
        try:
            graph = DaliGraph(1, self._feed, self._site)
            graph.schedule([sample], numbers)
            graph.take()
        except Exception as error:
            return _pick_line(error)
        return ""


def _pick_line(error: Exception) -> str:
    """Take what says most from one of DALI's errors of many lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [
        line for line in lines if not line.startswith(("Current pipeline object", "Critical error", "File ", "C++ context"))
    ]
    return said[0] if said else type(error).__name__
