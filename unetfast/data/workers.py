"""Workers for the packer: each takes one task after the other, and none outlives its parent.

A small pool of our own rather than `concurrent.futures`: tasks report progress from within, a worker that is killed (no
memory left) ends in a clear error, and workers notice a parent that was killed with SIGKILL. All are processes but one: a
thread here works from the first moment on, while the others import what they need.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol, TypeVar

import cv2

from unetfast.errors import UserError
from unetfast.hostmemory import keep_freed_memory, release_freed_memory

Task = TypeVar("Task")
Result = TypeVar("Result")
Task_contra = TypeVar("Task_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)

_REPORT_EVERY_S = 0.1
_JOIN_S = 5.0


class Work(Protocol[Task_contra, Result_co]):
    """What is done with a task. Picklable; `report` takes the number of samples done since the last call."""

    def __call__(self, task: Task_contra, report: Callable[[int], None], /) -> Result_co: ...


def count_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(
    tasks: list[Task], work: Work[Task, Result], *, num_workers: int, report: Callable[[int], None]
) -> Iterator[Result]:
    """Do all tasks, and yield each result when it is there; their order is not that of the tasks.

    Args:
        tasks: picklable.
        work: what to do with one.
        num_workers: a thread of this process and processes beside it; with 1, or with one task, there is neither. OpenCV uses
            one thread a call meanwhile, in all of them, and memory that one task frees is kept for the next.
        report: takes the number of samples done since the last call; the work ends with what it raises.

    Raises:
        UserError: whatever the work raises, or a worker died.
        RuntimeError: a bug in the work; carries the worker's traceback.
    """
    num_workers = min(num_workers, len(tasks))
    former_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    keep_freed_memory()
    pool: list[_Worker | _ThreadWorker] = []
    try:
        if num_workers <= 1:
            for task in tasks:
                yield work(task, report)
            return
        for _ in range(num_workers - 1):
            pool.append(_Worker(work))  # one by one: those that are there are stopped where the next cannot be made
        pool.insert(0, _ThreadWorker(work))  # first to get a task: a process takes a large one when it has imported all
        yield from _serve_pool(pool, tasks, report)
    finally:
        for worker in reversed(pool):
            worker.stop()
        cv2.setNumThreads(former_threads)
        release_freed_memory()


class _Worker:
    """One process and the pipe to it.

    It is a Python of its own that imports this module alone; multiprocessing's would import the calling script again, and with
    it all that the script imports.
    """

    def __init__(self, work: Work[Any, Any]) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self._work: Work[Any, Any] | None = work
        self.busy = False
        with theirs:
            try:
                self.process = _start_python(theirs.fileno())
            except OSError as error:
                self.pipe.close()
                raise UserError(
                    f"a worker process cannot be started ({error.strerror or error}): use fewer --workers"
                ) from None

    def give(self, task: Any) -> None:
        self.busy = True
        if self._work is not None:
            self._send(self._work)
            self._work = None
        self._send(task)

    def _send(self, value: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it died; taking its answer says so
            self.pipe.send(value)

    def take(self) -> tuple[str, Any]:
        try:
            kind, value = self.pipe.recv()
        except (EOFError, OSError):  # the latter where it died amid a message
            code = self._wait()
            why = "perhaps for want of memory: use fewer --workers" if code and code < 0 else "it says above why"
            raise UserError(
                f"a worker process ended (exit code {code}), {why}\n  what is packed so far is kept: repeat the command"
            ) from None
        return kind, value

    def stop(self) -> None:
        self.process.terminate()
        if self._wait() is None:
            self.process.kill()
            self.process.wait()
        self.pipe.close()

    def _wait(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_JOIN_S)
        return self.process.returncode


def _start_python(place: int) -> subprocess.Popen[bytes]:
    """Start a Python with this one's flags and module path that serves at descriptor `place`."""
    paths = [str(entry) for entry in sys.path if isinstance(entry, str)]  # imports pass over all else
    code = (
        f"import sys; sys.path[:] = {paths!a}; "  # first, so that nothing is imported from the current folder
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "  # Ctrl-C reaches the whole group; the parent decides
        f"from unetfast.data.workers import serve; serve({place})"
    )
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as multiprocessing does
    return subprocess.Popen([sys.executable, *flags, "-c", code], pass_fds=[place], stdin=subprocess.DEVNULL)


