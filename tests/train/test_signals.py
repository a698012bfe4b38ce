"""A stop is a flag first, and deadly the second time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from unetfast.train.signals import catch_stop_signals

SECOND_SIGNAL = """
import os, signal, sys, time
from unetfast.train.signals import catch_stop_signals
number = int(sys.argv[1])
with catch_stop_signals() as stop:
    os.kill(os.getpid(), number)
    print("alive", stop.name, flush=True)
    os.kill(os.getpid(), number)
    time.sleep(60)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_first_signal_is_a_flag(number: signal.Signals, code: int) -> None:
    former = signal.getsignal(number)
    with catch_stop_signals() as stop:
        assert (stop.number, stop.name, stop.exit_code) == (0, "", 0)
        os.kill(os.getpid(), number)
        assert (stop.number, stop.name, stop.exit_code) == (number, number.name, code)
    assert signal.getsignal(number) is former


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_kills(number: signal.Signals) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SECOND_SIGNAL, str(int(number))], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == f"alive {number.name}\n"
    assert done.returncode == -number


def test_other_threads_leave_handlers_alone() -> None:
    former = signal.getsignal(signal.SIGINT)
    seen = []

    def work() -> None:
        with catch_stop_signals() as stop:
            seen.append((stop.number, signal.getsignal(signal.SIGINT) is former))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(0, True)]
