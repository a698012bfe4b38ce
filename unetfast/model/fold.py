"""A trained net made ready for use: batch norm folded into convolutions, weights in the number format that they are used in.

Both are what evaluation computes, with less work in each call: one pass less over each activation, and no cast of all weights.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from unetfast.model.cpu import TransposedConv


def fold_batch_norm(model: nn.Module) -> int:
    """Fold every batch norm that directly follows a convolution into it (a norm's running statistics are constants by now).

    The logits are the same but for rounding. A folded model cannot be trained, and its weights have other values under other
    names: it is for use, not to be saved.

    Args:
        model: changed in place, in evaluation mode. Only neighbours within an `nn.Sequential` that runs its parts in order are
            sure to be computed one behind the other, so only these are folded: all of a plain U-Net's, none of a ResNet's
            own. Modules with hooks (weight norm among them) are left as they are.

    Returns:
        How many were folded.

    Raises:
        ValueError: the model is in training mode.
    """
    if model.training:
        raise ValueError("batch norm is folded in evaluation mode alone: in training it takes its statistics from the batch")
    num_folded = 0
    for part in [module for module in model.modules() if type(module).forward is nn.Sequential.forward]:
        assert isinstance(part, nn.Sequential)
        for place, (conv, norm) in enumerate(pairwise(list(part))):
            if not (type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d) or _has_hooks(conv) or _has_hooks(norm):
                continue
            if norm.track_running_stats:
                part[place], part[place + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
                num_folded += 1
    return num_folded


def cast_convolutions(model: nn.Module, dtype: torch.dtype) -> int:
    """Keep the weights of convolutions as autocast would cast them in each call: the same logits, bit for bit.

    Args:
        model: changed in place; it is to be called under autocast in `dtype`. Modules with hooks are left as they are.
        dtype: torch.bfloat16 or torch.float16.

    Returns:
        How many modules were cast.
    """
    kinds = (nn.Conv2d, TransposedConv)
    convolutions = [part for part in model.modules() if type(part) in kinds and not _has_hooks(part)]
    for part in convolutions:
        part.to(dtype)
    return len(convolutions)


def _has_hooks(module: nn.Module) -> bool:
    """Whether something is called around its forward pass, or computes its weights anew each time (a parametrization)."""
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    return any(hooks) or hasattr(module, "parametrizations")
