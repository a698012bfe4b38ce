"""Early stopping: the rule against ten plain lines, and whole small runs that stop, are resumed and go on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetfast.config import EarlyStopConfig, build_config
from unetfast.errors import UserError
from unetfast.train.earlystop import EarlyStop, check_early_stop, watched_metric


def stops_after(values: list[float | None], *, patience: int, min_delta: float, lower: bool) -> int | None:
    """Number of the pass that ends a run, counted plainly; None if none does."""
    best_place, best = -1, math.inf
    for place, value in enumerate(values):
        signed = math.nan if value is None else value if lower else -value
        if best - signed > min_delta:
            best_place, best = place, signed
        elif place - best_place >= patience:
            return place + 1
    return None


@given(
    values=st.lists(st.sampled_from([0.1, 0.2, 0.25, 0.3, 0.5, 0.7, None, math.nan]), max_size=40),
    patience=st.integers(1, 5),
    min_delta=st.sampled_from([0.0, 0.05, 0.1]),
    metric=st.sampled_from(["val_loss", "mean_iou"]),
)
def test_the_rule_is_ten_plain_lines(values: list[float | None], patience: int, min_delta: float, metric: Any) -> None:
    config = EarlyStopConfig(patience=patience, min_delta=min_delta, metric=metric)
    early_stop, ended = EarlyStop(), None
    for number, value in enumerate(values, start=1):
        could_end = early_stop.may_end(config)
        early_stop.update(value, metric, config)
        if early_stop.is_over(config):
            assert could_end
            ended = number
            break
    assert ended == stops_after(values, patience=patience, min_delta=min_delta, lower=metric == "val_loss")


def test_a_slow_creep_is_no_improvement() -> None:
    config = EarlyStopConfig(patience=3, min_delta=0.1)
    early_stop = EarlyStop()
    for value in (0.5, 0.55, 0.58, 0.6):
        early_stop.update(value, "mean_dice", config)
    assert (early_stop.best, early_stop.num_bad) == (0.5, 3)
    assert early_stop.is_over(config)


def test_without_patience_nothing_is_counted() -> None:
    early_stop = EarlyStop("mean_dice", 0.9, 7)
    off = EarlyStopConfig()
    assert not early_stop.is_over(off)
    assert not early_stop.may_end(off)
    early_stop.update(0.1, "mean_dice", off)
    assert early_stop == EarlyStop("mean_dice", None, 0)


def test_another_metric_begins_anew() -> None:
    early_stop = EarlyStop("mean_dice", 0.9, 2)
    early_stop.update(0.3, "val_loss", EarlyStopConfig(patience=3))
    assert early_stop == EarlyStop("val_loss", 0.3, 0)


def test_the_metric_is_that_of_the_best_checkpoint_unless_named() -> None:
    assert watched_metric(build_config({"checkpoint": {"best_metric": "mean_iou"}})) == "mean_iou"
    assert watched_metric(build_config({"early_stop": {"metric": "val_loss"}})) == "val_loss"


def test_state_comes_back() -> None:
    early_stop, other = EarlyStop("val_loss", 0.25, 2), EarlyStop()
    other.load_state_dict(early_stop.state_dict())
    assert other == early_stop
    other.load_state_dict({})
    assert other == EarlyStop()


def test_it_says_why_and_how_to_go_on() -> None:
    config = EarlyStopConfig(patience=3, min_delta=0.001)
    assert EarlyStop("mean_dice", 0.91234, 3).describe(config) == (
        "mDice has not improved by more than 0.001 in 3 validation passes (best 0.9123); early_stop.patience = 3. "
        "To go on: --resume --set early_stop.patience=6, or 0 for no early stop"
    )
    one = EarlyStop("val_loss", None, 1).describe(EarlyStopConfig(patience=1))
    assert one.startswith("loss was not a number in 1 validation pass; early_stop.patience = 1.")


def test_a_patience_without_validation_is_refused(tmp_path: Path) -> None:
    config = build_config({"early_stop": {"patience": 3}})
    with pytest.raises(UserError, match=r"no val split, and early_stop.patience = 3 watches validation; take --set early_stop"):
        check_early_stop(config, has_val=False, shards=tmp_path)
    check_early_stop(config, has_val=True, shards=tmp_path)
    check_early_stop(build_config({}), has_val=False, shards=tmp_path)
