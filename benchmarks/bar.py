"""A bar: one line of the table that says where we stand, and what it takes to pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unetfast.bench.harness import format_spread, spread

FAILED = "failed"  # verdict of a bar that was to be measured and was not


def make_bar(
    name: str,
    what: str,
    rounds: Sequence[float],
    *,
    floor: float,
    goal: float,
    unit: str = "x",
    less_is_better: bool = False,
    sound: bool = True,
    note: str = "",
) -> dict[str, Any]:
    """Put rounds of one figure beside its floor and goal.

    Args:
        name: of the bar, "C1" to "C8" or "G1" to "G5".
        what: what was measured, against whom, on which data; for people.
        rounds: the ratio (or other figure) of each round.
        floor: what gates; reached by the median.
        goal: what we go for.
        unit: "x" for a ratio, else "ms", "s", ...
        less_is_better: floor and goal are upper bounds.
        sound: False where a condition beside the figure failed (bytes differ, masks differ, too large): never passes.
        note: the condition, or what stands in the way; for people.
    """
    figure = spread(rounds)
    passed = figure["median"] <= floor if less_is_better else figure["median"] >= floor
    return {
        "bar": name,
        "what": what,
        "ratio": figure,
        "unit": unit,
        "floor": floor,
        "goal": goal,
        "less_is_better": less_is_better,
        "verdict": "pass" if passed and sound else "short",
        "note": note,
    }


def absent_bar(
    name: str, what: str, *, floor: float, goal: float, reason: str, unit: str = "x", less_is_better: bool = False
) -> dict[str, Any]:
    """A bar that this machine cannot measure, whatever is run; the reason is one line for people."""
    return _bar_without_figure(name, what, floor, goal, unit, less_is_better, "n/a", reason)


def lost_bar(
    name: str,
    what: str,
    *,
    floor: float | None,
    goal: float | None,
    reason: str,
    unit: str = "x",
    less_is_better: bool = False,
) -> dict[str, Any]:
    """A bar that was to be measured and was not: our side or the peer failed. It counts as a failure of the run.

    Args:
        name: as in `make_bar`.
        what: as in `make_bar`.
        floor: as in `make_bar`; None where the whole program failed, which alone knows it.
        goal: as `floor`.
        reason: what failed, and how; one line for people.
        unit: as in `make_bar`.
        less_is_better: as in `make_bar`.
    """
    return _bar_without_figure(name, what, floor, goal, unit, less_is_better, FAILED, reason)


def _bar_without_figure(
    name: str, what: str, floor: float | None, goal: float | None, unit: str, less_is_better: bool, verdict: str, note: str
) -> dict[str, Any]:
    bar = {"bar": name, "what": what, "ratio": None, "unit": unit, "floor": floor, "goal": goal}
    return bar | {"less_is_better": less_is_better, "verdict": verdict, "note": note}


def format_bar(bar: dict[str, Any]) -> str:
    """Write `| C1 | what | ratio (min..max) | floor | goal | pass |`."""
    if bar["floor"] is None:
        return f"| {bar['bar']} | {bar['what']} | - | - | - | {bar['verdict']} |"
    sign = "<= " if bar.get("less_is_better") else ""
    unit = bar["unit"] if bar["unit"] == "x" else f" {bar['unit']}"
    bounds = (f"{sign}{bar[name]:g}{unit}" for name in ("floor", "goal"))
    return f"| {' | '.join((bar['bar'], bar['what'], format_spread(bar['ratio'], 3), *bounds, bar['verdict']))} |"


def format_note(bar: dict[str, Any]) -> str:
    """Write `C1 short, what: note`: which of a bar's lines is meant, and what is to be said of it."""
    return f"{bar['bar']} {bar['verdict']}, {bar['what']}: {bar['note']}"
