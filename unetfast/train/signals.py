"""SIGINT and SIGTERM ask a run to stop; the loop saves first. A second signal kills at once.

With several processes a signal to any of them stops all, behind the same step: they ask each other in every step, and take the
answer of the step before, so that none waits for the question.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from unetfast.distributed import RunningMax, World

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}  # 128 + number, as shells count


class StoppedError(Exception):
    """Raised between batches of a validation pass when a stop was asked for: the pass is thrown away and done again."""


@dataclass(slots=True)
class StopRequest:
    """Whether a stop was asked for.

    Args:
        number: of the signal that came to this process; 0 while none did.
        agreed: of the signal that the run obeys; 0 while it obeys none.
        votes: asks the other processes; None where this one is alone.
    """

    number: int = 0
    agreed: int = 0
    votes: RunningMax | None = None

    def join(self, world: World) -> None:
        """Obey the signals to all processes from now on."""
        self.votes = RunningMax(world) if world.size > 1 else None

    def leave(self) -> None:
        """Ask no more; a signal that comes now finds nothing left to stop."""
        if self.votes is not None:
            self.votes.finish()

    def poll(self) -> bool:
        """Say whether to stop now; with several processes all get the same answer, and all must ask."""
        self.agreed = self.agreed or (self.number if self.votes is None else self.votes.ask(self.number))
        return self.agreed > 0

    @property
    def name(self) -> str:
        number = self.agreed or self.number
        return signal.Signals(number).name if number else ""

    @property
    def exit_code(self) -> int:
        number = self.agreed or self.number
        return EXIT_CODES[signal.Signals(number)] if number else 0


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
