"""Two steps of the decoder with gradients that are cheap on a CPU; forward, and on other devices, they are torch's own.

Axis legend: N batch, C channels, H height, W width.

oneDNN computes the gradient of a transposed convolution's bias about ten times as slowly as those of its weights and input
together, if asked for all three at once. And the gradient of a concatenation is two views of every other run of channels: what
reads them, the sum of a skip's two gradients first of all, takes four times as long as with dense memory. A compiler sees
torch's operations, which it knows better.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class TransposedConv(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d` without padding, in one group, without gaps: the same parameters, the same values.

    In a 16-bit format the bias's gradient is summed apart, in another order; those of weights and input keep their bits. In
    float32 all is torch's own.

    Args:
        in_channels: channels that come in.
        out_channels: channels of the result.
        kernel_size: side of the kernel.
        stride: factor by which height and width grow.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> None:
        # no other option can be given: the backward pass below knows none
        super().__init__(in_channels, out_channels, kernel_size=kernel_size, stride=stride)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:  # noqa: A002 (torch's name)
        """Enlarge (N, C, H, W); under autocast in its dtype."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        if output_size is not None or self.bias is None or dtype.itemsize != 2 or not _pays(input):
            return super().forward(input, output_size)
        weight, bias = self.weight.to(dtype), self.bias.to(dtype)
        enlarged: Tensor = _TransposedConv.apply(input.to(dtype), weight, bias, self.stride)
        return enlarged


class _TransposedConv(torch.autograd.Function):
    """What it computes backwards are torch's own operations, so it can be differentiated twice."""

    @staticmethod
    def forward(input_NCHW: Tensor, weight: Tensor, bias_C: Tensor, stride: tuple[int, int]) -> Tensor:
        return nn.functional.conv_transpose2d(input_NCHW, weight, bias_C, stride)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004 (torch's signature)
        input_NCHW, weight, _, ctx.stride = inputs
        ctx.save_for_backward(input_NCHW, weight)

    @staticmethod
    def backward(ctx: Any, grad_NCHW: Tensor) -> tuple[Tensor | None, ...]:
        input_NCHW, weight = ctx.saved_tensors
        wanted = [*ctx.needs_input_grad[:2], False]
        grad_input_NCHW, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad_NCHW, input_NCHW, weight, None, ctx.stride, [0, 0], [1, 1], True, [0, 0], 1, wanted
        )
        grad_bias_C = grad_NCHW.sum(dim=(0, 2, 3)) if ctx.needs_input_grad[2] else None
        return grad_input_NCHW, grad_weight, grad_bias_C, None


def concatenate(skip_NCHW: Tensor, up_NCHW: Tensor) -> Tensor:
    """Put a skip's channels and those of the level below side by side; the gradients are dense."""
    if not _pays(up_NCHW) or skip_NCHW.dtype != up_NCHW.dtype:
        return torch.cat([skip_NCHW, up_NCHW], dim=1)
    side_by_side: Tensor = _Concatenate.apply(skip_NCHW, up_NCHW)
    return side_by_side


class _Concatenate(torch.autograd.Function):
    @staticmethod
    def forward(skip_NCHW: Tensor, up_NCHW: Tensor) -> Tensor:
        return torch.cat([skip_NCHW, up_NCHW], dim=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004 (torch's signature)
        ctx.num_channels = inputs[0].shape[1]

    @staticmethod
    def backward(ctx: Any, grad_NCHW: Tensor) -> tuple[Tensor | None, ...]:
        is_last = grad_NCHW.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if is_last else torch.contiguous_format
        num = ctx.num_channels
        parts = (grad_NCHW[:, :num], grad_NCHW[:, num:])  # of a frozen encoder the first is not wanted
        return tuple(
            part.contiguous(memory_format=layout) if wanted else None
            for part, wanted in zip(parts, ctx.needs_input_grad, strict=True)
        )


def _pays(tensor: Tensor) -> bool:
    """Say whether a gradient will be computed on a CPU, operation by operation."""
    return tensor.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()
