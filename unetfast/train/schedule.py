"""The learning rate as a pure function of the step, and the plateau rule's small state."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from unetfast.config import Config, ScheduleConfig

LOWER_IS_BETTER = frozenset({"val_loss"})


def num_total_steps(config: Config, num_samples: int) -> int:
    """Count the optimizer steps of a whole run: ceil(epochs * N / B), or `train.max_steps` where that is fewer.

    Args:
        config: epochs, global batch size, and the limit of steps.
        num_samples: N, of the training split.
    """
    steps = -(-config.train.epochs * num_samples // config.loader.batch_size)
    return min(steps, config.train.max_steps) if config.train.max_steps else steps


def learning_rate_factor(config: ScheduleConfig, step: int, *, total_steps: int, plateau_factor: float = 1.0) -> float:
    """Say by what the learning rate of a step is multiplied.

    The warm-up is linear (Goyal et al. 2017) and ends at what the schedule begins with; behind it come:

    - constant: 1.
    - plateau: `plateau_factor`.
    - cosine (Loshchilov and Hutter 2016, without restarts): from 1 to `min_factor` at `total_steps`.
    - poly (Chen et al. 2017, "DeepLab"): min_factor + (1 - min_factor) (1 - t/T)^power, T being the steps behind the warm-up.
    - one-cycle (Smith and Topin 2018, "Super-Convergence"): half a cosine from `one_cycle_start` up to 1 over the share
      `one_cycle_peak` of these steps, and half a cosine down to `min_factor`. As torch's `OneCycleLR`, where the rise takes a
      step at all.

    Args:
        config: which schedule, and its numbers.
        step: optimizer steps done so far; the first step asks with 0.
        total_steps: where the schedule ends; it stays at its end.
        plateau_factor: `Plateau.factor`.

    Returns:
        A factor in (0, 1], or 0 at the end of a schedule with `min_factor` 0.
    """
    done = step - config.warmup_steps
    length = max(1, total_steps - config.warmup_steps)
    factor = plateau_factor if config.name == "plateau" else _course(config, max(0, done), length)
    return factor if done >= 0 else (step + 1) / config.warmup_steps * factor


def _course(config: ScheduleConfig, step: int, length: int) -> float:
    """Return the factor of a step behind the warm-up, of `length` steps."""
    progress = min(1.0, step / length)
    if config.name == "cosine":
        return _half_cosine(1.0, config.min_factor, progress)
    if config.name == "poly":
        return config.min_factor + (1 - config.min_factor) * math.pow(1 - progress, config.power)
    if config.name == "one-cycle":
        # the last step of all is the one that reaches the end, and the peak falls on a step too: hence the - 1
        peak, last = max(0.0, config.one_cycle_peak * length - 1), max(1.0, length - 1.0)
        if step < peak:
            return _half_cosine(config.one_cycle_start, 1.0, step / peak)
        return _half_cosine(1.0, config.min_factor, min(1.0, (step - peak) / (last - peak)))
    return 1.0


def _half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def is_better(metric: str, value: float | None, best: float | None) -> bool:
    """Say whether a metric improved; NaN and "no class was there" (None) never do."""
    if value is None or not math.isfinite(value):
        return False
    if best is None:
        return True
    return value < best if metric in LOWER_IS_BETTER else value > best


@dataclass(slots=True)
class Plateau:
    """Lowers the rate when a metric stops improving, as torch's `ReduceLROnPlateau` with a threshold of 0.

    Args:
        best: best value so far; None before the first.
        num_bad: validation passes since then without improvement.
        factor: what the learning rate is multiplied by now.
    """

    best: float | None = None
    num_bad: int = 0
    factor: float = 1.0

    def update(self, value: float | None, config: ScheduleConfig) -> bool:
        """Take the metric of one validation pass in; returns whether the rate was lowered. NaN and None count as bad."""
        if is_better(config.plateau_metric, value, self.best):
            self.best, self.num_bad = value, 0
            return False
        self.num_bad += 1
        if self.num_bad <= config.plateau_patience:
            return False
        before, self.num_bad = self.factor, 0
        self.factor = max(self.factor * config.plateau_factor, config.min_factor)
        return self.factor < before

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.num_bad, self.factor = state["best"], state["num_bad"], state["factor"]
