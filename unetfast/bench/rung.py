"""A rung of `unetfast bench`: one stage of the way from bytes to trained images, measured in rounds.

Rungs take turns round by round, so that a machine which gets slower hits all of them alike. Every rung does the same work in
each of its rounds; how much that is, it settles in its warm-up, which is not counted.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from unetfast.bench.harness import spread, take_turns
from unetfast.hostmemory import read_status_bytes, release_freed_memory, reset_peak

if TYPE_CHECKING:
    import torch

MIN_ROUND_STEPS = 3  # a round of fewer steps is no figure, however long they take
_STAT = Path("/proc/stat")
_REST_S, _LONGEST_UNREST_S = 0.02, 3.0  # without work for so long is at rest; what never is, is not waited for longer


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of a rung did.

    Args:
        num_images: images that went through.
        wall_s: seconds they took.
        core_s: processor seconds of the whole process (and of its workers, where the rung has some) meanwhile.
        figures: what else is told of each round, by name with its unit at the end: data_wait_pct, mib_per_s, ...
    """

    num_images: int
    wall_s: float
    core_s: float
    figures: Mapping[str, float] = field(default_factory=dict)


class Rung(Protocol):
    """What can be measured in rounds."""

    name: str

    def warm_up(self, seconds: float) -> None:
        """Bring the rung to its steady state (compile, fill queues), and settle how much work a round of `seconds` is."""
        ...

    def run_round(self) -> Round:
        """Do a round's work, to its end: where a GPU has part in it, wait for it."""
        ...

    def describe(self) -> dict[str, Any]:
        """Tell what the figures depend on (steps a round, batch, sizes, ...), after the last round; plain JSON."""
        ...


@dataclass(frozen=True, slots=True)
class RungResult:
    """Figures of one rung.

    Args:
        name: read, loader, model, train or shard.
        images_per_s: as `harness.spread` of the rounds.
        core_s_per_image: likewise, seconds.
        host_peak_mib: most resident memory of the whole process in one of the rung's rounds, MiB; what the other rungs of this
            run hold (a model, a queue of batches) is in it, what they have freed and the memory of worker processes is not.
        device_peak_mib: most memory that torch's tensors took on the GPU in one of its rounds, MiB; None without a GPU.
        facts: what the rung tells of itself, and the spread of each further figure of its rounds; plain JSON.
    """

    name: str
    images_per_s: dict[str, Any]
    core_s_per_image: dict[str, Any]
    host_peak_mib: float
    device_peak_mib: float | None
    facts: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Peaks:
    """The most memory that was in use since the last reset, of this process and of one GPU.

    Args:
        device: whose memory is watched; None or a CPU: none.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._device = device if device is not None and device.type == "cuda" else None
        self.host_mib = 0.0
        self.device_mib: float | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Around a round: afterwards `host_mib` and `device_mib` hold the greatest peak of all rounds so far.

        What was freed before goes back to the system first: a run on a CPU keeps it (`keep_freed_memory`), and it would count
        in every later round.
        """
        release_freed_memory()
        reset_peak()
        if self._device is not None:
            import torch

            torch.cuda.reset_peak_memory_stats(self._device)
        yield
        self.host_mib = max(self.host_mib, read_host_peak_mib())
        if self._device is not None:
            import torch

            self.device_mib = max(self.device_mib or 0.0, torch.cuda.max_memory_allocated(self._device) / 2**20)


def read_host_peak_mib(process: int | None = None) -> float:
    """Read the most resident memory of a process since the last reset, MiB; 0 where the system does not say.

    Args:
        process: its id; None: this one.
    """
    return read_status_bytes("VmHWM", process) / 2**20


class Stopwatch:
    """Wall time, and processor time of this process and of the children it has waited for, since it was made."""

    def __init__(self) -> None:
        self._began_s, self._cpu_began_s = time.perf_counter(), _processor_s()

    def read(self) -> tuple[float, float]:
        """Return wall seconds and processor seconds."""
        return time.perf_counter() - self._began_s, _processor_s() - self._cpu_began_s


class OtherWork:
    """What other programs did on the cores that this process may use, since it was made."""

    def __init__(self) -> None:
        self._watch, self._busy_began_s = Stopwatch(), _read_busy_s()

    def read(self) -> float | None:
        """Return how many cores they kept busy in the mean; None where the system does not tell (Linux does)."""
        wall_s, core_s = self._watch.read()
        busy_s = _read_busy_s()
        if busy_s is None or self._busy_began_s is None:
            return None
        return max(0.0, busy_s - self._busy_began_s - core_s) / wall_s


def _read_busy_s() -> float | None:
    """Sum up the seconds that the cores of this process have been busy since the system began, for whomever."""
    cores = {f"cpu{core}" for core in os.sched_getaffinity(0)} if hasattr(os, "sched_getaffinity") else set()
    try:
        lines = [line.split() for line in _STAT.read_text().splitlines()]
    except OSError:
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal
    ticks = [sum(map(int, words[1:4])) + sum(map(int, words[6:9])) for words in lines if words and words[0] in cores]
    return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else None


def _processor_s() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def wait_for_rest() -> None:
    """Wait until this process stands still: what a loader's threads make ahead would else be done in the next one's time."""
    end_s, before_s = time.perf_counter() + _LONGEST_UNREST_S, time.process_time()
    while time.perf_counter() < end_s:
        time.sleep(_REST_S)
        now_s = time.process_time()
        if now_s - before_s < 0.1 * _REST_S:
            return
        before_s = now_s


def steps_of(seconds: float, step_s: float) -> int:
    """Say how many steps of `step_s` seconds make a round of about `seconds`."""
    return max(MIN_ROUND_STEPS, round(seconds / max(step_s, 1e-9)))


def measure_rungs(
    rungs: Mapping[str, Rung],
    *,
    rounds: int,
    seconds: float,
    device: torch.device | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, RungResult]:
    """Warm up all rungs, one after another, then let them take turns.

    Args:
        rungs: by name, in the order in which they are warmed up.
        rounds: of each.
        seconds: of a round, about.
        device: the GPU whose memory is told; None or a CPU: none is.
        tell: called before each warm-up and each round, with words for people.
    """
    for name, rung in rungs.items():
        tell(f"{name}: warm-up")
        rung.warm_up(seconds)
    peaks = {name: Peaks(device) for name in rungs}

    def turn(name: str) -> Round:
        tell(name)
        wait_for_rest()
        with peaks[name].watching():
            return rungs[name].run_round()

    turns = take_turns({name: partial(turn, name) for name in rungs}, rounds)
    return {name: sum_up(rung, turns[name], peaks[name]) for name, rung in rungs.items()}


def sum_up(rung: Rung, rounds: list[Round], peaks: Peaks) -> RungResult:
    """Turn the rounds of a rung into its figures."""
    further = {name: spread([one.figures[name] for one in rounds]) for name in rounds[0].figures}
    return RungResult(
        name=rung.name,
        images_per_s=spread([one.num_images / one.wall_s for one in rounds]),
        core_s_per_image=spread([one.core_s / one.num_images for one in rounds]),
        host_peak_mib=round(peaks.host_mib, 1),
        device_peak_mib=None if peaks.device_mib is None else round(peaks.device_mib, 1),
        facts={**rung.describe(), **further},
    )
