"""The moving average of the weights: torch's own as reference, the warm-up, bad steps, and the exchange with the model."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from unetfast.config import EmaConfig
from unetfast.train.ema import WeightAverage

YES, NO = torch.tensor(True), torch.tensor(False)


def make_net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1)).to(memory_format=torch.channels_last)


def train_a_little(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    net(torch.randn(2, 2, 8, 8)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_average_is_torchs() -> None:
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    average = WeightAverage(net, EmaConfig(decay=0.9, warmup=False))
    reference = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    reference.update_parameters(net)  # torch's begins with a copy
    for step in range(10):
        train_a_little(net, optimizer)
        average.update(step, YES)
        reference.update_parameters(net)
    state = average.state_dict()
    assert state.keys() == net.state_dict().keys()
    for name, theirs in reference.module.named_parameters():
        torch.testing.assert_close(state[name], theirs.detach(), rtol=1e-5, atol=1e-7)
        assert not torch.equal(state[name], net.state_dict()[name])
    assert torch.equal(state["1.running_var"], net.state_dict()["1.running_var"])  # statistics are the model's


def test_warmup_follows_its_formula() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    average = WeightAverage(net, EmaConfig(decay=0.5))
    expected, decays = 0.0, [1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 0.5, 0.5]
    for step, decay in enumerate(decays):
        with torch.no_grad():
            net.weight.fill_(step + 1.0)
        average.update(step, YES)
        expected = decay * expected + (1 - decay) * (step + 1)
        assert average.state_dict()["weight"].item() == pytest.approx(expected, rel=1e-6)
    assert average.decay_at(10**6) == 0.5


def test_step_that_was_not_applied_leaves_it_as_it_is() -> None:
    net = make_net()
    average = WeightAverage(net, EmaConfig(decay=0.9))
    train_a_little(net, torch.optim.SGD(net.parameters(), lr=0.1))
    before = copy.deepcopy(average.state_dict())
    average.update(0, NO)
    assert all(torch.equal(tensor, average.state_dict()[name]) for name, tensor in before.items())


def test_model_has_the_average_for_a_while_and_then_its_own_weights_again() -> None:
    net = make_net()
    average = WeightAverage(net, EmaConfig(decay=0.9))
    for step in range(3):
        train_a_little(net, torch.optim.SGD(net.parameters(), lr=0.1))
        average.update(step, YES)
    own, averages = copy.deepcopy(net.state_dict()), copy.deepcopy(average.state_dict())
    pointers = [weight.data_ptr() for weight in net.parameters()]
    with contextlib.suppress(KeyError), average.swapped_in():
        assert all(torch.equal(tensor, averages[name]) for name, tensor in net.state_dict().items())
        raise KeyError  # a stop in the middle of validation
    assert all(torch.equal(tensor, own[name]) for name, tensor in net.state_dict().items())
    assert [weight.data_ptr() for weight in net.parameters()] == pointers
    assert all(torch.equal(tensor, averages[name]) for name, tensor in average.state_dict().items())


def test_state_comes_back_and_shared_weights_stand_under_both_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight

    net: Any = Tied()
    average = WeightAverage(net, EmaConfig(decay=0.9))
    with torch.no_grad():
        net.first.weight.add_(1.0)
    average.update(50, YES)
    state = copy.deepcopy(average.state_dict())
    assert torch.equal(state["first.weight"], state["second.weight"])
    other = WeightAverage(net, EmaConfig(decay=0.9))
    other.load_state_dict(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())


def test_it_begins_anew_with_weights_that_came_later() -> None:
    net = make_net()
    average = WeightAverage(net, EmaConfig(decay=0.9))
    with torch.no_grad():
        net[0].weight.add_(1.0)
    average.start_anew()
    assert torch.equal(average.state_dict()["0.weight"], net.state_dict()["0.weight"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_update_does_not_wait_for_the_gpu() -> None:
    net = make_net().cuda()
    average = WeightAverage(net, EmaConfig(decay=0.9))
    applied = torch.ones((), dtype=torch.bool, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        average.update(3, applied)
    finally:
        torch.cuda.set_sync_debug_mode("default")
