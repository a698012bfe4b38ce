"""One side of a loader benchmark in a process of its own.

So processor time and memory of a side are its own, threads of one side never wait behind another's interpreter lock, and a
side that crashes or hangs ends alone: the others go on. The parent says when a round begins; a round's answer comes when the
side is at rest, so between rounds it only holds its prefetched batches. Worker processes of a side count as part of it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from apart import describe_death, one_line

from unetfast.bench.harness import SideError
from unetfast.errors import UserError
from unetfast.hostmemory import read_status_bytes

START_TIMEOUT_S = 90.0
ROUND_TIMEOUT_S = 30.0
_REST_S, _LONGEST_UNREST_S = 0.02, 3.0  # without work for so long is at rest; some sides never are


@dataclass(frozen=True, slots=True)
class BuiltSide:
    """What a side's build function returns.

    Args:
        batches: endless; each a tuple of tensors, image first.
        device: where they are.
        facts: what the record should say of the side; plain JSON.
        close: ends threads and files.
        lead_in: batches that are taken before the clock starts, so that nothing made before the round is counted.
        batches_at_once: that many come at about the same time, one from each worker process; a round holds whole sets of them.
    """

    batches: Iterator[tuple[Any, ...]]
    device: Any
    facts: dict[str, Any]
    close: Callable[[], None]
    lead_in: int
    batches_at_once: int = 1


class SideProcess:
    """Starts a side and talks to it: `start` once the process is made, then `run_round` as often as wanted.

    Making one only begins the process, which imports and takes hold of the device meanwhile: several can be made at once.
    `start` them one after another, so that each one's memory can be told from the others'.

    Args:
        name: of the side, for messages.
        build: function of a module that the child can import; takes `spec`, returns a `BuiltSide`.
        spec: what it gets; must be picklable.
        device: "cpu", "cuda" or "cuda:N".
        start_timeout_s: longest time for imports, and again for `build`.

    Attributes:
        facts: what `build` says of the side.
        error: why it ended; "" while it goes on.
    """

    def __init__(
        self,
        name: str,
        build: Callable[[Any], BuiltSide],
        spec: Any,
        device: str,
        *,
        start_timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        self.name = name
        self._start_timeout_s = start_timeout_s
        self.facts: dict[str, Any] = {}
        self.error = ""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        # no daemon: those may have no worker processes of their own
        self._process = context.Process(target=_serve, args=(theirs, build, spec, device), name=f"side {name}")
        self._process.start()
        theirs.close()
        self._end = weakref.finalize(self, _end_process, self._process, self._pipe)

    def start(self, warmup_s: float) -> dict[str, Any]:
        """Build the side and run a first round, which is not a figure: it returns what `run_round` does.

        Raises:
            SideError: it failed, died or took too long; `error` says which.
        """
        self._receive(self._start_timeout_s)
        self._send("build")
        self.facts = self._receive(self._start_timeout_s)
        return self.run_round(warmup_s)

    def run_round(self, seconds: float) -> dict[str, Any]:
        """Run one round of about `seconds`; returns what `_run_round` describes.

        Raises:
            SideError: as `start`.
        """
        self._send(seconds)
        return self._receive(ROUND_TIMEOUT_S + 5 * seconds)

    def ask_to_end(self) -> None:
        """Tell the process to end, and do not wait for it."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)

    def close(self) -> None:
        """End the process; one that does not follow is killed."""
        self._end()

    def _send(self, message: Any) -> None:
        try:
            self._pipe.send(message)
        except OSError:
            self._fail(describe_death(self._process.exitcode))

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        try:
            if not self._pipe.poll(timeout_s):
                self._process.kill()
                self._fail(f"no answer within {timeout_s:.0f} s")
            kind, content = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(timeout=5)
            self._fail(describe_death(self._process.exitcode))
        if kind == "error":
            self._fail(content)
        result: dict[str, Any] = content
        return result

    def _fail(self, reason: str) -> None:
        self.error = reason
        raise SideError(f"{self.name}: {reason}")