class _ThreadWorker:
    """One thread of this process; it is spoken to as a process is."""

    def __init__(self, work: Work[Any, Any]) -> None:
        self.pipe, theirs = multiprocessing.Pipe()
        self._is_stopped = threading.Event()
        self._why_it_ended = "it ended without a word"
        self._thread = threading.Thread(target=self._serve, args=(theirs, work), name="unetfast-pack", daemon=True)
        self._thread.start()
        self.busy = False

    def give(self, task: Any) -> None:
        self.busy = True
        self.pipe.send(task)

    def take(self) -> tuple[str, Any]:
        try:
            kind, value = self.pipe.recv()
        except EOFError:
            self._thread.join(_JOIN_S)
            raise RuntimeError(f"in a worker thread:\n{self._why_it_ended}") from None
        return kind, value

    def stop(self) -> None:
        """End the thread; a task in its hands is broken off behind the sample it is at."""
        self._is_stopped.set()
        self.pipe.close()
        self._thread.join()

    def _serve(self, pipe: Connection, work: Work[Any, Any]) -> None:
        with pipe:
            try:
                while True:
                    _do_task(pipe, work, self._is_stopped)
            except (EOFError, OSError, _Stopped):
                pass
            except BaseException:  # the thread's own end is nobody's business but the caller's, who finds the pipe closed
                self._why_it_ended = traceback.format_exc()


class _Stopped(BaseException):
    """Breaks off the work of a thread; nobody is told of it."""


def _serve_pool(pool: list[_Worker | _ThreadWorker], tasks: list[Any], report: Callable[[int], None]) -> Iterator[Any]:
    waiting = list(reversed(tasks))
    for worker in pool:
        worker.give(waiting.pop())
    while any(worker.busy for worker in pool):
        ready = wait([worker.pipe for worker in pool if worker.busy])
        for worker in pool:
            if worker.pipe not in ready:
                continue
            kind, value = worker.take()
            if kind == "progress":
                report(value)
                continue
            worker.busy = False
            if kind == "error":
                raise value
            if kind == "bug":
                raise RuntimeError(f"in a worker:\n{value}")
            if waiting:
                worker.give(waiting.pop())
            yield value


def serve(place: int) -> None:
    """Do a parent's work until it ends this process; the body of a worker process.

    Args:
        place: descriptor of the pipe to the parent, which sends the work, then one task after the other.
    """
    threading.Thread(target=_die_with_parent, args=(place,), daemon=True).start()
    pipe = Connection(place)
    work = pipe.recv()
    cv2.setNumThreads(1)
    keep_freed_memory()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # as in the command line's own process
    while True:
        _do_task(pipe, work)


def _do_task(pipe: Connection, work: Work[Any, Any], is_stopped: threading.Event | None = None) -> None:
    """Take one task from the pipe, do it, and tell how it ended."""
    task = pipe.recv()
    reporter = _Reporter(pipe, is_stopped)
    try:
        answer = ("done", work(task, reporter))
    except UserError as error:
        answer = ("error", error)
    except Exception:
        answer = ("bug", traceback.format_exc())
    reporter.flush()
    try:
        pipe.send(answer)
    except OSError:  # nobody is there to take it
        raise
    except Exception:  # it cannot be pickled, and nothing of it was sent
        pipe.send(("bug", traceback.format_exc()))


class _Reporter:
    """Sends progress up the pipe, a few times a second."""

    def __init__(self, pipe: Connection, is_stopped: threading.Event | None) -> None:
        self._pipe = pipe
        self._is_stopped = is_stopped
        self._count = 0
        self._last = time.monotonic()

    def __call__(self, count: int) -> None:
        if self._is_stopped is not None and self._is_stopped.is_set():
            raise _Stopped
        self._count += count
        if time.monotonic() - self._last >= _REPORT_EVERY_S:
            self.flush()

    def flush(self) -> None:
        if self._count:
            self._pipe.send(("progress", self._count))
        self._count, self._last = 0, time.monotonic()


def _die_with_parent(place: int) -> None:
    """End this process when the other end of its pipe is closed, as it is when the parent was killed."""
    poll = select.poll()
    poll.register(place, 0)  # the end alone is told, no data
    poll.poll()
    os._exit(1)
