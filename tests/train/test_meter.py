"""Sums and clocks of a run."""

from __future__ import annotations

import math

import torch

from unetfast.train.meter import Meter, StepClock

CPU = torch.device("cpu")


def add(meter: Meter, *losses: float, counted: bool = True) -> None:
    """Add one step of several micro-batches, whose shares add up."""
    confusion_KK = len(losses) * torch.eye(2, dtype=torch.int64)
    meter.add_step(torch.tensor(sum(losses)), confusion_KK, torch.tensor(counted))


def test_window_is_a_mean_over_steps_and_begins_anew() -> None:
    meter = Meter(2, CPU)
    add(meter, 0.5, 0.5)
    add(meter, 3.0)
    assert meter.read_window() == 2.0
    add(meter, 5.0)
    assert meter.read_window() == 5.0
    loss, confusion_KK = meter.read_epoch()
    assert loss == 3.0
    assert confusion_KK.tolist() == [[4, 0], [0, 4]]


def test_step_that_was_not_applied_enters_nothing() -> None:
    meter = Meter(2, CPU)
    add(meter, math.nan, counted=False)
    assert math.isnan(meter.read_window())
    add(meter, 2.0)
    add(meter, math.inf, counted=False)
    assert meter.read_window() == 2.0
    loss, confusion_KK = meter.read_epoch()
    assert loss == 2.0
    assert confusion_KK.tolist() == [[1, 0], [0, 1]]


def test_new_epoch_forgets() -> None:
    meter = Meter(2, CPU)
    add(meter, 1.0)
    meter.start_epoch()
    add(meter, 2.0)
    assert meter.read_epoch()[0] == 2.0
    assert meter.read_epoch()[1].sum() == 2


def test_state_comes_back_and_does_not_follow_the_meter() -> None:
    meter = Meter(2, CPU)
    add(meter, 1.0)
    state = meter.state_dict()
    add(meter, 9.0)
    other = Meter(2, CPU)
    other.load_state_dict(state)
    add(other, 2.0)
    assert other.read_epoch()[0] == 1.5
    assert other.read_window() == 1.5


class Clock:
    def __init__(self) -> None:
        self.time_s = 0.0

    def __call__(self) -> float:
        return self.time_s


def test_waits_and_pauses_are_told_apart() -> None:
    now = Clock()
    clock = StepClock(CPU, now)
    for _ in range(4):
        with clock.waiting():
            now.time_s += 0.25
        now.time_s += 0.75
        clock.end_step()
    with clock.pause():
        now.time_s += 100
    speed = clock.read(batch_size=8)
    assert (speed.images_per_s, speed.data_wait_pct, speed.step_s) == (8.0, 25.0, 1.0)


def test_reading_begins_anew() -> None:
    now = Clock()
    clock = StepClock(CPU, now)
    now.time_s += 50
    clock.read(batch_size=1)
    now.time_s += 2
    clock.end_step()
    assert clock.read(batch_size=4).images_per_s == 2.0
