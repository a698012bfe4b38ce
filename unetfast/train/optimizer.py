"""The optimizer, and one optimizer step cut into micro-batches.

Axis legend: N batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from unetfast.config import OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build Adam, AdamW or SGD, fused into one kernel, or RMSprop, which torch has no fused kernel for.

    Weight decay acts on convolution kernels alone, not on biases and norm parameters: decaying these changes what the net can
    say without making it simpler (He et al. 2018, "Bag of Tricks").

    Args:
        model: on its final device; its parameters are held by reference.
        config: name and numbers. `learning_rate` is the base; the schedule sets each step's.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, fused=True)
    if config.name == "rmsprop":
        return torch.optim.RMSprop(groups, lr=config.learning_rate, alpha=config.rmsprop_alpha, momentum=config.momentum)
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the rate of the next step; a plain number, so nothing waits for the GPU."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def split_batch(image_NCHW: Tensor, mask_NHW: Tensor, num_parts: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut a batch into equal micro-batches; views, in order.

    Args:
        image_NCHW: any dtype; N divisible by `num_parts`.
        mask_NHW: the same N.
        num_parts: micro-batches of the optimizer step.
    """
    yield from zip(image_NCHW.tensor_split(num_parts), mask_NHW.tensor_split(num_parts), strict=True)
