"""Optimizers against torch's plain ones, clipping, and micro-batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from unetfast.config import OptimizerConfig
from unetfast.train.optimizer import build_optimizer, set_learning_rate, split_batch, update_weights


def make_net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1))


def no_scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", enabled=False)


def backward(net: nn.Module, seed: int = 0) -> None:
    inputs = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(seed))
    net(inputs).square().mean().backward()


def plain(net: nn.Module, name: str) -> torch.optim.Optimizer:
    kernels = [parameter for parameter in net.parameters() if parameter.ndim > 1]
    rest = [parameter for parameter in net.parameters() if parameter.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.05, momentum=0.8)
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return kind(groups, lr=0.05, betas=(0.8, 0.9))


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_steps_equal_torchs_plain_optimizer(name: Any) -> None:
    net, reference = make_net(), make_net()
    config = OptimizerConfig(name=name, learning_rate=0.05, weight_decay=0.1, betas=(0.8, 0.9), momentum=0.8)
    optimizer, plain_optimizer = build_optimizer(net, config), plain(reference, name)
    for seed in range(5):
        backward(net, seed)
        update_weights(optimizer, no_scaler(), clip_norm=0)
        backward(reference, seed)
        plain_optimizer.step()
        plain_optimizer.zero_grad()
    for mine, theirs in zip(net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


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
    update_weights(optimizer, no_scaler(), clip_norm=1e-3)
    moved = torch.cat([(old - new).flatten() for old, new in zip(before, net.parameters(), strict=True)])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_gradients_are_cleared() -> None:
    net = make_net()
    optimizer = build_optimizer(net, OptimizerConfig())
    backward(net)
    update_weights(optimizer, no_scaler(), clip_norm=0)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_micro_batches_are_views_in_order() -> None:
    image_NCHW = torch.arange(24, dtype=torch.uint8).view(4, 3, 1, 2)
    mask_NHW = torch.arange(8, dtype=torch.uint8).view(4, 1, 2)
    parts = list(split_batch(image_NCHW, mask_NHW, 2))
    assert len(parts) == 2
    assert torch.equal(torch.cat([image for image, _ in parts]), image_NCHW)
    assert torch.equal(torch.cat([mask for _, mask in parts]), mask_NHW)
    assert parts[1][0].data_ptr() == image_NCHW[2:].data_ptr()
