"""The training rung: the steps of `unetfast train` on batches from anywhere, the loader's for this rung.

The model rung is the same on one batch that lies on the device already (model.py); what train has less than model is the price
of the data.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

from unetfast.bench.rung import Round, Stopwatch, steps_of
from unetfast.loader.batch import Batch
from unetfast.train.meter import StepClock
from unetfast.train.run import Run
from unetfast.train.step import train_step

COMPILING_STEPS = 2  # the first compiles; the second meets gradients and moments that are there already
TIMED_STEPS = 6  # at most, to learn how long a step is


class StepRung:
    """Optimizer steps of a run, on one stream of batches.

    Args:
        name: of the rung.
        run: its weights go on changing; that changes no step's cost.
        batches: endless, of `loader.batch_size` images.
        num_made_ahead: batches that lie ready when a round begins; so many are dropped before the clock starts, so that none
            which was made outside of the round counts in it.
    """

    def __init__(self, name: str, run: Run, batches: Iterator[Batch], *, num_made_ahead: int = 0) -> None:
        self.name = name
        self.run = run
        self._batches = batches
        self._num_made_ahead = num_made_ahead
        self._num_steps = 1

    def warm_up(self, seconds: float) -> None:
        """Compile, then time a few steps; see `Rung`."""
        for _ in range(COMPILING_STEPS):
            train_step(self.run, next(self._batches))
        self._wait()
        began_s, num_timed = time.perf_counter(), 0
        while num_timed == 0 or (num_timed < TIMED_STEPS and time.perf_counter() - began_s < seconds):
            train_step(self.run, next(self._batches))
            self._wait()
            num_timed += 1
        self._num_steps = steps_of(seconds, (time.perf_counter() - began_s) / num_timed)

    def run_round(self) -> Round:
        """Train on so many batches as the warm-up has settled; see `Rung`."""
        for _ in range(self._num_made_ahead):
            next(self._batches)
        train_step(self.run, next(self._batches))
        self._wait()
        watch, clock = Stopwatch(), StepClock(self.run.device)
        for _ in range(self._num_steps):
            with clock.waiting():
                batch = next(self._batches)
            train_step(self.run, batch)
            clock.end_step()
        speed = clock.read(self.run.config.loader.batch_size)  # waits for the GPU
        wall_s, core_s = watch.read()
        figures = {"data_wait_pct": speed.data_wait_pct, "step_ms": 1000 * speed.step_s}
        return Round(self._num_steps * self.run.config.loader.batch_size, wall_s, core_s, figures)

    def describe(self) -> dict[str, Any]:
        """Tell what a step is; see `Rung`."""
        run = self.run
        height, width = run.config.loader.size_hw
        return {
            "steps_per_round": self._num_steps,
            "batch_size": run.config.loader.batch_size,
            "accumulation": run.accumulation,
            "size_hw": [height, width],
            "amp": run.amp.name,
            "compiled": run.compiled,
            "channels_last": run.config.train.channels_last,
            "device": str(run.device),
            "threads": torch.get_num_threads(),
        }

    def _wait(self) -> None:
        if self.run.device.type == "cuda":
            torch.cuda.synchronize(self.run.device)
