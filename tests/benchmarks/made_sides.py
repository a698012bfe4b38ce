"""Sides without a loader, for tests of the process around them; imported by that process."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from typing import Any

import torch
from side import BuiltSide

from unetfast.errors import UserError


def build_counting(batch_size: int) -> BuiltSide:
    """Give a batch every 2 ms; facts tell the batch size."""

    def batches() -> Iterator[tuple[Any, ...]]:
        for number in itertools.count():
            time.sleep(0.002)
            yield torch.full((batch_size, 3, 4, 4), number % 256, dtype=torch.uint8), None

    return BuiltSide(batches(), torch.device("cpu"), {"batch_size": batch_size}, lambda: None, lead_in=3)


def build_refused(_spec: object) -> BuiltSide:
    raise UserError("no such thing:\n  take another")


def build_dying(_spec: object) -> BuiltSide:
    """Die in the first batch behind the lead-in, as a crash in a library does."""

    def batches() -> Iterator[tuple[Any, ...]]:
        yield (torch.zeros(1),)
        os._exit(7)

    return BuiltSide(batches(), torch.device("cpu"), {}, lambda: None, lead_in=1)


def double(value: int) -> int:
    return 2 * value


def fail(message: str) -> None:
    raise ValueError(message)


def kill_itself(signal: int) -> None:
    os.kill(os.getpid(), signal)


def sleep(seconds: float) -> None:
    time.sleep(seconds)
