"""SIGINT and SIGTERM ask a run to stop; the loop saves first. A second signal kills at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}  # 128 + number, as shells count


class StoppedError(Exception):
    """Raised between batches of a validation pass when a stop was asked for: the pass is thrown away and done again."""


@dataclass(slots=True)
class StopRequest:
    """Whether a stop was asked for.

    Args:
        number: of the signal; 0 while none came.
    """

    number: int = 0

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name if self.number else ""

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[signal.Signals(self.number)] if self.number else 0


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a flag; the second has its usual, deadly effect.

    Outside the main thread Python takes no handlers: the flag then never rises, and signals go where they went before.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def note(number: int, _frame: FrameType | None) -> None:
        if stop.number:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        stop.number = number

    former = {number: signal.signal(number, note) for number in EXIT_CODES}
    try:
        yield stop
    finally:
        for number, handler in former.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
