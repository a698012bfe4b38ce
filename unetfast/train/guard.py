"""Keeps one bad step from spoiling a run: a loss or gradient that is not finite changes nothing.

Whether a step is bad is known on the device alone, and asking would wait for the GPU. So the update is gated there: a fused
optimizer takes a flag `found_inf` (made for torch's `GradScaler`) and leaves weights, moments and its count of steps as they
are; running statistics are copied before the step and chosen by `torch.where` behind it. The host learns of it later: flag,
loss and gradient norm travel to pinned memory, and are read `LAG_STEPS` steps behind on a GPU, at once on a CPU. Until then
the sample ids of those steps are kept. The lag is fixed, so that every rank of a run reads the same flag at the same step.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

LAG_STEPS = 8  # on a GPU: more than the host can run ahead, so that reading an old flag never waits


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a step; scalars on the device.

    Args:
        applied: whether the weights changed, bool. An overflow of fp16 does not change them, and is not bad.
        bad: whether loss or gradient were not finite, bool.
        loss: of the step, float.
        gradient_norm: L2 norm of all gradients before clipping, float.
    """

    applied: Tensor
    bad: Tensor
    loss: Tensor
    gradient_norm: Tensor


@dataclass(frozen=True, slots=True)
class BadStep:
    """A step that was not applied.

    Args:
        step: its number, from 1.
        loss: of the step, may be nan or infinite.
        gradient_norm: before clipping, may be nan or infinite.
        sample_ids: places in the split's index, of this rank's part of the batch.
    """

    step: int
    loss: float
    gradient_norm: float
    sample_ids: np.ndarray


def update_weights(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, *, clip_norm: float, loss: Tensor
) -> Outcome:
    """Clip the gradients by their common norm, take one step unless it would be bad, clear the gradients.

    With fp16 gradients overflow now and then; the scaler then lowers its scale, and the step is skipped but not bad. Where
    the scale is down to 1, the scaler cannot be the reason any more. Does not wait for the GPU.

    Args:
        optimizer: its gradients are the sum over the micro-batches, times the scaler's scale.
        scaler: disabled unless the number format is fp16.
        clip_norm: largest L2 norm of all gradients together; 0: no clipping.
        loss: of the whole step, detached, float scalar, the same on every rank.
    """
    scaler.unscale_(optimizer)
    weights = [weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None]
    norm = torch.nn.utils.get_total_norm([weight.grad for weight in weights])
    if clip_norm > 0:
        torch.nn.utils.clip_grads_with_norm_(weights, clip_norm, norm)
    finite = torch.isfinite(norm) & torch.isfinite(loss)
    scale = scaler.scale(torch.ones_like(norm)) if scaler.is_enabled() else torch.ones_like(norm)
    bad = ~torch.isfinite(loss) | (~torch.isfinite(norm) & (scale <= 1))
    _step_if(optimizer, finite)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return Outcome(finite, bad, loss, norm)


def _step_if(optimizer: torch.optim.Optimizer, wanted: Tensor) -> None:
    """Take a step if a flag on the device (bool, scalar) is True; else leave weights and state as they are."""
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        prepare_momentum(optimizer)
        gated: Any = optimizer
        gated.grad_scale, gated.found_inf = None, (~wanted).to(torch.float32)
        try:
            optimizer.step()
        finally:
            del gated.grad_scale, gated.found_inf
    elif wanted.device.type == "cpu":
        if wanted:
            optimizer.step()
    else:
        step_and_undo(optimizer, wanted)


