"""Early stopping: a run ends when its validation has not improved for some passes.

Its state is part of a checkpoint, so a resumed run counts on. It looks at validation scores alone, which are the same in every
process, so all of them stop at the same step.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from unetfast.config import Config, EarlyStopConfig
from unetfast.errors import UserError
from unetfast.train.display import METRIC_WORDS
from unetfast.train.schedule import LOWER_IS_BETTER


def watched_metric(config: Config) -> str:
    """Name the metric that decides: `early_stop.metric`, or `checkpoint.best_metric` where that is empty."""
    return config.early_stop.metric or config.checkpoint.best_metric


def check_early_stop(config: Config, *, has_val: bool, shards: object) -> None:
    """Refuse a patience that nothing could ever exhaust.

    Args:
        config: of the run.
        has_val: whether the shards have a val split.
        shards: their folder, for the message.

    Raises:
        UserError: there is a patience and no val split.
    """
    if config.early_stop.patience and not has_val:
        raise UserError(
            f"{shards}: no val split, and early_stop.patience = {config.early_stop.patience} watches validation; "
            "take --set early_stop.patience=0, or pack with --val-fraction 0.1"
        )


@dataclass(slots=True)
class EarlyStop:
    """Counts the validation passes since the last improvement, as Keras's `EarlyStopping` does.

    An improvement is a value that is better than the best so far by more than `min_delta`; only such a one becomes the best,
    so that a slow creep below `min_delta` a pass is none. NaN and "no class was there" (None) are never one.

    Args:
        metric: what `best` is a value of; "" before the first pass.
        best: best value so far; None before the first number.
        num_bad: validation passes since then without improvement.
    """

    metric: str = ""
    best: float | None = None
    num_bad: int = 0

    def update(self, value: float | None, metric: str, config: EarlyStopConfig) -> None:
        """Take the metric of one validation pass in.

        Args:
            value: of this pass.
            metric: its name; another one than before begins anew.
            config: with `patience` 0 nothing is counted, and what was is forgotten.
        """
        if metric != self.metric or not config.patience:
            self.metric, self.best, self.num_bad = metric, None, 0
        if not config.patience:
            return
        if _improves(metric, value, self.best, config.min_delta):
            self.best, self.num_bad = value, 0
        else:
            self.num_bad += 1

    def is_over(self, config: EarlyStopConfig) -> bool:
        """Say whether patience has run out."""
        return 0 < config.patience <= self.num_bad

    def may_end(self, config: EarlyStopConfig) -> bool:
        """Say whether the next validation pass can be the last one."""
        return 0 < config.patience <= self.num_bad + 1

    def describe(self, config: EarlyStopConfig) -> str:
        """Say why the run stops, and how it would go on."""
        word = METRIC_WORDS[self.metric]
        passes = f"{self.num_bad} validation pass{'es' * (self.num_bad != 1)}"
        if self.best is None:
            reason = f"{word} was not a number in {passes}"
        else:
            by = f" by more than {config.min_delta:g}" if config.min_delta else ""
            reason = f"{word} has not improved{by} in {passes} (best {self.best:.4f})"
        return (
            f"{reason}; early_stop.patience = {config.patience}. "
            f"To go on: --resume --set early_stop.patience={2 * self.num_bad}, or 0 for no early stop"
        )

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a state over; an empty one (of a checkpoint from before early stopping) begins anew."""
        self.metric, self.best, self.num_bad = state.get("metric", ""), state.get("best"), state.get("num_bad", 0)


def _improves(metric: str, value: float | None, best: float | None, min_delta: float) -> bool:
    if value is None or not math.isfinite(value):
        return False
    if best is None:
        return True
    return best - value > min_delta if metric in LOWER_IS_BETTER else value - best > min_delta
