"""Learning rates against torch's own schedulers, and the plateau rule."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unetfast.config import ScheduleConfig, build_config
from unetfast.train.schedule import Plateau, is_better, learning_rate_factor, num_total_steps


def factors(config: ScheduleConfig, num_steps: int) -> list[float]:
    return [learning_rate_factor(config, step, total_steps=num_steps) for step in range(num_steps)]


def torch_factors(build: Any, num_steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = build(optimizer)
    found = []
    for _ in range(num_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_constant_is_one() -> None:
    assert factors(ScheduleConfig(), 5) == [1.0] * 5


def test_cosine_equals_torch() -> None:
    wanted = torch_factors(lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40, eta_min=0.1), 40)
    assert factors(ScheduleConfig(name="cosine", min_factor=0.1), 40) == pytest.approx(wanted, abs=1e-9)


def test_warmup_with_cosine_equals_torch() -> None:
    def build(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        schedulers = torch.optim.lr_scheduler
        warmup = schedulers.LinearLR(optimizer, start_factor=1 / 8, total_iters=7)
        cosine = schedulers.CosineAnnealingLR(optimizer, 32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return schedulers.SequentialLR(optimizer, [warmup, cosine], milestones=[8])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's SequentialLR warns of its own use of step(epoch)
        wanted = torch_factors(build, 40)
    assert factors(ScheduleConfig(name="cosine", warmup_steps=8), 40) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("power", [0.9, 1.0, 2.0])
def test_poly_equals_torch(power: float) -> None:
    scheduler = torch.optim.lr_scheduler.PolynomialLR
    wanted = torch_factors(lambda optimizer: scheduler(optimizer, total_iters=40, power=power), 40)
    assert factors(ScheduleConfig(name="poly", power=power), 40) == pytest.approx(wanted, abs=1e-9)


def test_poly_behind_a_warmup_down_to_its_least_factor() -> None:
    found = factors(ScheduleConfig(name="poly", warmup_steps=4, power=2.0, min_factor=0.1), 12)
    falling = [0.1 + 0.9 * (1 - step / 8) ** 2 for step in range(8)]
    assert found == pytest.approx([0.25, 0.5, 0.75, 1.0, *falling], abs=1e-12)


@pytest.mark.parametrize("num_steps", [4, 10, 57, 1000])
@pytest.mark.parametrize(("peak", "start", "end"), [(0.3, 0.04, 4e-6), (0.5, 0.1, 0.01), (0.4, 1.0, 0.0)])
def test_one_cycle_equals_torch(num_steps: int, peak: float, start: float, end: float) -> None:
    config = ScheduleConfig(name="one-cycle", one_cycle_peak=peak, one_cycle_start=start, min_factor=end)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=1.0,
        total_steps=num_steps,
        pct_start=peak,
        div_factor=1 / start,
        final_div_factor=start / end if end else math.inf,
        cycle_momentum=False,
    )
    wanted = [optimizer.param_groups[0]["lr"]]
    for _ in range(num_steps - 1):
        optimizer.step()
        scheduler.step()
        wanted.append(optimizer.param_groups[0]["lr"])
    assert factors(config, num_steps) == pytest.approx(wanted, abs=1e-12)


def test_one_cycle_behind_a_warmup_begins_where_that_ends() -> None:
    config = ScheduleConfig(name="one-cycle", warmup_steps=5, one_cycle_start=0.2)
    found = factors(config, 45)
    assert found[:5] == pytest.approx([0.04, 0.08, 0.12, 0.16, 0.2])
    assert found[5:] == pytest.approx(factors(ScheduleConfig(name="one-cycle", one_cycle_start=0.2), 40))
    assert max(found) == pytest.approx(1)
    assert found[-1] == pytest.approx(0)


@given(
    name=st.sampled_from(["constant", "cosine", "poly", "one-cycle"]),
    num_steps=st.integers(1, 60),
    warmup=st.integers(0, 70),
    least=st.sampled_from([0.0, 0.1, 1.0]),
    peak=st.floats(0.01, 0.99),
)
def test_a_factor_is_never_above_one_and_stays_at_its_end(
    name: Any, num_steps: int, warmup: int, least: float, peak: float
) -> None:
    config = ScheduleConfig(name=name, warmup_steps=warmup, min_factor=least, one_cycle_peak=peak)
    found = [learning_rate_factor(config, step, total_steps=num_steps) for step in range(150)]
    assert all(0 <= factor <= 1 + 1e-12 for factor in found)
    assert found[0] > 0
    end = 1.0 if name == "constant" else least
    assert found[max(num_steps, warmup + 1) + 1 :] == pytest.approx([end] * len(found[max(num_steps, warmup + 1) + 1 :]))


def test_warmup_begins_at_one_nth_and_ends_at_one() -> None:
    found = factors(ScheduleConfig(warmup_steps=4), 6)
    assert found == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_stays_at_its_end() -> None:
    config = ScheduleConfig(name="cosine", min_factor=0.2)
    assert learning_rate_factor(config, 100, total_steps=10) == pytest.approx(0.2)


def test_warmup_as_long_as_the_run_divides_by_nothing() -> None:
    assert all(math.isfinite(factor) for factor in factors(ScheduleConfig(name="cosine", warmup_steps=10), 10))


@given(
    values=st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.7]), max_size=40),
    patience=st.integers(0, 4),
    metric=st.sampled_from(["val_loss", "mean_iou"]),
)
def test_plateau_equals_torch(values: list[float], patience: int, metric: Any) -> None:
    config = ScheduleConfig(name="plateau", plateau_metric=metric, plateau_patience=patience, plateau_factor=0.5)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "min" if metric == "val_loss" else "max", factor=0.5, patience=patience, threshold=0.0, eps=0.0
    )
    plateau = Plateau()
    for value in values:
        plateau.update(value, config)
        reference.step(value)
        assert plateau.factor == optimizer.param_groups[0]["lr"]


def test_plateau_stops_at_its_least_factor() -> None:
    config = ScheduleConfig(name="plateau", plateau_patience=0, plateau_factor=0.1, min_factor=0.05)
    plateau = Plateau(best=1.0)
    assert [plateau.update(2.0, config) for _ in range(3)] == [True, True, False]
    assert plateau.factor == 0.05


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_undefined_metric_is_never_better(value: float | None) -> None:
    assert not is_better("val_loss", value, None)
    plateau = Plateau()
    plateau.update(value, ScheduleConfig(name="plateau"))
    assert (plateau.best, plateau.num_bad) == (None, 1)


def test_lower_loss_and_higher_score_are_better() -> None:
    assert is_better("val_loss", 0.1, 0.2)
    assert not is_better("val_loss", 0.2, 0.2)
    assert is_better("mean_dice", 0.2, 0.1)
    assert is_better("mean_dice", 0.0, None)


def test_plateau_state_comes_back() -> None:
    plateau = Plateau(best=0.5, num_bad=2, factor=0.01)
    other = Plateau()
    other.load_state_dict(plateau.state_dict())
    assert other == plateau


@pytest.mark.parametrize(
    ("epochs", "samples", "batch", "limit", "steps"),
    [(3, 4576, 16, 0, 858), (2, 5, 4, 0, 3), (3, 1, 4, 0, 1), (3, 4576, 16, 100, 100), (1, 8, 4, 100, 2)],
)
def test_steps_of_a_run(epochs: int, samples: int, batch: int, limit: int, steps: int) -> None:
    config = build_config({"train": {"epochs": epochs, "max_steps": limit}, "loader": {"batch_size": batch}})
    assert num_total_steps(config, samples) == steps
