"""A bad step changes nothing, bit for bit; what is told of it; what fp16 overflows are not."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unetfast.config import OptimizerConfig
from unetfast.train.guard import LAG_STEPS, Outcome, RunningStatistics, StepGuard, step_and_undo, update_weights
from unetfast.train.optimizer import build_optimizer

CPU = torch.device("cpu")


def make_net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1))


def make_scaler(*, scale: float = 0.0) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", enabled=scale > 0, init_scale=scale or 1.0)


def backward(net: nn.Module, seed: int, *, factor: float = 1.0) -> Tensor:
    inputs = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(seed))
    loss = net(inputs).square().mean() * factor
    loss.backward()
    return loss.detach()


def step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int, *, factor: float = 1.0) -> Outcome:
    """Take a guarded step as the loop does; a factor of nan or inf makes it bad."""
    guard = StepGuard(net, CPU)
    guard.begin()
    loss = backward(net, seed, factor=factor)
    outcome = update_weights(optimizer, make_scaler(), clip_norm=1.0, loss=loss)
    guard.settle(1, np.array([7]), outcome)
    return outcome


def all_state(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return copy.deepcopy({"net": net.state_dict(), "optimizer": optimizer.state_dict()})


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_same(mine, theirs)
    else:
        assert one == other


OPTIMIZERS = ["adam", "adamw", "sgd", "rmsprop"]


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bad_step_changes_nothing(name: Any, factor: float) -> None:
    net = make_net()
    optimizer = build_optimizer(net, OptimizerConfig(name=name, learning_rate=0.05, weight_decay=0.1))
    step(net, optimizer, 0)
    before = all_state(net, optimizer)
    outcome = step(net, optimizer, 1, factor=factor)
    assert (bool(outcome.bad), bool(outcome.applied)) == (True, False)
    assert_same(before, all_state(net, optimizer))
    assert all(weight.grad is None for weight in net.parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_run_with_a_bad_step_equals_one_without(name: Any) -> None:
    """Also where the first step is the bad one, in which torch's fused SGD leaves its momentum uninitialised."""
    disturbed, undisturbed = make_net(), make_net()
    config = OptimizerConfig(name=name, learning_rate=0.05, weight_decay=0.1)
    one, other = build_optimizer(disturbed, config), build_optimizer(undisturbed, config)
    for seed in range(4):
        if seed in (0, 2):
            step(disturbed, one, 99, factor=math.nan)
        step(disturbed, one, seed)
        step(undisturbed, other, seed)
    assert_same(all_state(undisturbed, other), all_state(disturbed, one))


def test_good_step_is_that_of_torch() -> None:
    net, reference = make_net(), make_net()
    optimizer = build_optimizer(net, OptimizerConfig(learning_rate=0.05))
    plain = build_optimizer(reference, OptimizerConfig(learning_rate=0.05))
    for seed in range(3):
        outcome = step(net, optimizer, seed)
        backward(reference, seed)
        norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        plain.step()
        plain.zero_grad()
        assert (bool(outcome.bad), bool(outcome.applied)) == (False, True)
        assert outcome.gradient_norm == norm
    assert_same(reference.state_dict(), net.state_dict())


def test_infinite_loss_is_bad_though_gradients_are_finite() -> None:
    net = make_net()
    optimizer = build_optimizer(net, OptimizerConfig())
    before = all_state(net, optimizer)["net"]
    guard = StepGuard(net, CPU)
    guard.begin()
    backward(net, 0)
    outcome = update_weights(optimizer, make_scaler(), clip_norm=0, loss=torch.tensor(math.inf))
    guard.settle(1, np.array([0]), outcome)
    assert bool(outcome.bad)
    assert math.isfinite(outcome.gradient_norm)
    assert_same(before, net.state_dict())


@pytest.mark.parametrize(("loss", "scale", "is_bad"), [(1.0, 2.0**16, False), (math.nan, 2.0**16, True), (1.0, 1.0, True)])
def test_overflow_of_fp16_is_skipped_but_only_bad_where_the_scale_is_not_to_blame(
    loss: float, scale: float, is_bad: bool
) -> None:
    net = make_net()
    optimizer = build_optimizer(net, OptimizerConfig())
    scaler = make_scaler(scale=scale)
    scaler.scale(net(torch.randn(2, 2, 8, 8)).mean()).backward()
    next(iter(net.parameters())).grad.mul_(math.inf)  # type: ignore[union-attr]
    before = copy.deepcopy(net.state_dict())
    outcome = update_weights(optimizer, scaler, clip_norm=1.0, loss=torch.tensor(loss))
    assert (bool(outcome.bad), bool(outcome.applied)) == (is_bad, False)
    assert_same(before, net.state_dict())
    assert scaler.get_scale() == scale / 2


