"""Early stopping: the rule against ten plain lines, and whole small runs that stop, are resumed and go on."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetfast.checkpoint import load_checkpoint
from unetfast.config import Config, EarlyStopConfig, build_config
from unetfast.errors import UserError
from unetfast.train.earlystop import EarlyStop, check_early_stop, watched_metric
from unetfast.train.log import read_rows
from unetfast.train.loop import train

MakeConfig = Callable[..., Config]


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


# an improvement of a score by more than 1 does not happen: only the first pass counts as one
NEVER = {"min_delta": 2.0}
QUIET: dict[str, Any] = {"log": {"num_panels": 1, "num_saved_images": 0, "gif": False, "report": False}}


def val_epochs(out: Path) -> list[int]:
    return [row["epoch"] for row in read_rows(out / "metrics.jsonl") if row["kind"] == "val"]


def test_a_run_without_improvement_ends_as_at_its_last_epoch(
    toy_shards: Path, tmp_path: Path, make_config: MakeConfig, ear: Any
) -> None:
    config = make_config(train={"epochs": 9}, early_stop={"patience": 2, **NEVER})
    result = train(toy_shards, config, tmp_path / "run", console=ear.console)
    assert (result.stopped, result.exit_code, result.epochs, result.steps) == ("early_stop", 0, 3, 9)
    assert "stopped early at step 9: mDice has not improved by more than 2 in 2 validation passes (best 0." in ear.heard
    assert "next: unetfast predict" in ear.heard
    assert val_epochs(tmp_path / "run") == [1, 2, 3]
    assert (tmp_path / "run" / "predictions_epoch_final.png").exists()
    assert len(list((tmp_path / "run" / "saved_images").iterdir())) == 3
    assert (tmp_path / "run" / "training_history.png").exists()
    last = load_checkpoint(tmp_path / "run" / "last.pt")
    assert (last.step, last.epoch) == (9, 3)
    assert last.progress["early_stop"]["num_bad"] == 2
    assert (tmp_path / "run" / "best.pt").exists()


def test_a_resume_of_it_says_so_and_goes_on_when_asked(
    toy_shards: Path, tmp_path: Path, make_config: MakeConfig, ear: Any
) -> None:
    sections: dict[str, Any] = {"train": {"epochs": 5}, "early_stop": {"patience": 1, **NEVER}, **QUIET}
    out = tmp_path / "run"
    train(toy_shards, make_config(**sections), out)
    before = (out / "last.pt").read_bytes()

    again = train(toy_shards, make_config(**sections), out, resume=True, console=ear.console)
    assert (again.stopped, again.exit_code, again.epochs) == ("early_stop", 0, 2)
    assert "stopped early at step 6: mDice has not improved" in ear.heard
    assert "To go on: --resume --set early_stop.patience=2, or 0 for no early stop" in ear.heard
    assert (out / "last.pt").read_bytes() == before

    longer = make_config(train={"epochs": 5}, early_stop={"patience": 2, **NEVER}, **QUIET)
    more = train(toy_shards, longer, out, resume=True, console=ear.console)
    assert (more.stopped, more.epochs) == ("early_stop", 3)
    assert "early_stop.patience: 1 in the run, 2 now" in ear.heard

    free = make_config(train={"epochs": 5}, early_stop={"patience": 0, **NEVER}, **QUIET)
    assert train(toy_shards, free, out, resume=True).epochs == 5
    assert val_epochs(out) == [1, 2, 3, 4, 5]


def test_a_resumed_run_counts_on(toy_shards: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    """Stopped by max_steps behind the second epoch, resumed: it ends where the undisturbed run ends."""
    early_stop = {"patience": 3, **NEVER}
    whole = train(toy_shards, make_config(train={"epochs": 8}, early_stop=early_stop, **QUIET), tmp_path / "whole")
    train(toy_shards, make_config(train={"epochs": 8, "max_steps": 7}, early_stop=early_stop, **QUIET), tmp_path / "parts")
    rest = train(toy_shards, make_config(train={"epochs": 8}, early_stop=early_stop, **QUIET), tmp_path / "parts", resume=True)
    assert (whole.stopped, whole.epochs) == (rest.stopped, rest.epochs) == ("early_stop", 4)
    states = [load_checkpoint(tmp_path / name / "last.pt").progress["early_stop"] for name in ("whole", "parts")]
    assert states[0] == states[1]


def test_passes_are_counted_not_epochs(toy_shards: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(train={"epochs": 9}, eval={"every_epochs": 2}, early_stop={"patience": 1, **NEVER}, **QUIET)
    assert train(toy_shards, config, tmp_path / "run").epochs == 4
    assert val_epochs(tmp_path / "run") == [2, 4]


def test_a_run_that_improves_goes_to_its_end(toy_shards: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(
        train={"epochs": 4}, optimizer={"learning_rate": 3e-3}, early_stop={"patience": 1, "metric": "val_loss"}, **QUIET
    )
    result = train(toy_shards, config, tmp_path / "run")
    losses = [row["loss"] for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "val"]
    assert losses == sorted(losses, reverse=True)
    assert (result.stopped, result.epochs) == ("", 4)


def test_the_average_of_the_weights_counts_as_well(toy_shards: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    """What is watched is the better one of weights and average, as for the best checkpoint."""
    config = make_config(
        train={"epochs": 4}, ema={"decay": 0.5}, early_stop={"patience": 9}, checkpoint={"best_metric": "val_loss"}, **QUIET
    )
    train(toy_shards, config, tmp_path / "run")
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    best = min(row["loss"] for row in rows if row["kind"] in ("val", "val_ema"))
    last = load_checkpoint(tmp_path / "run" / "last.pt")
    assert last.progress["early_stop"] == {
        "metric": "val_loss",
        "best": best,
        "num_bad": last.progress["early_stop"]["num_bad"],
    }
    assert last.best["value"] == best


def test_shards_without_validation_refuse_it(
    pack_toy: Callable[[float], Path], tmp_path: Path, make_config: MakeConfig
) -> None:
    with pytest.raises(UserError, match=r"no val split, and early_stop\.patience = 3"):
        train(pack_toy(0.0), make_config(early_stop={"patience": 3}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
