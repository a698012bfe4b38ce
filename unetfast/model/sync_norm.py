"""Batch norm over the batches of all processes (SyncBN).

torch.nn.SyncBatchNorm refuses tensors on a CPU, so this one stands for every device: what two processes on a CPU prove in a
test is the code that runs on GPUs. torch.compile takes it into its graph.

Axis legend: N batch, C channels, R processes, X several things in a row.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _Normalize(torch.autograd.Function):
    """Normalise with the statistics of all processes, weigh and shift; also returns those statistics, without gradient."""

    @staticmethod
    def forward(
        ctx: Any, input_NC: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        axes = [axis for axis in range(input_NC.ndim) if axis != 1]
        num_channels = input_NC.shape[1]
        var_C, mean_C = torch.var_mean(_widen(input_NC), dim=axes, correction=0)
        count = torch.full_like(mean_C[:1], input_NC.numel() // num_channels)
        # the parts of all processes, put together as in Chan et al. 1979: sums of squares would cancel
        part = torch.cat([mean_C, var_C, count])
        parts_RX = part.new_zeros(dist.get_world_size(), len(part))
        parts_RX[dist.get_rank()] = part
        dist.all_reduce(parts_RX)  # gathers: each row has one process's part and zeros of the others
        means_RC, vars_RC, counts_R1 = torch.split(parts_RX, [num_channels, num_channels, 1], dim=1)
        total = counts_R1.sum()
        shares_R1 = counts_R1 / total
        mean_C = (means_RC * shares_R1).sum(dim=0)
        var_C = ((vars_RC + (means_RC - mean_C).square()) * shares_R1).sum(dim=0)
        ctx.save_for_backward(input_NC, weight_C, mean_C, (var_C + eps).rsqrt(), total)
        ctx.has_bias = bias_C is not None
        ctx.mark_non_differentiable(mean_C, var_C, total)
        output_NC = F.batch_norm(input_NC, mean_C, var_C, weight_C, bias_C, training=False, eps=eps)
        return output_NC, mean_C, var_C, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        # Ioffe and Szegedy 2015, section 3, with sums over the batches of all processes
        input_NC, weight_C, mean_C, inverse_std_C, total = ctx.saved_tensors
        axes = [axis for axis in range(input_NC.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(input_NC.ndim)]
        grad_NC = _widen(grads[0])
        normal_NC = (_widen(input_NC) - mean_C.view(shape)) * inverse_std_C.view(shape)
        sum_grad_C, sum_product_C = grad_NC.sum(dim=axes), (grad_NC * normal_NC).sum(dim=axes)
        sums = torch.cat([sum_grad_C, sum_product_C])
        dist.all_reduce(sums)
        mean_grad_C, mean_product_C = (sums / total).chunk(2)
        scale_C = inverse_std_C if weight_C is None else inverse_std_C * weight_C
        grad_input_NC = (grad_NC - mean_grad_C.view(shape) - normal_NC * mean_product_C.view(shape)) * scale_C.view(shape)
        grad_weight_C = None if weight_C is None else sum_product_C  # of this process's part, as every gradient of a weight
        grad_bias_C = sum_grad_C if ctx.has_bias else None
        return grad_input_NC.to(input_NC.dtype), grad_weight_C, grad_bias_C, None


def _widen(tensor: Tensor) -> Tensor:
    """Return float32, or float64 where it is that already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class SyncBatchNorm(_BatchNorm):
    """`nn.BatchNorm2d` (or 1d, 3d) whose statistics in training are those of the batches of all processes.

    Parameters, buffers, their names and the values in evaluation are those of nn.BatchNorm. Two small collectives a layer, one
    forward and one backward; statistics are computed in float32 at least.
    """

    is_synchronized = True  # its running statistics are the same in every process

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 (torch's name)
        if input.ndim < 2:
            raise ValueError(f"input has {input.ndim} dimensions: batch norm takes (N, C, ...)")

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Normalise (N, C, ...); in training a collective."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        output_NC, mean_C, var_C, total = _Normalize.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                factor: Any = self.momentum
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked.add_(1)
                    if factor is None:  # a plain average over all batches
                        factor = 1.0 / self.num_batches_tracked.float()
                unbiased_C = var_C * (total / (total - 1))
                self.running_mean.copy_(self.running_mean + factor * (mean_C - self.running_mean))
                self.running_var.copy_(self.running_var + factor * (unbiased_C - self.running_var))
        return cast(Tensor, output_NC)


def synchronize_batch_norm(module: nn.Module) -> int:
    """Replace every batch norm inside a module by one over all processes; weights and buffers are the same tensors.

    Args:
        module: changed in place; must not be a batch norm itself.

    Returns:
        How many were replaced.
    """
    num_replaced = 0
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and not isinstance(child, SyncBatchNorm):
            setattr(module, name, _synchronized(child))
            num_replaced += 1
        else:
            num_replaced += synchronize_batch_norm(child)
    return num_replaced


def _synchronized(norm: _BatchNorm) -> SyncBatchNorm:
    twin = SyncBatchNorm(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    twin.weight, twin.bias = norm.weight, norm.bias
    twin.running_mean, twin.running_var = norm.running_mean, norm.running_var
    twin.num_batches_tracked = norm.num_batches_tracked
    return twin.train(norm.training)