def test_scaled_gradients_give_the_step_of_unscaled_ones() -> None:
    net, reference = make_net(), make_net()
    optimizer, plain = (build_optimizer(one, OptimizerConfig(learning_rate=0.05)) for one in (net, reference))
    scaler = make_scaler(scale=2.0**10)
    inputs = torch.randn(2, 2, 8, 8)
    scaler.scale(net(inputs).square().mean()).backward()
    outcome = update_weights(optimizer, scaler, clip_norm=0.5, loss=torch.tensor(1.0))
    reference(inputs).square().mean().backward()
    norm = torch.nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
    plain.step()
    torch.testing.assert_close(outcome.gradient_norm, norm)
    for mine, theirs in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wanted", [True, False])
def test_unfused_optimizer_is_undone_on_the_device(wanted: bool) -> None:
    """The way of RMSprop on a GPU, from its first step on."""
    net, reference = make_net(), make_net()
    optimizer, plain = (build_optimizer(one, OptimizerConfig(name="rmsprop", learning_rate=0.05)) for one in (net, reference))
    for seed in range(2):
        backward(net, seed, factor=1.0 if wanted else math.nan)
        step_and_undo(optimizer, torch.tensor(wanted))
        optimizer.zero_grad()
        if wanted:
            backward(reference, seed)
            plain.step()
            plain.zero_grad()
    for mine, theirs in zip(net.parameters(), reference.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    for weight in net.parameters():
        state = optimizer.state[weight]
        assert bool(state["square_avg"].any()) == wanted


def test_running_statistics_come_back_in_every_dtype() -> None:
    net = make_net()
    net.register_buffer("flags", torch.tensor([True, False]))
    before = copy.deepcopy(net.state_dict())
    statistics = RunningStatistics(net)
    statistics.save()
    net(torch.randn(2, 2, 8, 8) * math.nan)
    assert net[1].running_mean.isnan().all()
    assert net[1].num_batches_tracked == 1
    statistics.put_back(torch.tensor(False))
    assert net[1].running_mean.isnan().all()
    statistics.put_back(torch.tensor(True))
    assert_same(before, net.state_dict())
    net(torch.randn(2, 2, 8, 8))
    statistics.put_back()
    assert_same(before, net.state_dict())


def note(guard: StepGuard, number: int, *, bad: bool) -> None:
    loss = torch.tensor(math.nan if bad else 0.5)
    guard.settle(number, np.array([number, number + 100]), Outcome(torch.tensor(not bad), torch.tensor(bad), loss, loss))


def test_bad_steps_are_told_once_with_their_samples() -> None:
    guard = StepGuard(make_net(), CPU)
    guard.begin()
    for number, bad in enumerate([False, True, True, False, True], start=1):
        note(guard, number, bad=bad)
    found = guard.read()
    assert [(entry.step, entry.sample_ids.tolist()) for entry in found] == [(2, [2, 102]), (3, [3, 103]), (5, [5, 105])]
    assert math.isnan(found[0].loss)
    assert (guard.num_in_row, guard.most_in_row, guard.num_bad) == (1, 2, 3)
    assert guard.read() == []


def test_on_a_gpu_the_last_steps_are_read_later_in_order() -> None:
    guard = StepGuard(make_net(), CPU)
    guard._lag = LAG_STEPS
    guard.begin()
    for number in range(1, LAG_STEPS + 3):
        note(guard, number, bad=True)
    assert [entry.step for entry in guard.read()] == [1, 2]
    assert [entry.step for entry in guard.read(all_steps=True)] == list(range(3, LAG_STEPS + 3))


def test_counts_come_back() -> None:
    guard = StepGuard(make_net(), CPU)
    guard.begin()
    note(guard, 1, bad=True)
    guard.read()
    other = StepGuard(make_net(), CPU)
    other.load_state_dict(guard.state_dict())
    other.begin()
    note(other, 2, bad=True)
    other.read()
    assert (other.num_in_row, other.most_in_row, other.num_bad) == (2, 2, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_step_waits_for_the_gpu_and_bad_ones_change_nothing(name: Any) -> None:
    device = torch.device("cuda")
    net = make_net().to(device)
    optimizer = build_optimizer(net, OptimizerConfig(name=name, learning_rate=0.05, weight_decay=0.1))
    guard = StepGuard(net, device)
    inputs = torch.randn(2, 2, 8, 8, device=device)
    states = []
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for number in range(1, 16):
            guard.begin()
            loss = net(inputs).square().mean() * (math.nan if number in (1, 9) else 1.0)
            loss.backward()
            outcome = update_weights(optimizer, make_scaler(), clip_norm=1.0, loss=loss.detach())
            guard.settle(number, np.array([number]), outcome)
            guard.read()
            states.append([tensor.clone() for tensor in (*net.parameters(), *net.buffers())])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    guard.read(all_steps=True)
    assert guard.num_bad == 2
    assert all(torch.equal(one, other) for one, other in zip(states[7], states[8], strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(states[8], states[9], strict=True))
