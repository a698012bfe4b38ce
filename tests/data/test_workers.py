"""The packer's workers: all tasks are done, wherever; what one raises is raised here; a thread can be broken off."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

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


def tell_flag(task: int, report: Callable[[int], None]) -> object:
    return sys._xoptions.get("utf8")


def die_amid_message(parent: int, report: Any) -> None:
    """Send the start of a long message, then die as for want of memory; the parent's own thread does nothing."""
    if os.getpid() != parent:
        os.write(report._pipe.fileno(), struct.pack("!i", 1_000_000) + b"start")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_while_it_sends_is_a_clear_error() -> None:
    with pytest.raises(UserError, match=r"a worker process ended \(exit code -9\), perhaps for want of memory"):
        list(run_tasks([os.getpid()] * 2, die_amid_message, num_workers=2, report=lambda _: None))


def test_the_thread_gets_the_first_task() -> None:
    assert dict(run_tasks([1, 2], square, num_workers=2, report=lambda _: None))[1] == os.getpid()


def test_flags_and_module_path_reach_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys._xoptions, "utf8", "0")
    monkeypatch.setattr(sys, "path", [*sys.path, Path("/no/text"), "/no/\u00e4\udcff"])
    assert list(run_tasks([1, 2], tell_flag, num_workers=2, report=lambda _: None)) == ["0", "0"]


def test_an_interrupt_while_a_process_imports_is_the_parents_business(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cv2.py").write_text(
        "import os, signal, sys\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        f"sys.path.remove({str(tmp_path)!r})\n"
        "del sys.modules['cv2']\n"
        "import cv2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert len(list(run_tasks([1, 2], square, num_workers=2, report=lambda _: None))) == 2
    assert capfd.readouterr().err == ""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Processes that were started since."""
    processes: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def note(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        processes.append(start(*args, **options))
        return processes[-1]

    monkeypatch.setattr(subprocess, "Popen", note)
    return processes


def test_where_one_process_cannot_be_started_the_others_are_stopped(
    started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    start, make_pipe = subprocess.Popen, multiprocessing.Pipe
    pipes: list[Connection] = []

    def start_one(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        if started:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return start(*args, **options)

    def note_pipe() -> tuple[Connection, Connection]:
        pair = make_pipe()
        pipes.extend(pair)
        return pair

    monkeypatch.setattr(subprocess, "Popen", start_one)
    monkeypatch.setattr(multiprocessing, "Pipe", note_pipe)
    with pytest.raises(UserError, match=r"cannot be started \(Resource temporarily unavailable\): use fewer --workers"):
        list(run_tasks([1, 2, 3], square, num_workers=3, report=lambda _: None))
    assert [process.returncode for process in started] == [-signal.SIGTERM]
    assert len(pipes) == 4
    assert all(pipe.closed for pipe in pipes)


def test_work_that_cannot_be_pickled_leaves_no_process(started: list[subprocess.Popen[bytes]]) -> None:
    with pytest.raises((AttributeError, pickle.PicklingError), match="<lambda>"):
        list(run_tasks([1, 2], lambda task, report: task, num_workers=2, report=lambda _: None))
    assert [process.returncode for process in started] == [-signal.SIGTERM]