def prepare_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give SGD its momentum of zeros before its first step.

    torch allocates it in the first step and leaves it uninitialised where that step is skipped. With zeros the first step
    computes the same: 0 * momentum + gradient.
    """
    for group in optimizer.param_groups:
        if isinstance(optimizer, torch.optim.SGD) and group["momentum"]:
            for weight in group["params"]:
                if optimizer.state[weight].get("momentum_buffer") is None and weight.grad is not None:
                    optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)


@torch.no_grad()
def step_and_undo(optimizer: torch.optim.Optimizer, wanted: Tensor) -> None:
    """Take a step of an optimizer without a gate of its own, and put everything back where the flag is False.

    Costs a copy of weights and state, and a kernel for each tensor. State on another device than the flag (a count of steps
    that its optimizer does not compute with) is left alone.

    Args:
        optimizer: its state begins with zeros, as that of RMSprop does.
        wanted: bool, scalar, on the device of the weights.
    """
    former = [(tensor, tensor.clone()) for tensor in _tensors_of(optimizer, wanted.device)]
    known = {id(tensor) for tensor, _ in former}
    optimizer.step()
    for tensor, before in former:
        tensor.copy_(torch.where(wanted, tensor, before))
    for tensor in _tensors_of(optimizer, wanted.device):
        if id(tensor) not in known:
            tensor.copy_(torch.where(wanted, tensor, torch.zeros_like(tensor)))


def _tensors_of(optimizer: torch.optim.Optimizer, device: torch.device) -> list[Tensor]:
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state = [part for weight in weights for part in optimizer.state.get(weight, {}).values()]
    return [tensor for tensor in (*weights, *state) if isinstance(tensor, Tensor) and tensor.device == device]


class RunningStatistics:
    """A copy of a model's buffers (batch norm's running statistics) from before a step, to be put back.

    One flat tensor for each dtype, so that copying and choosing are a few kernels, not one for each layer.

    Args:
        model: its buffers are held by reference.
    """

    def __init__(self, model: nn.Module) -> None:
        self._buffers: dict[torch.dtype, list[Tensor]] = {}
        for buffer in model.buffers():
            self._buffers.setdefault(buffer.dtype, []).append(buffer)
        self._saved: dict[torch.dtype, Tensor] = {}

    @torch.no_grad()
    def save(self) -> None:
        """Copy the buffers. Does not wait for the GPU."""
        self._saved = {dtype: _flatten(buffers) for dtype, buffers in self._buffers.items()}

    @torch.no_grad()
    def put_back(self, wanted: Tensor | None = None) -> None:
        """Set the buffers to what was saved. Does not wait for the GPU.

        Args:
            wanted: bool, scalar, on their device: only if it is True. None is True.
        """
        for dtype, buffers in self._buffers.items():
            saved = self._saved[dtype]
            flat = saved if wanted is None else torch.where(wanted, saved, _flatten(buffers))
            parts = torch.split(flat, [buffer.numel() for buffer in buffers])
            torch._foreach_copy_(buffers, [part.view(buffer.shape) for part, buffer in zip(parts, buffers, strict=True)])


def _flatten(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


@dataclass(frozen=True, slots=True)
class _Note:
    step: int
    sample_ids: np.ndarray
    numbers: Tensor  # bad, loss, gradient norm; on the host once `arrived` is past
    arrived: torch.cuda.Event | None


class StepGuard:
    """Undoes what a bad step did beside the optimizer, and tells the host of it.

    Args:
        model: whose running statistics are kept.
        device: where it is.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._statistics = RunningStatistics(model)
        self._lag = LAG_STEPS if device.type == "cuda" else 0
        self._notes: deque[_Note] = deque()
        self.num_in_row = 0  # bad steps up to the last one read
        self.most_in_row = 0  # the longest such row since `start_row`
        self.num_bad = 0  # of the whole run

    def begin(self) -> None:
        """Before a step's first forward pass. Does not wait for the GPU."""
        self._statistics.save()

    def restart(self) -> None:
        """Undo the forward passes of a step that is done again. Does not wait for the GPU."""
        self._statistics.put_back()

    def settle(self, step: int, sample_ids: np.ndarray, outcome: Outcome) -> None:
        """Behind the update: undo the forward passes of a bad step, and send its flag to the host. Does not wait.

        Args:
            step: number of the step, from 1.
            sample_ids: of the batch; copied.
            outcome: of the update.
        """
        self._statistics.put_back(outcome.bad)
        numbers = torch.stack([part.to(torch.float64) for part in (outcome.bad, outcome.loss, outcome.gradient_norm)])
        arrived = None
        if numbers.device.type == "cuda":
            host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            numbers = host.copy_(numbers, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        self._notes.append(_Note(step, sample_ids.copy(), numbers, arrived))

    def read(self, *, all_steps: bool = False) -> list[BadStep]:
        """Return the bad steps that were not returned before, in order.

        Args:
            all_steps: also the last `LAG_STEPS`; waits for the GPU.
        """
        found = []
        while len(self._notes) > (0 if all_steps else self._lag):
            note = self._notes.popleft()
            if note.arrived is not None:
                note.arrived.synchronize()
            bad, loss, gradient_norm = note.numbers.tolist()
            self.num_in_row = self.num_in_row + 1 if bad else 0
            self.most_in_row = max(self.most_in_row, self.num_in_row)
            if bad:
                self.num_bad += 1
                found.append(BadStep(note.step, loss, gradient_norm, note.sample_ids))
        return found

    def start_row(self) -> None:
        """Count bad steps in a row anew."""
        self.num_in_row = self.most_in_row = 0

    def state_dict(self) -> dict[str, int]:
        """Return the counts of the steps that were read; `read` all of them first."""
        return {"num_in_row": self.num_in_row, "num_bad": self.num_bad}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.num_in_row = self.most_in_row = state.get("num_in_row", 0)
        self.num_bad = state.get("num_bad", 0)
