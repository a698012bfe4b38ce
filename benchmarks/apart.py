"""A function in a process of its own: a crash, a hang or a library that does not load is a line in the record, not its end."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from unetfast.bench.harness import SideError
from unetfast.errors import UserError


class Apart:
    """Begins `function(argument)` in a fresh process; both must be importable and picklable there.

    Args:
        function: of a module on the path.
        argument: its only one.
    """

    def __init__(self, function: Callable[[Any], Any], argument: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_serve, args=(theirs, function, argument), daemon=True)
        self._process.start()
        theirs.close()

    def result(self, timeout_s: float) -> Any:
        """Wait for what the function returns.

        Raises:
            SideError: it raised, died or took longer than `timeout_s` from now; says which, in one line.
        """
        try:
            if not self._pipe.poll(timeout_s):
                self._process.kill()
                raise SideError(f"no answer within {timeout_s:.0f} s")
            worked, content = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(timeout=5)
            raise SideError(describe_death(self._process.exitcode)) from None
        finally:
            self._pipe.close()
            self._process.join(timeout=5)
            if self._process.is_alive():
                self._process.kill()  # it gave its answer and hangs in its ending
        if not worked:
            raise SideError(content)
        return content


def describe_death(exit_code: int | None) -> str:
    """Say how a process ended that gave no answer."""
    if exit_code is not None and exit_code < 0:
        return f"its process died of {signal.Signals(-exit_code).name}"
    return f"its process died (exit code {exit_code})"


def one_line(error: BaseException) -> str:
    """Write an error as its kind and at most 500 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"


def _serve(pipe: Connection, function: Callable[[Any], Any], argument: Any) -> None:
    try:
        answer = (True, function(argument))
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        answer = (False, one_line(error))
    pipe.send(answer)
