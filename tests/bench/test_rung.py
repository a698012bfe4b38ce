"""Rounds of rungs: turns, sums, peaks of memory, processor time of workers."""

from __future__ import annotations

import mmap
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest

from unetfast.bench.rung import (
    MIN_ROUND_STEPS,
    Peaks,
    Round,
    Stopwatch,
    measure_rungs,
    read_host_peak_mib,
    steps_of,
    sum_up,
)
from unetfast.hostmemory import reset_peak


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


def touch_pages(num_mib: int) -> None:
    """Take memory from the system itself and give it back; what the C library keeps of freed memory does not matter here."""
    with mmap.mmap(-1, num_mib << 20) as pages:
        for place in range(0, len(pages), mmap.PAGESIZE):
            pages[place] = 1


def test_peaks_hold_the_most_memory_of_the_rounds_and_not_of_before() -> None:
    touch_pages(256)
    reset_peak()
    base_mib, peaks = read_host_peak_mib(), Peaks()
    if base_mib == 0:
        pytest.skip("this system does not tell a process's peak of memory")
    with peaks.watching():
        touch_pages(96)
    with peaks.watching():
        pass
    assert 80 < peaks.host_mib - base_mib < 200


def test_processor_time_of_children_counts() -> None:
    burn = "import time\nbegan = time.process_time()\nwhile time.process_time() - began < 0.2: pass"
    watch = Stopwatch()
    subprocess.run([sys.executable, "-c", burn], check=True)
    wall_s, core_s = watch.read()
    assert core_s >= 0.15
    assert wall_s > 0
