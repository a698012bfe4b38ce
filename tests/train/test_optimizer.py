"""Optimizers against torch's plain ones and numpy, clipping, and micro-batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from unetfast.config import OptimizerConfig
from unetfast.train.guard import update_weights
from unetfast.train.optimizer import build_optimizer, set_learning_rate, split_batch


def make_net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1))


def take_step(optimizer: torch.optim.Optimizer, *, clip_norm: float = 0.0) -> None:
    update_weights(optimizer, torch.amp.GradScaler("cpu", enabled=False), clip_norm=clip_norm, loss=torch.tensor(1.0))


def backward(net: nn.Module, seed: int = 0) -> None:
    inputs = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(seed))
    net(inputs).square().mean().backward()


def plain(net: nn.Module, name: str) -> torch.optim.Optimizer:
    kernels = [parameter for parameter in net.parameters() if parameter.ndim > 1]
    rest = [parameter for parameter in net.parameters() if parameter.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.05, momentum=0.8)
    if name == "rmsprop":
        return torch.optim.RMSprop(groups, lr=0.05, alpha=0.95, momentum=0.8, foreach=False)
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return kind(groups, lr=0.05, betas=(0.8, 0.9))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "rmsprop"])
def test_steps_equal_torchs_plain_optimizer(name: Any) -> None:
    net, reference = make_net(), make_net()
    config = OptimizerConfig(
        name=name, learning_rate=0.05, weight_decay=0.1, betas=(0.8, 0.9), momentum=0.8, rmsprop_alpha=0.95
    )
    optimizer, plain_optimizer = build_optimizer(net, config), plain(reference, name)
    for seed in range(5):
        backward(net, seed)
        take_step(optimizer)
        backward(reference, seed)
        plain_optimizer.step()
        plain_optimizer.zero_grad()
    for mine, theirs in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_rmsprop_is_ten_lines_of_numpy() -> None:
    """Hinton's running mean of squares, with momentum on the scaled gradient, and the L2 penalty on kernels alone."""
    net = make_net()
    config = OptimizerConfig(name="rmsprop", learning_rate=0.01, weight_decay=0.1, momentum=0.5, rmsprop_alpha=0.9)
    optimizer = build_optimizer(net, config)
    weights = [parameter.detach().double().numpy().copy() for parameter in net.parameters()]
    squares, momenta = [0.0 * weight for weight in weights], [0.0 * weight for weight in weights]
    for seed in range(4):
        backward(net, seed)
        for place, parameter in enumerate(net.parameters()):
            assert parameter.grad is not None
            gradient = parameter.grad.double().numpy() + 0.1 * (parameter.ndim > 1) * parameter.detach().double().numpy()
            squares[place] = 0.9 * squares[place] + 0.1 * gradient**2
            momenta[place] = 0.5 * momenta[place] + gradient / (squares[place] ** 0.5 + 1e-8)
            weights[place] = weights[place] - 0.01 * momenta[place]
        take_step(optimizer)
    for mine, theirs in zip(net.parameters(), weights, strict=True):
        torch.testing.assert_close(mine.detach().double(), torch.from_numpy(theirs), rtol=1e-4, atol=1e-6)


def test_decay_spares_biases_and_norms() -> None:
    net = make_net()
    groups = build_optimizer(net, OptimizerConfig(weight_decay=0.1)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(parameter.ndim == 4 for parameter in groups[0]["params"])
    assert sum(len(group["params"]) for group in groups) == len(list(net.parameters()))


def test_rate_is_set_in_every_group() -> None:
    optimizer = build_optimizer(make_net(), OptimizerConfig())
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


def test_clipping_bounds_the_norm_of_all_gradients_together() -> None:
    net = make_net()
    optimizer = build_optimizer(net, OptimizerConfig(name="sgd", learning_rate=1.0, momentum=0.0))
    before = [parameter.detach().clone() for parameter in net.parameters()]
    backward(net)
    take_step(optimizer, clip_norm=1e-3)
    moved = torch.cat([(old - new).flatten() for old, new in zip(before, net.parameters(), strict=True)])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_gradients_are_cleared() -> None:
    net = make_net()
    optimizer = build_optimizer(net, OptimizerConfig())
    backward(net)
    take_step(optimizer)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_micro_batches_are_views_in_order() -> None:
    image_NCHW = torch.arange(24, dtype=torch.uint8).view(4, 3, 1, 2)
    mask_NHW = torch.arange(8, dtype=torch.uint8).view(4, 1, 2)
    parts = list(split_batch(image_NCHW, mask_NHW, 2))
    assert len(parts) == 2
    assert torch.equal(torch.cat([image for image, _ in parts]), image_NCHW)
    assert torch.equal(torch.cat([mask for _, mask in parts]), mask_NHW)
    assert parts[1][0].data_ptr() == image_NCHW[2:].data_ptr()
