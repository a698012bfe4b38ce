"""Sums of a run in progress, kept on the device, and the clocks of its steps.

Nothing here waits for the GPU but the methods named `read_`, which the loop calls at log time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unetfast.distributed import World


class Meter:
    """Mean loss since the last log row, and loss and confusion matrix of the epoch so far.

    Its state is part of a checkpoint, so that a resumed epoch reports what an undisturbed one would.

    Args:
        num_classes: K.
        device: where losses and predictions are.
        world: the processes, each of which adds its own part of every batch; what is read is of all. None: this one alone.
    """

    def __init__(self, num_classes: int, device: torch.device, world: World | None = None) -> None:
        self._world = world or World()
        self._window_loss = torch.zeros((), dtype=torch.float64, device=device)
        self._epoch_loss = torch.zeros((), dtype=torch.float64, device=device)
        self._epoch_confusion_KK = torch.zeros((num_classes, num_classes), dtype=torch.int64, device=device)
        # counted on the device: whether a step enters is known there alone
        self._window_steps = torch.zeros((), dtype=torch.int64, device=device)
        self._epoch_steps = torch.zeros((), dtype=torch.int64, device=device)

    def add_step(self, loss: Tensor, confusion_KK: Tensor, counted: Tensor) -> None:
        """Add one optimizer step.

        Args:
            loss: of the step, float scalar, detached; may be nan where `counted` is False.
            confusion_KK: its pixels, int64, (K, K).
            counted: bool, scalar; a step that was not applied enters nothing.
        """
        loss = torch.where(counted, loss, 0.0)
        self._window_loss += loss
        self._epoch_loss += loss
        self._epoch_confusion_KK += confusion_KK * counted
        self._window_steps += counted
        self._epoch_steps += counted

    def read_window(self) -> float:
        """Return the mean loss of the steps since the last call, nan if none counts, and begin anew.

        A collective. Waits for the GPU.
        """
        loss = _divide(self._world.mean(self._window_loss), self._window_steps)
        self._window_loss.zero_()
        self._window_steps.zero_()
        return loss

    def read_epoch(self) -> tuple[float, Tensor]:
        """Return mean loss and confusion matrix (int64, (K, K), on the CPU) of the epoch so far.

        A collective. Waits for the GPU.
        """
        loss = _divide(self._world.mean(self._epoch_loss), self._epoch_steps)
        return loss, self._world.sum(self._epoch_confusion_KK).cpu().clone()

    def start_epoch(self) -> None:
        self._epoch_loss.zero_()
        self._epoch_confusion_KK.zero_()
        self._epoch_steps.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return all sums, those of all processes together; tensors on the CPU. A collective. Waits for the GPU."""
        return {
            "window_loss": self._world.mean(self._window_loss).cpu().clone(),
            "window_steps": int(self._window_steps),
            "epoch_loss": self._world.mean(self._epoch_loss).cpu().clone(),
            "epoch_steps": int(self._epoch_steps),
            "epoch_confusion": self._world.sum(self._epoch_confusion_KK).cpu().clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._window_loss.copy_(state["window_loss"])
        self._epoch_loss.copy_(state["epoch_loss"])
        self._epoch_confusion_KK.copy_(state["epoch_confusion"])
        if not self._world.is_main:  # the sum of before is counted once
            self._epoch_confusion_KK.zero_()
        self._window_steps.fill_(state["window_steps"])
        self._epoch_steps.fill_(state["epoch_steps"])


def _divide(total: Tensor, num: Tensor) -> float:
    """Divide on the host; nan where there is nothing."""
    return total.item() / int(num) if num else math.nan


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast the steps between two log rows were; pauses (validation, checkpoints, pictures) are not in it.

    Args:
        images_per_s: training images per second.
        data_wait_pct: share of the time in which training waited for a batch, percent.
        step_s: seconds per optimizer step.
    """

    images_per_s: float
    data_wait_pct: float
    step_s: float


class StepClock:
    """Times steps, waits and pauses apart.

    On the CPU, waiting is the time spent in asking for the next batch. On a GPU it is the time in which the GPU stood idle
    between one step's last kernel and the next step's first: the host asks early, so its own waiting costs nothing while
    the GPU still works. Events on the stream measure that without a wait.

    Args:
        device: where the steps run.
        now: a clock in seconds.
    """

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        self._device = device
        self._now = now
        self._restart()

    def _restart(self) -> None:
        self._began_s = self._now()
        self._wait_s = 0.0
        self._paused_s = 0.0
        self._num_steps = 0
        self._gaps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._last_end: torch.cuda.Event | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the request for a batch."""
        began_s = self._now()
        yield
        if self._device.type == "cuda":
            start = self._mark()
            if self._last_end is not None:
                self._gaps.append((self._last_end, start))
        else:
            self._wait_s += self._now() - began_s

    def end_step(self) -> None:
        """Behind a step's last kernel."""
        self._num_steps += 1
        if self._device.type == "cuda":
            self._last_end = self._mark()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Around work that is not training."""
        began_s = self._now()
        yield
        self._paused_s += self._now() - began_s
        self._last_end = None

    def _mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event

    def read(self, batch_size: int) -> Speed:
        """Return the speed since the last call, and begin anew. Waits for the GPU.

        Args:
            batch_size: training images per optimizer step.
        """
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            self._wait_s = sum(end.elapsed_time(start) for end, start in self._gaps) / 1000
        total_s = max(self._now() - self._began_s - self._paused_s, 1e-9)
        num_steps = max(1, self._num_steps)
        speed = Speed(self._num_steps * batch_size / total_s, min(100.0, 100 * self._wait_s / total_s), total_s / num_steps)
        self._restart()
        return speed