def _end_process(process: SpawnProcess, pipe: Connection) -> None:
    with contextlib.suppress(OSError):
        pipe.send(None)
    process.join(timeout=10)
    if process.is_alive():
        process.kill()
        process.join()
    pipe.close()


@dataclass(slots=True)
class Taken:
    """Batches taken in a row.

    Args:
        num_images: in them.
        wall_s: that it took.
        cpu_s: processor time of this process and its worker processes meanwhile.
        waits_s: for each batch.
    """

    num_images: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    waits_s: list[float] = field(default_factory=list)


def _serve(pipe: Connection, build: Callable[[Any], BuiltSide], spec: Any, device: str) -> None:
    """Body of a side's process."""
    side = None
    try:
        from device_meter import DeviceMeter

        from unetfast.device import resolve_device

        meter = DeviceMeter(resolve_device(device))
        pipe.send(("prepared", {}))
        pipe.recv()
        meter.start()
        start_mib = read_status_mib("VmRSS")
        side = build(spec)
        pipe.send(("built", {**side.facts, "host_start_mib": start_mib}))
        while (seconds := pipe.recv()) is not None:
            pipe.send(("round", _run_round(side, meter, seconds)))
    except (EOFError, BrokenPipeError):
        pass  # the parent is gone
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        pipe.send(("error", one_line(error)))
    finally:
        if side is not None:
            side.close()


def _run_round(side: BuiltSide, meter: Any, seconds: float) -> dict[str, Any]:
    """Take batches for `seconds`: images_per_s, cpu_s_per_image, cores_used, waits_s for each batch, shares, memory."""
    for _ in range(side.lead_in):
        next(side.batches)
    _synchronize(side.device)
    with meter.sampling():
        took = take_batches(side, seconds)
    wait_for_rest()
    return {
        "images_per_s": took.num_images / took.wall_s,
        "cpu_s_per_image": took.cpu_s / took.num_images,
        "cores_used": took.cpu_s / took.wall_s,
        "waits_s": took.waits_s,
        **meter.read(),
        "no_shares_because": meter.missing,
        **meter.memory(),
        "host_peak_mib": read_status_mib("VmHWM"),
        "workers_peak_mib": round(sum(read_status_mib("VmHWM", child) for child in _worker_pids()), 1),
    }


def take_batches(side: BuiltSide, seconds: float) -> Taken:
    """Take batches for `seconds`, and until those are whole sets of `side.batches_at_once`."""
    took = Taken()
    began_s, cpu_began_s = time.perf_counter(), read_cpu_s()
    last_s = began_s
    while last_s < began_s + seconds or len(took.waits_s) % side.batches_at_once:
        image_NCHW = next(side.batches)[0]
        now_s = time.perf_counter()
        took.waits_s.append(now_s - last_s)
        last_s = now_s
        took.num_images += len(image_NCHW)
    _synchronize(side.device)
    took.wall_s, took.cpu_s = time.perf_counter() - began_s, read_cpu_s() - cpu_began_s
    return took


def read_cpu_s() -> float:
    """Processor time of this process and of its worker processes that live, seconds."""
    return time.process_time() + sum(_read_other_cpu_s(pid) for pid in _worker_pids())


def _worker_pids() -> list[int]:
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def _read_other_cpu_s(pid: int) -> float:
    """Processor time of another process, seconds; 0 where it is gone."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # Linux: the clock of that process, as clock_getcpuclockid(3) names it
    except OSError:
        return 0.0


def wait_for_rest() -> None:
    """Wait until what is prefetched is made: else what comes next would have to share the cores with it."""
    end_s = time.perf_counter() + _LONGEST_UNREST_S
    before_s = read_cpu_s()
    while time.perf_counter() < end_s:
        time.sleep(_REST_S)
        now_s = read_cpu_s()
        if now_s - before_s < 0.1 * _REST_S:
            return
        before_s = now_s


def _synchronize(device: Any) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def read_status_mib(name: str, pid: int | None = None) -> float:
    """Read a memory figure of a process (None: this one), MiB (VmRSS: now, VmHWM: the most so far); 0 where it is gone."""
    return round(read_status_bytes(name, pid) / 2**20, 1)
