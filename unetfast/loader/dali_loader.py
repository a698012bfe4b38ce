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
    make_control,
    number_inputs,
    plan_feed,
)
from unetfast.loader.foreground import CropRule
from unetfast.loader.prefetch import Job, PrefetchLoader
from unetfast.loader.stream import BatchPlan, SampleStream

# samples whose crop boxes decide whether regions are decoded
_NUM_PEEKED = 256
_MAX_GPU_THREADS = 16


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
    rule: CropRule

    def begin(self, job: _Job) -> None:
        """Do nothing: every sample has memory of its own."""

    def load(self, job: _Job, row: int) -> None:
        """Read and check one sample of a batch."""
        sample_id = int(job.plan.places.sample_ids[row])
        job.samples[row] = load_encoded(self.reader, sample_id, job.plan.augmentation, row, self.feed, self.rule)


class DaliLoader(PrefetchLoader[_Job]):
    """Batches of one split, decoded and augmented by DALI; see `unetfast.loader.batch.Loader`.

    A batch is DALI's own memory. On a GPU it is valid for what is launched on the then current stream before the next one is
    asked for: from there on the loader holds it until that stream has passed the point, so DALI does not use its memory again
    while a kernel may still read it. (On a CPU it stays as it is for as long as somebody holds it.)

    With P = `loader.prefetch_batches`, memory of the host: the encoded bytes (of raw images: the pixels) of 2 P + 1 batches. Of
    the device: for each of P batches under way its images at stored size and the finished batch, up to P + 2 finished ones that
    the device is still using, 16 MiB a decoding thread (as much again pinned on the host), and, where a split's images are
    of much the same size, what the JPEG unit takes for a whole batch of them. DALI keeps what it took for the next batches.

    Args:
        stream: the order of samples, and where it goes on.
        config: the loader, augment and dali sections.
        num_threads: threads that read, and as many of DALI's own (on a GPU twice 16 of these at most).
        device: where batches are made.

    Raises:
        UserError: the settings ask for what the device cannot do.
    """

    backend = "dali"

    def __init__(self, stream: SampleStream, config: Config, *, num_threads: int, device: torch.device) -> None:
        if config.dali.inflate == "gpu" and stream.training and config.augment.max_class_share < 1:
            raise UserError(
                f'augment.max_class_share = {config.augment.max_class_share:g} with dali.inflate = "gpu": a mask chooses its '
                "crop on the host, and would be inflated on the GPU alone; take --set dali.inflate=host, or "
                "--set augment.max_class_share=1.0"
            )
        if config.dali.inflate == "gpu" and device.type != "cuda":
            raise UserError('dali.inflate = "gpu" needs a GPU; take --set dali.inflate=host')
        if config.dali.inflate == "gpu" and not config.loader.checksum:
            raise UserError(
                'dali.inflate = "gpu" with loader.checksum = false: what a GPU inflates from damaged members is wrong pixels, '
                "and no error; take --set loader.checksum=true or --set dali.inflate=host"
            )
        index: int | None = device.index  # torch's own types leave the None out
        if device.type == "cuda" and index is None:
            device = torch.device("cuda", torch.cuda.current_device())
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
        self._site = DaliSite(
            device=device,
            num_threads=min(num_threads, _MAX_GPU_THREADS) if device.type == "cuda" else num_threads,
            target_hw=stream.target_hw,
            usual_hw=_find_usual_hw(reader.split.max_hw, stored_hw),
            ignore_index=reader.manifest.labels.ignore_index,
            config=config.dali,
        )
        self._num_scheduled = config.loader.prefetch_batches  # at most, while one is used
        super().__init__(
            stream,
            config.loader,
            _Work(reader, self._feed, stream.crop_rule),
            num_threads=num_threads,
            num_ahead=2 * config.loader.prefetch_batches,
        )
        self._graph: DaliGraph | None = self._build_graph()
        self._current: tuple[torch.Tensor, torch.Tensor] | None = None
        self._in_use: deque[tuple[Any, tuple[torch.Tensor, torch.Tensor]]] = deque()

    def close(self) -> None:
        """Stop all threads, DALI's among them; may be called twice. Batches that were handed out stay valid."""
        try:
            super().close()
            if self._site.device.type == "cuda" and (self._in_use or self._current is not None):
                torch.cuda.synchronize(self._site.device)
        finally:
            self._graph = None
            self._in_use.clear()
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
        num_scheduled = sum(job.is_scheduled and job.tensors is None for job in self._jobs)
        for job in self._jobs:
            if num_scheduled >= self._num_scheduled or (not job.is_scheduled and (not job.is_loaded or job.bad)):
                return
            if not job.is_scheduled and len(job) and all(sample is not None for sample in job.samples):
                self._schedule(job)
                num_scheduled += 1

    def _schedule(self, job: _Job) -> None:
        """Feed a batch to the pipeline; one that was fed by halves is lost, or the next batch would be made of two."""
        numbers = self._lay_out(job.plan)
        try:
            if self._graph is None:
                self._graph = self._build_graph()
            self._graph.schedule([sample for sample in job.samples if sample is not None], numbers)
            job.is_scheduled = True
        except BaseException as error:
            self._graph = None
            if isinstance(error, Exception) and not isinstance(error, UserError):
                raise UserError(_say_lost("DALI takes no batch", _pick_line(error))) from None
            raise
        job.samples = []

    def _build_graph(self) -> DaliGraph:
        try:
            return DaliGraph(max(self._stream.max_part, 1), self._feed, self._site)
        except Exception as error:
            raise UserError(_say_lost("DALI builds no pipeline here", _pick_line(error))) from None

    def _lay_out(self, plan: BatchPlan) -> dict[str, np.ndarray]:
        stored_hw = self._stream.stored_hw(plan.places)
        numbers = number_inputs(plan.augmentation, stored_hw, self._stream.target_hw, self._feed)
        return numbers | block_inputs(plan.augmentation, stored_hw, self._feed)

    def _complete(self, job: _Job) -> None:
        if failure := self._take(job):
            job.bad = self._find_bad(job.plan, failure)

    def _take(self, job: _Job) -> str:
        """Wait for a batch's pixels; returns DALI's error, or ""."""
        if not job.is_scheduled:
            self._schedule(job)
        self._go_ahead()
        assert self._graph is not None
        try:
            job.tensors = self._graph.take()
        except BaseException as error:  # the pipeline is lost
            self._graph = None
            if isinstance(error, Exception):
                return _pick_line(error)
            raise
        return ""

    def _hand_out(self, job: _Job) -> tuple[torch.Tensor, torch.Tensor]:
        assert job.tensors is not None
        self._current = job.tensors
        image_NHWC, mask_NHW = job.tensors
        return image_NHWC.permute(0, 3, 1, 2), mask_NHW.view(torch.uint16) if self._feed.mask_bytes == 2 else mask_NHW

    def _give_up(self, jobs: list[_Job]) -> None:
        """Let DALI finish what was scheduled, and drop it."""
        for job in jobs:
            if job.is_scheduled and job.tensors is None and self._graph is not None:
                job.is_scheduled = False
                try:
                    self._graph.take()
                except BaseException as error:  # a bad batch that nobody will see; the next ones are read again
                    self._graph = None
                    if not isinstance(error, Exception):
                        raise

    def _find_bad(self, plan: BatchPlan, failure: str) -> dict[int, CorruptShardError]:
        """Find the samples for which DALI lost a batch: first by the CPU backend's decoder, then by DALI, one by one.

        Raises:
            UserError: no sample is at fault: DALI makes each of them alone, or not even a sample made here, or refuses one that
                the host has decoded.
        """
        reader, sample_ids = self._stream.reader, plan.places.sample_ids.tolist()
        bad: dict[int, CorruptShardError] = {}
        for row, sample_id in enumerate(sample_ids):
            try:
                reader.decode_image(sample_id)
            except CorruptShardError as error:
                bad[row] = error
        if bad:
            return bad
        if self._try_alone(*make_control(plan.places[:1], self._stream.target_hw, self._feed)):
            raise UserError(_say_lost("DALI failed on a batch of sound samples", failure))
        for row, sample_id in enumerate(sample_ids):
            try:
                sample = load_encoded(reader, sample_id, plan.augmentation, row, self._feed, self._stream.crop_rule)
            except CorruptShardError as error:
                bad[row] = error
                continue
            part = np.array([row])
            alone = BatchPlan(plan.places[part], plan.augmentation[part], plan.end, plan.left_out)
            if reason := self._try_alone(sample, self._lay_out(alone)):
                if reader.image_codec(sample_id) != "jpeg":
                    hint = "; nvImageCodec may lack its OpenCV part" if self._feed.images == "encoded" else ""
                    raise UserError(_say_lost("DALI does not take a sample that was decoded on the host", reason + hint))
                bad[row] = CorruptShardError(reader.describe(sample_id, "image"), f"DALI cannot decode it ({reason})")
        if not bad:
            raise UserError(_say_lost("DALI failed on a batch of sound samples", failure))
        return bad

    def _try_alone(self, sample: EncodedSample, numbers: dict[str, np.ndarray]) -> str:
        """Run one sample through a pipeline of its own; returns the error, or ""."""
        try:
            graph = DaliGraph(1, self._feed, self._site)
            graph.schedule([sample], numbers)
            graph.take()
        except Exception as error:
            return _pick_line(error)
        return ""


def _find_usual_hw(max_hw: tuple[int, int], stored_hw: np.ndarray) -> tuple[int, int]:
    """Return the largest height and width where the split's images are of much the same size, else (0, 0)."""
    mean_px = float(stored_hw.prod(axis=1).mean()) if len(stored_hw) else 0.0
    return max_hw if max_hw[0] * max_hw[1] <= 2 * mean_px else (0, 0)


def _say_lost(what: str, reason: str) -> str:
    return f"{what}: {reason}\n  take a smaller loader.batch_size where memory is short, or --set loader.backend=cpu"


def _pick_line(error: Exception) -> str:
    """Take what says most from one of DALI's errors of many lines: the one behind "encountered:"."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "encountered:" in lines[:-1]:
        return lines[lines.index("encountered:") + 1]
    said = [line for line in lines if not line.startswith(("Current pipeline object", "Critical error"))]
    return said[0] if said else type(error).__name__
