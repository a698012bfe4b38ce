"""Carries rows and pictures to one sink on a thread of its own, so that neither its slowness nor its errors reach training."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unetfast.train.sinks.base import Outcome, Row, Sink

MAX_WAITING = 10_000  # rows and pictures under way; more are left out, and counted
CLOSE_WITHIN_S = 60.0  # a run that has ended waits no longer than this for a sink
REST_S = 30.0  # a sink that failed MAX_FAILURES times in a row is left alone for this long
MAX_FAILURES = 3


@dataclass(frozen=True, slots=True)
class _Item:
    send: Callable[[Sink], None]
    is_end: bool = False


class Carrier:
    """Takes rows and pictures at once, and hands them to a sink in order.

    The first failure is said in one line; how much was not taken is said at the end. The run goes on in any case: the record
    is metrics.jsonl.

    Args:
        sink: the only one that this carrier serves.
        say: prints one line; called from the carrier's thread too.
        close_within_s: longest wait at the end, seconds.
        rest_s: how long a sink that keeps failing is left alone, seconds.
    """

    def __init__(
        self, sink: Sink, say: Callable[[str], None], *, close_within_s: float = CLOSE_WITHIN_S, rest_s: float = REST_S
    ) -> None:
        self._sink = sink
        self._say = say
        self._close_within_s = close_within_s
        self._rest_s = rest_s
        self._items: queue.Queue[_Item] = queue.Queue()
        self._num_given = 0
        self._num_taken = 0
        self._num_in_a_row = 0
        self._rests_until_s = 0.0
        self._said = False
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"unetfast {sink.name}", daemon=True)
        self._thread.start()

    def add_row(self, row: Row) -> None:
        self._put(lambda sink: sink.add_row(row))

    def add_picture(self, name: str, path: Path, step: int) -> None:
        self._put(lambda sink: sink.add_picture(name, path, step))

    def close(self, outcome: Outcome) -> None:
        """Wait until the sink has taken everything, for `close_within_s` at most; say what it has not. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._items.put(_Item(lambda sink: sink.close(outcome), is_end=True))
        self._thread.join(self._close_within_s)
        name, missing = self._sink.name, self._num_given - self._num_taken
        late = f" within {self._close_within_s:g} s" if self._thread.is_alive() else ""
        if missing or late:
            self._say(f"warning: {name} has not taken {missing:,} of {self._num_given:,} rows and pictures{late}; {_RECORD}")

    def _put(self, send: Callable[[Sink], None]) -> None:
        if self._closed:
            raise RuntimeError(f"{self._sink.name} is closed already")
        self._num_given += 1
        if self._items.qsize() < MAX_WAITING:
            self._items.put(_Item(send))

    def _work(self) -> None:
        while True:
            item = self._items.get()
            if item.is_end or time.monotonic() >= self._rests_until_s:
                self._send(item)
            if item.is_end:
                return

    def _send(self, item: _Item) -> None:
        try:
            item.send(self._sink)
        except Exception as error:  # whatever a foreign package raises must not end the run
            self._note_failure(error)
        else:
            self._num_in_a_row = 0
            self._num_taken += not item.is_end

    def _note_failure(self, error: Exception) -> None:
        self._num_in_a_row += 1
        if self._num_in_a_row >= MAX_FAILURES:
            self._rests_until_s = time.monotonic() + self._rest_s
        if not self._said:
            self._said = True
            self._say(f"warning: {self._sink.name} failed ({first_line(error)}); the run goes on, {_RECORD}")


_RECORD = "metrics.jsonl holds every row"


def first_line(error: BaseException) -> str:
    """Write an error's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()[:300]}" if lines else type(error).__name__
