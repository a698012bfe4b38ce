"""What the losses of a learning-rate range test say: a suggestion, or plainly why there is none.

The rule: the rate at which the smoothed loss falls most steeply per decade of the rate, before its least value, moved back by
the few steps by which a running mean trails what it averages. Both the smoothing and the slope reach over a twentieth of the
steps, so that more steps make a finer curve and not a rougher one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

LEAST_FALL = 0.02  # of the loss at the start; a smaller one is no fall


@dataclass(slots=True)
class RateTest:
    """The losses of a test; the step that ended it by diverging is in it.

    Args:
        num_steps: that were planned.
        rates: learning rate of each step taken.
        losses: before that step's update; the last may be nan or infinite.
        smoothed: running mean of them, weighted towards the last ones and corrected for its start.
        diverged: whether the test ended before its last step.
    """

    num_steps: int
    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    diverged: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a test says.

    Args:
        suggestion: learning rate to take; None where the losses name none.
        reason: one sentence: what the curve shows.
        remedy: what to do next, where it names none or stops short; else "".
        least_rate: rate at the least smoothed loss; None without a finite loss.
    """

    suggestion: float | None
    reason: str
    remedy: str = ""
    least_rate: float | None = None


class Smoother:
    """A running mean with exponentially falling weights, divided by the sum of its weights (Kingma and Ba 2014, section 3).

    Args:
        horizon: how many of the last values have most of the weight; at least 1.
    """

    def __init__(self, horizon: float) -> None:
        self._keep = 1 - 1 / max(1.0, horizon)
        self._sum = self._weight = 0.0

    def add(self, value: float) -> float:
        """Take a value in and return the mean."""
        self._sum = self._keep * self._sum + (1 - self._keep) * value
        self._weight = self._keep * self._weight + (1 - self._keep)
        return self._sum / self._weight


def span_of(num_steps: int) -> int:
    """Number of steps over which a test of so many smooths and takes slopes: a twentieth, at least 2."""
    return max(2, num_steps // 20)


def judge(test: RateTest) -> Verdict:
    """Say what a test shows: a suggestion where the loss fell, and plainly why there is none where it did not."""
    smoothed = np.array([value for value in test.smoothed if math.isfinite(value)])
    if not len(smoothed):
        return Verdict(
            None,
            "the loss of the very first step is not a finite number",
            "no learning rate mends that: look at the data (unetfast inspect --verify), train.init_checkpoint and [loss]",
        )
    rates, losses = np.array(test.rates[: len(smoothed)]), np.array(test.losses[: len(smoothed)])
    place = int(smoothed.argmin())
    least = float(smoothed[place])
    # what it fell from: only what came before the least value
    start = float(np.median(smoothed[: min(max(3, test.num_steps // 10), place + 1)]))
    least_rate = float(rates[place])
    enough = max(LEAST_FALL * abs(start), 1.5 * scatter_of(losses))
    if start - least <= enough:
        rose = test.diverged or float(smoothed[-1]) - start > enough
        return explain_nothing(test, rose=rose, start=start, least=least, least_rate=least_rate)
    span = span_of(test.num_steps)
    # a running mean of horizon h trails a steady course by h - 1 steps
    suggestion = float(rates[max(0, steepest_place(rates, smoothed, place, span) - (span - 1))])
    fall = f"from {start:.4f} at the start to {least:.4f} at {least_rate:.2g}"
    reason = f"the loss falls most steeply at {suggestion:.2g}, {fall}"
    remedy = ""
    if not test.diverged and place >= len(smoothed) - span:
        remedy = f"the loss still falls at {rates[-1]:.2g}: a larger --to may find a larger rate"
    return Verdict(suggestion, reason, remedy, least_rate)


def explain_nothing(test: RateTest, *, rose: bool, start: float, least: float, least_rate: float) -> Verdict:
    """Say why a test in which the loss did not fall has no suggestion.

    Args:
        test: its losses.
        rose: whether they rose in the end.
        start: smoothed loss at the start.
        least: the least smoothed loss.
        least_rate: where that was.
    """
    first, last = test.rates[0], test.rates[-1]
    levels = f"{start:.4f} at the start, {least:.4f} at its least"
    if not rose:
        reason = f"the loss is flat over rates from {first:.2g} to {last:.2g}: {levels}"
        remedy = f"take a larger --to than {last:.2g}, more --steps, or a larger loader.batch_size for a calmer curve"
        return Verdict(None, reason, remedy, least_rate)
    reason = f"the loss only rises over rates from {first:.2g} to {last:.2g}: {levels}"
    if test.diverged:
        where = f"at a learning rate of {last:.2g} (step {len(test.rates)} of {test.num_steps})"
        reason = f"the loss diverged {where} without having fallen before: {levels}"
    remedy = f"take a smaller --from than {first:.2g}, more --steps, or optimizer.clip_norm = 1"
    return Verdict(None, reason, remedy, least_rate)


def scatter_of(losses: np.ndarray) -> float:
    """Estimate how much single losses scatter about their course, by the median jump from step to step.

    Args:
        losses: float64, (n,).

    Returns:
        Standard deviation, were the scatter normal; 0 for a single loss.
    """
    jumps = np.abs(np.diff(losses))
    return float(np.median(jumps)) / (0.6745 * math.sqrt(2)) if len(jumps) else 0.0


def steepest_place(rates: np.ndarray, smoothed: np.ndarray, least: int, span: int) -> int:
    """Return the place before `least` where a straight line through the smoothed losses around it falls most steeply.

    Args:
        rates: growing by a constant factor, (n,).
        smoothed: (n,).
        least: place of the least of them.
        span: places on either side that the line is fitted to, by least squares; fewer at the start of the curve.
    """
    x = np.log10(rates)
    slopes = np.full(least + 1, np.inf)
    for place in range(least + 1):
        near = slice(max(0, place - span), min(len(smoothed), place + span + 1))
        if near.stop - near.start >= 3:
            slopes[place] = np.polyfit(x[near], smoothed[near], 1)[0]
    return int(slopes.argmin())


def to_json(test: RateTest, verdict: Verdict, *, picture: Path | None) -> dict[str, Any]:
    """Return test and verdict as JSON holds them; numbers that are not finite are None."""
    return {
        "suggestion": verdict.suggestion,
        "reason": verdict.reason,
        "remedy": verdict.remedy,
        "least_rate": verdict.least_rate,
        "diverged": test.diverged,
        "num_steps": len(test.rates),
        "picture": None if picture is None else str(picture),
        "rates": test.rates,
        "losses": [value if math.isfinite(value) else None for value in test.losses],
        "smoothed": [value if math.isfinite(value) else None for value in test.smoothed],
    }
