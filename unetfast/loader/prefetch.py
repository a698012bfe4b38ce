"""What both backends share: batches in the making on threads, their order, position and resume, bad samples, and the end.

A backend says how a row of a batch is loaded in a thread (`RowLoader`), how a loaded batch is completed and handed out, and
how one is given up. All the rest, and so what a caller sees, is the same.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, Self, TypeVar

from torch import Tensor

from unetfast.config import LoaderConfig
from unetfast.errors import CorruptShardError, UserError
from unetfast.loader.batch import Batch
from unetfast.loader.stream import BatchPlan, SampleStream


@dataclass(slots=True)
class Job:
    """A batch in the making.

    Args:
        plan: what it is made of.
        rows: the next row that nobody works on yet; itertools.count's step is atomic.
        futures: its threads' work.
        bad: the samples that cannot be loaded, by row.
    """

    plan: BatchPlan
    rows: Iterator[int] = field(default_factory=itertools.count)
    futures: list[Future[None]] = field(default_factory=list)
    bad: dict[int, CorruptShardError] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.plan.places)

    @property
    def is_loaded(self) -> bool:
        """Whether the threads are done with it."""
        return all(future.done() for future in self.futures)


JobT = TypeVar("JobT", bound=Job)
JobT_contra = TypeVar("JobT_contra", bound=Job, contravariant=True)


class RowLoader(Protocol[JobT_contra]):
    """What worker threads do. It must not hold the loader, which can so be collected while they run."""

    def begin(self, job: JobT_contra) -> None:
        """Wait until the job's memory may be written; called by each of its threads."""
        ...

    def load(self, job: JobT_contra, row: int) -> None:
        """Load one row of a batch; raises CorruptShardError for a bad sample."""
        ...


def _run(work: RowLoader[JobT], job: JobT) -> None:
    """Load rows of a batch until none is left."""
    work.begin(job)
    while (row := next(job.rows)) < len(job):
        try:
            work.load(job, row)
        except CorruptShardError as error:
            job.bad[row] = error


class PrefetchLoader(ABC, Generic[JobT]):
    """Batches of one split, made ahead on threads; see `unetfast.loader.batch.Loader`.

    Args:
        stream: the order of samples, and where it goes on.
        config: on_bad.
        work: loads the rows.
        num_threads: worker threads.
        num_ahead: batches in the making while one is used.
    """

    backend: str

    def __init__(
        self, stream: SampleStream, config: LoaderConfig, work: RowLoader[JobT], *, num_threads: int, num_ahead: int
    ) -> None:
        self._stream = stream
        self._skip = config.on_bad == "skip"
        self._work = work
        self._num_threads = num_threads
        self._num_ahead = num_ahead
        self._jobs: deque[JobT] = deque()
        self._planned = 0  # position behind the last batch in the making
        self._resumed = False
        self._is_dropping = False
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(num_threads, thread_name_prefix="unetfast-loader")

    @abstractmethod
    def _open_job(self, plan: BatchPlan) -> JobT | None:
        """Begin a job; None where there is no memory for one now."""

    @abstractmethod
    def _complete(self, job: JobT) -> None:
        """Wait until a loaded batch can be handed out; what is found bad only now goes to `job.bad`."""

    @abstractmethod
    def _hand_out(self, job: JobT) -> tuple[Tensor, Tensor]:
        """Return image_NCHW and mask_NHW of a completed, not empty batch."""

    @abstractmethod
    def _give_up(self, jobs: list[JobT]) -> None:
        """Take back the memory of jobs that will not be handed out; their threads have left them. May be told twice."""

    def _go_ahead(self) -> None:
        """Push on batches in the making, without waiting; called when one is about to be handed out."""

    @property
    def facts(self) -> str:
        """What it keeps in memory for later, and what it has to do without, for people; "" where there is nothing to say."""
        return ""

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
        if self._pool is not None:
            for job in self._jobs:
                job.rows = itertools.repeat(len(job))
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
            self._jobs.clear()

    def _next(self) -> Batch | None:
        job = self._finish_job()
        if job is None:
            self._stream.finish()
            return None
        before = self._stream.position
        try:
            self._submit_jobs(self._num_ahead + 1)
            self._go_ahead()
            tensors = self._hand_out(job) if len(job) else None
            self._jobs.popleft()
            self._stream.advance(job.plan)
        except BaseException:  # a batch that nobody gets does not count, also when a key stops the loop just here
            self._stream.position = before
            self._drop_jobs()
            raise
        if tensors is None:  # the last batch of a pass was too small for all ranks
            self._give_up([job])
            return self._next()
        return Batch(*tensors, job.plan.places.sample_ids.copy())

    def _finish_job(self) -> JobT | None:
        """Wait for the next batch, which stays the first; None behind the last.

        Bad samples raise, or the batches are planned anew without them.
        """
        try:
            while True:
                self._submit_jobs(self._num_ahead + 1)
                if not self._jobs:
                    if self._stream.plan(self._planned) is not None:
                        raise RuntimeError("the loader has no memory left for a batch")
                    return None
                job = self._jobs[0]
                for future in job.futures:
                    future.result()
                if len(job) and not job.bad:
                    self._complete(job)
                if not job.bad:
                    return job
                self._drop_jobs()
                for row in sorted(job.bad):
                    if not self._skip:
                        raise job.bad[row]
                    self._stream.leave_out(int(job.plan.places.sample_ids[row]), job.bad[row])
        except BaseException:
            self._drop_jobs()
            raise

    def _submit_jobs(self, num_jobs: int) -> None:
        """Have `num_jobs` batches in the making, as far as the stream goes."""
        if self._pool is None:
            raise UserError("this loader is closed; build another with build_loader")
        if self._is_dropping:  # it was broken off
            self._drop_jobs()
        if not self._jobs:
            self._planned = self._stream.position
        while len(self._jobs) < num_jobs:
            plan = self._stream.plan(self._planned)
            job = None if plan is None else self._open_job(plan)
            if plan is None or job is None:
                return
            self._planned = plan.end
            self._jobs.append(job)
            for _ in range(min(self._num_threads, len(job))):
                job.futures.append(self._pool.submit(_run, self._work, job))

    def _drop_jobs(self) -> None:
        """Give up all batches in the making; goes on where it was broken off."""
        self._is_dropping = True
        for job in self._jobs:
            job.rows = itertools.repeat(len(job))
        for job in self._jobs:
            wait(job.futures)
        self._give_up(list(self._jobs))
        self._jobs.clear()
        self._is_dropping = False
