"""A bar: one line of the table that says where we stand, and what it takes to pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unetfast.bench.harness import format_spread, spread


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


def absent_bar(name: str, what: str, *, floor: float, goal: float, reason: str, unit: str = "x") -> dict[str, Any]:
    """A bar that cannot be measured here; the reason is one line for people."""
    bar = {"bar": name, "what": what, "ratio": None, "unit": unit, "floor": floor, "goal": goal}
    return bar | {"less_is_better": False, "verdict": "n/a", "note": reason}


def format_bar(bar: dict[str, Any]) -> str:
    """Write `| C1 | what | ratio (min..max) | floor | goal | pass |`."""
    sign = "<= " if bar.get("less_is_better") else ""
    unit = bar["unit"] if bar["unit"] == "x" else f" {bar['unit']}"
    bounds = (f"{sign}{bar[name]:g}{unit}" for name in ("floor", "goal"))
    return f"| {' | '.join((bar['bar'], bar['what'], format_spread(bar['ratio'], 3), *bounds, bar['verdict']))} |"
