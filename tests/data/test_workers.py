"""The packer's workers: all tasks are done, wherever; what one raises is raised here; a thread can be broken off."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import cv2
import pytest

from unetfast.data.workers import _ThreadWorker, run_tasks
from unetfast.errors import UserError

_LIMIT_S = 60.0  # what takes longer than that does not come


def square(task: int, report: Callable[[int], None]) -> tuple[int, int]:
    report(task)
    if task == 13:
        raise UserError("thirteen")
    if task == 14:
        raise KeyError("fourteen")
    return task * task, os.getpid()


def fail_oddly(task: int, report: Callable[[int], None]) -> object:
    if task == 1:
        return lambda: None  # cannot be pickled
    raise SystemExit("odd")


def test_a_thread_here_and_a_process_share_the_tasks() -> None:
    counts: list[int] = []
    threads = cv2.getNumThreads()
    results = list(run_tasks(list(range(12)), square, num_workers=2, report=counts.append))
    assert sorted(number for number, _ in results) == [task * task for task in range(12)]
    assert sum(counts) == sum(range(12))
    assert len({process for _, process in results}) == 2
    assert os.getpid() in {process for _, process in results}
    assert cv2.getNumThreads() == threads
    assert not [thread for thread in threading.enumerate() if thread.name == "unetfast-pack"]


def test_what_a_thread_raises_is_raised_here() -> None:
    for task, kind, value in ((13, "error", "thirteen"), (14, "bug", "KeyError: 'fourteen'")):
        worker = _ThreadWorker(square)
        worker.give(task)
        told = dict([worker.take(), worker.take()])
        worker.stop()
        assert told["progress"] == task
        assert value in str(told[kind])


def test_a_thread_is_broken_off_behind_the_sample_it_is_at() -> None:
    begun = threading.Event()

    def endless(task: int, report: Callable[[int], None]) -> None:
        begun.set()
        while True:
            report(task)

    worker = _ThreadWorker(endless)
    worker.give(0)
    assert begun.wait(_LIMIT_S)
    stopping = threading.Thread(
        target=worker.stop, daemon=True
    )  # it waits for the worker's end, the test for no longer than this
    stopping.start()
    stopping.join(_LIMIT_S)
    assert not stopping.is_alive()


@pytest.mark.parametrize("task", [13, 14])
def test_one_worker_is_this_very_thread(task: int) -> None:
    def run() -> Iterator[tuple[int, int]]:
        return run_tasks([1, task], square, num_workers=1, report=lambda _: None)

    results = run()
    assert next(results) == (1, os.getpid())
    with pytest.raises((UserError, KeyError), match="teen"):
        next(results)


def test_a_result_that_cannot_be_pickled_is_a_bug_and_no_silence() -> None:
    worker = _ThreadWorker(fail_oddly)
    worker.give(1)
    kind, value = worker.take()
    worker.stop()
    assert kind == "bug"
    assert "pickle" in value


def test_a_thread_that_dies_says_why() -> None:
    worker = _ThreadWorker(fail_oddly)
    worker.give(2)
    with pytest.raises(RuntimeError, match=r"in a worker thread:[\s\S]*SystemExit: odd"):
        worker.take()
    worker.stop()
