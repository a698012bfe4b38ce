"""Rounds of rungs: turns, sums, peaks of memory, processor time of workers."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unetfast.bench import rung
from unetfast.bench.rung import (
    MIN_ROUND_STEPS,
    OtherWork,
    Peaks,
    Round,
    Stopwatch,
    measure_rungs,
    steps_of,
    sum_up,
    wait_for_rest,
)


@dataclass
class MadeRung:
    """Notes when it is called, and tells rounds that were made before."""

    name: str
    rounds: list[Round]
    calls: list[str]
    facts: dict[str, Any] = field(default_factory=dict)

    def warm_up(self, seconds: float) -> None:
        self.calls.append(f"warm {self.name} {seconds}")

    def run_round(self) -> Round:
        self.calls.append(self.name)
        return self.rounds.pop(0)

    def describe(self) -> dict[str, Any]:
        return self.facts


def test_rungs_warm_up_first_and_then_take_turns() -> None:
    calls: list[str] = []
    rungs = {name: MadeRung(name, [Round(10, 1.0, 2.0)] * 2, calls) for name in ("a", "b")}
    told: list[str] = []
    measure_rungs(rungs, rounds=2, seconds=0.5, tell=told.append)
    assert calls == ["warm a 0.5", "warm b 0.5", "a", "b", "b", "a"]
    assert told == ["a: warm-up", "b: warm-up", "a", "b", "b", "a"]


def test_rounds_are_summed_up_as_medians_with_their_range() -> None:
    rounds = [
        Round(100, 1.0, 2.0, {"wait_pct": 5.0}),
        Round(100, 2.0, 2.0, {"wait_pct": 1.0}),
        Round(200, 1.0, 1.0, {"wait_pct": 3.0}),
    ]
    result = sum_up(MadeRung("made", [], [], {"steps": 7}), rounds, Peaks())
    assert result.images_per_s == {"median": 100.0, "min": 50.0, "max": 200.0, "rounds": [100.0, 50.0, 200.0]}
    assert result.core_s_per_image["rounds"] == [0.02, 0.02, 0.005]
    assert result.facts["steps"] == 7
    assert result.facts["wait_pct"]["median"] == 3.0
    assert result.device_peak_mib is None
    assert result.to_json()["name"] == "made"


def test_a_round_has_as_many_steps_as_fit_and_never_too_few() -> None:
    assert steps_of(2.0, 0.1) == 20
    assert steps_of(2.0, 5.0) == MIN_ROUND_STEPS
    assert steps_of(1.0, 0.0) > 1000


TRIES_PEAKS = """
import mmap
from unetfast.bench.rung import Peaks, read_host_peak_mib
from unetfast.hostmemory import reset_peak
def touch_pages(num_mib):  # from the system itself: what the C library keeps of freed memory does not matter here
    with mmap.mmap(-1, num_mib << 20) as pages:
        for place in range(0, len(pages), mmap.PAGESIZE):
            pages[place] = 1
touch_pages(256)
reset_peak()
base_mib, peaks = read_host_peak_mib(), Peaks()
with peaks.watching():
    touch_pages(96)
with peaks.watching():
    pass
print(base_mib, peaks.host_mib)
"""


def test_peaks_hold_the_most_memory_of_the_rounds_and_not_of_before() -> None:
    """In a process of its own: in this one, what other tests have left may take memory and give it back."""
    told = subprocess.run([sys.executable, "-c", TRIES_PEAKS], capture_output=True, text=True, check=True)
    base_mib, peak_mib = map(float, told.stdout.split())
    if base_mib == 0:
        pytest.skip("this system does not tell a process's peak of memory")
    assert 80 < peak_mib - base_mib < 200


def test_memory_that_was_freed_before_goes_back_before_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(rung, "release_freed_memory", lambda: calls.append("release"))
    monkeypatch.setattr(rung, "reset_peak", lambda: calls.append("reset"))
    measure_rungs({"a": MadeRung("a", [Round(1, 1.0, 1.0)] * 2, calls)}, rounds=2, seconds=0.0)
    assert calls == ["warm a 0.0", "release", "reset", "a", "release", "reset", "a"]


@dataclass
class MadeTime:
    """A clock that goes on by what is slept; the process works for so many seconds of it."""

    work_s: float
    now_s: float = 0.0

    def perf_counter(self) -> float:
        return self.now_s

    def process_time(self) -> float:
        return min(self.now_s, self.work_s)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.mark.parametrize(("work_s", "waited_s"), [(0.0, 0.02), (0.5, 0.52), (100.0, 3.0)])
def test_what_goes_on_behind_a_round_is_waited_for_but_not_for_ever(
    work_s: float, waited_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = MadeTime(work_s)
    monkeypatch.setattr(rung, "time", made)
    wait_for_rest()
    assert made.now_s == pytest.approx(waited_s, abs=0.021)


def test_what_other_programs_do_is_what_keeps_the_cores_busy_without_us(monkeypatch: pytest.MonkeyPatch) -> None:
    made = MadeTime(work_s=1.5)
    monkeypatch.setattr(rung, "time", made)
    monkeypatch.setattr(rung.resource, "getrusage", lambda whose: SimpleNamespace(ru_utime=0.0, ru_stime=0.0))
    monkeypatch.setattr(rung, "_read_busy_s", lambda: 1000 + 0.9 * made.now_s)
    others = OtherWork()
    made.sleep(10.0)
    assert others.read() == pytest.approx((9.0 - 1.5) / 10)
    monkeypatch.setattr(rung, "_read_busy_s", lambda: None)
    assert others.read() is None


def test_busy_seconds_are_those_of_our_cores_and_not_of_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice
    lines = [
        "cpu  9 9 9 9 9 9 9 9 9 9",
        "cpu0 100 20 3 9000 700 4 5 6 50 0",
        "cpu1 7 7 7 7 7 7 7 7 7 7",
        "cpu2 1 0 0 0 0 0 0 0 0 0",
    ]
    (tmp_path / "stat").write_text("\n".join([*lines, "intr 1 2 3", ""]))
    monkeypatch.setattr(rung, "_STAT", tmp_path / "stat")
    monkeypatch.setattr(rung.os, "sched_getaffinity", lambda process: {0, 2})
    monkeypatch.setattr(rung.os, "sysconf", lambda name: {"SC_CLK_TCK": 100}[name])
    assert rung._read_busy_s() == pytest.approx((100 + 20 + 3 + 4 + 5 + 6 + 1) / 100)
    monkeypatch.setattr(rung.os, "sched_getaffinity", lambda process: {5})
    assert rung._read_busy_s() is None
    monkeypatch.setattr(rung, "_STAT", tmp_path / "nowhere")
    assert rung._read_busy_s() is None


def test_processor_time_of_children_counts() -> None:
    burn = "import time\nbegan = time.process_time()\nwhile time.process_time() - began < 0.2: pass"
    watch = Stopwatch()
    subprocess.run([sys.executable, "-c", burn], check=True)
    wall_s, core_s = watch.read()
    assert core_s >= 0.15
    assert wall_s > 0
