"""An exponential moving average of the weights, scored beside them.

Late in training the weights circle around a good place, and their average lies nearer to it (Polyak and Juditsky 1992; Izmailov
et al. 2018). Running statistics are not averaged: they are averages already, so those of the model are taken as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unetfast.config import EmaConfig


class WeightAverage:
    """The average of a model's weights over its steps, on the model's device.

    It costs twice the memory of the weights (the average, and as many factors, see `update`), and one pass over them a step.

    Args:
        model: on its final device; its weights are held by reference, and the average begins with their present values.
        config: decay and warm-up; `decay` above 0.
    """

    def __init__(self, model: nn.Module, config: EmaConfig) -> None:
        self._model = model
        self._config = config
        self._weights: list[Tensor] = list(model.parameters())  # each once, also where two layers share it
        self._averages = [weight.detach().clone() for weight in self._weights]
        device = self._weights[0].device
        self._flat_factors: dict[torch.dtype, Tensor] = {}
        self._factors: list[Tensor] = []
        for dtype in {weight.dtype for weight in self._weights}:
            num = sum(weight.numel() for weight in self._weights if weight.dtype == dtype)
            self._flat_factors[dtype] = torch.empty(num, dtype=dtype, device=device)
        offsets = dict.fromkeys(self._flat_factors, 0)
        for weight in self._weights:
            start, offsets[weight.dtype] = offsets[weight.dtype], offsets[weight.dtype] + weight.numel()
            flat = self._flat_factors[weight.dtype][start : offsets[weight.dtype]]
            # the strides of the weight (channels_last): only then is the update one kernel over all tensors
            self._factors.append(flat.as_strided(weight.shape, weight.stride(), flat.storage_offset()))

    def decay_at(self, step: int) -> float:
        """Share of the average that stays: min(decay, (1 + step) / (10 + step)), or `decay` without warm-up.

        Args:
            step: optimizer steps done before the one that is taken in.
        """
        return min(self._config.decay, (1 + step) / (10 + step)) if self._config.warmup else self._config.decay

    @torch.no_grad()
    def update(self, step: int, applied: Tensor) -> None:
        """Take the weights behind a step in. Does not wait for the GPU.

        Whether the step was applied is known on the device alone. So the share of the new weights is a tensor, 0 for a step
        that was not; torch's lerp over many tensors takes tensor shares only where each is as large as its weight.

        Args:
            step: optimizer steps done before this one.
            applied: bool, scalar, on the device; False leaves the average as it is, bit for bit.
        """
        share = (1 - self.decay_at(step)) * applied
        for flat in self._flat_factors.values():
            flat.copy_(share.expand_as(flat))
        torch._foreach_lerp_(self._averages, self._weights, self._factors)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average under the names of the model's `state_dict`, with the model's present running statistics.

        Tensors are not copied.
        """
        averages = {id(weight): average for weight, average in zip(self._weights, self._averages, strict=True)}
        state = self._model.state_dict(keep_vars=True)
        return {name: averages.get(id(tensor), tensor.detach()) for name, tensor in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on with the average that a checkpoint holds; its running statistics are the model's, and stand there."""
        averages = {id(weight): average for weight, average in zip(self._weights, self._averages, strict=True)}
        for name, weight in self._model.named_parameters():
            averages[id(weight)].copy_(state[name])

    def start_anew(self) -> None:
        """Let the average begin with the model's present weights."""
        with torch.no_grad():
            torch._foreach_copy_(self._averages, self._weights)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Let the model have the averaged weights for a while; behind it it has its own again, bit for bit.

        The values are exchanged in place, so a compiled model stays compiled.
        """
        with torch.no_grad():
            own = [weight.detach().clone() for weight in self._weights]
            torch._foreach_copy_(self._weights, self._averages)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._weights, own)
