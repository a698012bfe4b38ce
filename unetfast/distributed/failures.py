"""How several processes end together when one of them fails, and which one says so.

A process that fails leaves a note at the meeting point (the key-value store of torchrun, or of rank 0) before it ends. The
others notice when they next wait for it: gloo tells at once that a connection is closed; a process that hangs, or a machine
that is gone, is given up after the time limit. They look whether there is a note. Where there is none, the processes that left
nothing at all are the ones that died, and one of the living names them.

Of several processes with the same message one speaks.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING

import torch.distributed as dist

from unetfast.errors import RankError, ToldError, UserError, say_briefly

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

GRACE_S = 5.0  # in which every living process notices that another one is gone
SETTLE_S = 0.5  # in which processes that fail alike leave their notes
STUCK_S = 30.0  # after which a process that cannot end is ended
# how a lost peer shows: gloo and the store raise a plain RuntimeError
_LOST_WORDS = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "timeout", "broken pipe", "store")


class Witness:
    """Keeps notes of who failed, and decides who speaks.

    Args:
        store: the meeting point; keys of this program alone.
        rank: of this process.
        size: number of processes.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self._store = store
        self._rank = rank
        self._size = size
        self._who = [""] * size

    def introduce(self, who: list[str]) -> None:
        """Take the processes' machines and numbers, for messages."""
        self._who = who

    def tell(self, error: BaseException) -> BaseException:
        """Turn a failure into what this process shall end with; waits some seconds at most.

        Returns:
            `error` itself where this process fails alone with something that is no mistake of the user (its traceback is then
            seen); a RankError for this process to say; or a ToldError where another one speaks.
        """
        if isinstance(error, KeyboardInterrupt | RankError | ToldError):
            return error
        _ignore_stop_signals()  # torchrun stops the others at once, which must not cut the message off
        try:
            self._store.set_timeout(timedelta(seconds=GRACE_S))
            return self._report_loss(error) if is_lost_contact(error) else self._report_own(error)
        except (dist.DistError, RuntimeError):
            if not is_lost_contact(error):
                return error
            return RankError(f"{self._name(0)} no longer answers, and the meeting point is gone with it; {_ADVICE}")

    def _report_own(self, error: BaseException) -> BaseException:
        message = str(error) or type(error).__name__
        same = f"said/{hashlib.sha256(message.encode()).hexdigest()}"
        num_before = self._store.add(same, 1) - 1
        self._store.set(f"failed/{self._rank}", message)
        if num_before:
            return ToldError("another process says it")
        if not isinstance(error, UserError):
            error.add_note(f"in {self._name(self._rank)}")
            return error
        time.sleep(SETTLE_S)
        # the main process does for all what one can do, such as looking into the run folder
        is_of_all = self._rank == 0 or self._store.add(same, 0) == self._size
        return RankError(message if is_of_all else f"{self._name(self._rank)}: {message}")

    def _report_loss(self, error: BaseException) -> BaseException:
        self._store.set(f"lost/{self._rank}", "")
        end_s = time.monotonic() + GRACE_S
        silent = [rank for rank in range(self._size) if rank != self._rank]
        while silent and time.monotonic() < end_s:
            if any(self._store.check([f"failed/{rank}"]) for rank in range(self._size)):
                return ToldError("the process that failed says it")
            silent = [rank for rank in silent if not self._store.check([f"lost/{rank}"])]
            time.sleep(0.1)
        if self._store.add("said/lost", 1) > 1:
            return ToldError("another process says it")
        if silent:
            names = " and ".join(self._name(rank) for rank in silent)
            return RankError(f"{names} no longer answer{'s' * (len(silent) == 1)}: killed, crashed or stuck; {_ADVICE}")
        reason = say_briefly(error)
        return RankError(f"the processes have lost contact with each other ({reason}); {_ADVICE}")

    def _name(self, rank: int) -> str:
        who = f" ({self._who[rank]})" if self._who[rank] else ""
        return f"rank {rank} of {self._size}{who}"


_ADVICE = "all others end too. To go on from the last checkpoint: the same command with --resume"


def is_lost_contact(error: BaseException) -> bool:
    """Say whether an error is the loss of another process rather than this one's own."""
    if isinstance(error, UserError):
        return False
    if isinstance(error, dist.DistError):
        return True
    return type(error) is RuntimeError and any(word in str(error).lower() for word in _LOST_WORDS)


def _ignore_stop_signals() -> None:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def end_if_stuck(message: str) -> None:
    """End this process some time from now, if it has not ended by itself: a kernel that waits for a dead peer never does.

    Args:
        message: said then; empty says nothing.
    """

    def end() -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"error: {message}\n" if message else "")
            sys.stderr.flush()
        os._exit(2)

    timer = threading.Timer(STUCK_S, end)
    timer.daemon = True
    timer.start()
