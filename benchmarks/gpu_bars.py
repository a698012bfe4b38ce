"""The bars of a GPU, G1 to G5: their floors and goals, which stand where no GPU was to be had as "n/a" with the reason.

Absolute floors (images/s, ms) are those of an H200; ratios hold on any card. A limit that is no goal, 1.0 of a tax for one, is
written as the goal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bar import absent_bar, lost_bar, make_bar

# images/s in training by height and width: floor, goal
TRAINING_FLOORS = {(160, 240): (2100, 2550), (256, 256): (1230, 1500), (512, 512): (307, 375), (640, 960): (131, 160)}
# what the step of the same net must be ahead of: floor and goal
TRAINING_RATIOS = {"eager": (1.25, 1.25), "milesial": (1.5, 1.5), "float32-nchw": (3.0, 3.0)}
LOADER_TAX = (0.985, 1.0)
# images/s of DALI alone, and what it must be ahead of the best other way to decode
DECODE_FLOORS = {"ade20k": 12_000, "carvana": 2_500}
DECODE_RATIO = 1.5
WARM_START_S = 10.0
LATENCY_MS = (0.40, 0.18)
LATENCY_RATIO = 4.0

NO_GPU = "no GPU: a trial of the program on a CPU"


def gpu_bar(
    name: str,
    what: str,
    rounds: Sequence[float] | None,
    *,
    device: str,
    floor: float,
    goal: float,
    unit: str = "x",
    less_is_better: bool = False,
    note: str = "",
) -> dict[str, Any]:
    """Make a bar of what was measured on a GPU; "n/a" on a CPU or for a reason given, "failed" where a side of it failed.

    Args:
        name: "G1" to "G5".
        what: for people.
        rounds: of the figure; empty where a side failed; None, with a note, where there is nothing to measure.
        device: "cpu" or "cuda".
        floor: what gates.
        goal: what we go for.
        unit: as in `make_bar`.
        less_is_better: as in `make_bar`.
        note: the condition, or why there are no rounds.
    """
    if device != "cuda":
        return absent_bar(name, what, floor=floor, goal=goal, unit=unit, less_is_better=less_is_better, reason=NO_GPU)
    if rounds is None and note:
        return absent_bar(name, what, floor=floor, goal=goal, unit=unit, less_is_better=less_is_better, reason=note)
    if not rounds:
        reason = note or "a side of it failed"
        return lost_bar(name, what, floor=floor, goal=goal, unit=unit, less_is_better=less_is_better, reason=reason)
    return make_bar(name, what, rounds, floor=floor, goal=goal, unit=unit, less_is_better=less_is_better, note=note)


def divide(rounds: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return ratios round by round; empty where a side ended early."""
    return [own / other for own, other in zip(rounds, others, strict=True)] if len(rounds) == len(others) else []
