"""The work on all images of a prediction, one after another: read ahead, predicted here, written behind.

Axis legend: N batch, K classes, H height, W width, C channels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from unetfast.infer.inputs import ImageInput
from unetfast.infer.job import ImageError, Job
from unetfast.infer.prediction import Prediction
from unetfast.infer.reading import Prepared, ReadAhead, Unread
from unetfast.infer.tiling import Block
from unetfast.infer.videos import VideoMasks

_PENDING_PIXELS = 2**27  # of images that wait to be written


@dataclass(frozen=True, slots=True)
class PredictFailure:
    """An image that could not be predicted.

    Args:
        file: the image, as it was given or found.
        reason: why.
    """

    file: str
    reason: str


class PredictRun:
    """The work on all images, and what came of it. A context manager: on leaving it, its threads end."""

    def __init__(
        self,
        job: Job,
        ahead: ReadAhead,
        videos: VideoMasks,
        *,
        num_threads: int,
        advance_to: Callable[[float, float], None],
        console: Console | None,
    ) -> None:
        self._job = job
        self._ahead = ahead
        self._videos = videos
        self._writers = ThreadPoolExecutor(num_threads, "write")
        self._num_threads = num_threads
        self._pending: deque[tuple[Future[None], Prepared, Prediction]] = deque()
        self._pending_pixels = 0
        self._advance_to = advance_to
        self._console = console
        self.num_done = 0
        self.num_pixels = 0
        self.failures: list[PredictFailure] = []

    def __enter__(self) -> PredictRun:
        return self

    def __exit__(self, *_: object) -> None:
        self._writers.shutdown(wait=True, cancel_futures=True)
        for _future, _prepared, prediction in self._pending:
            prediction.close()

    def do_batch(self, batch: Sequence[Prepared | Unread]) -> None:
        """Predict images that were resized to the training size."""
        good = [(result, result.small_HWC) for result in self._take_good(batch) if result.small_HWC is not None]
        if not good:
            return
        logits_NKHW = self._job.run_model(np.stack([small_HWC for _, small_HWC in good]))
        for (prepared, _), logits_KHW in zip(good, logits_NKHW, strict=True):
            try:
                prediction = self._job.settle(prepared, self._job.iter_whole(logits_KHW, prepared.size_hw))
            except ImageError as error:
                self._fail(prepared, error)
            else:
                self._write(prepared, prediction)

    def do_windows(self, batch: Sequence[Prepared | Unread], batch_size: int) -> None:
        """Predict images window by window."""
        for prepared in self._take_good(batch):
            try:
                prediction = self._job.settle(prepared, self._iter_windows(prepared, batch_size))
            except ImageError as error:
                self._fail(prepared, error)
            else:
                self._write(prepared, prediction)

    def _iter_windows(self, prepared: Prepared, batch_size: int) -> Iterator[Block]:
        def show(share: float) -> None:
            self._show(share, share * prepared.num_pixels)

        assert prepared.whole_HWC is not None
        return self._job.iter_windows(prepared.whole_HWC, batch_size, show)

    def finish(self) -> None:
        """Wait for what is still being written."""
        while self._pending:
            self._wait_for_oldest()

    def _take_good(self, batch: Sequence[Prepared | Unread]) -> list[Prepared]:
        good = []
        for result in batch:
            if isinstance(result, Prepared):
                good.append(result)
                continue
            self._count_failure(result.image, PredictFailure(str(result.image.path), result.reason))
        return good

    def _fail(self, prepared: Prepared, error: ImageError) -> None:
        self._ahead.release(prepared)
        self._count_failure(prepared.image, PredictFailure(str(prepared.image.path), str(error)))

    def _count_failure(self, image: ImageInput, failure: PredictFailure) -> None:
        self.failures.append(failure)
        self._videos.frame_done(image, None)
        if self._console is not None:
            self._console.print(f"failed: {failure.file}: {failure.reason}", style="red", markup=False, soft_wrap=True)
        self._show()

    def _write(self, prepared: Prepared, prediction: Prediction) -> None:
        self._pending.append((self._writers.submit(self._write_one, prepared, prediction), prepared, prediction))
        self._pending_pixels += prepared.num_pixels
        self.num_done += 1
        self.num_pixels += prepared.num_pixels
        self._show()
        while len(self._pending) > 2 * self._num_threads or (self._pending and self._pending_pixels > _PENDING_PIXELS):
            self._wait_for_oldest()

    def _write_one(self, prepared: Prepared, prediction: Prediction) -> None:
        try:
            self._job.write(prepared, prediction)
        finally:
            self._ahead.release(prepared)
        self._videos.frame_done(prepared.image, prepared.size_hw)

    def _wait_for_oldest(self) -> None:
        future, prepared, _prediction = self._pending.popleft()
        self._pending_pixels -= prepared.num_pixels
        future.result()

    def _show(self, share: float = 0.0, num_pixels: float = 0.0) -> None:
        self._advance_to(self.num_done + len(self.failures) + share, (self.num_pixels + num_pixels) / 1e6)
