"""The model rung: training steps on one batch that lies on the device already, so that data cost nothing.

Beside images/s it tells how far a step is from what the device can do: its FLOPs against the measured matrix rate, and all of
its operations against the layer-by-layer roofline.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from unetfast.bench.harness import percentile
from unetfast.bench.machine import measure_machine
from unetfast.bench.roofline import describe_roofline, draw_roofline, find_next_limit
from unetfast.bench.rung import Round, RungResult, measure_rungs
from unetfast.bench.trace import NotTraceableError, trace_step
from unetfast.bench.train import StepRung
from unetfast.loader.batch import Batch
from unetfast.train.run import Run
from unetfast.train.setup import count_parameters


def repeat_batch(batch: Batch) -> Iterator[Batch]:
    """Hand out one batch for ever, in memory of its own."""
    kept = replace(batch, image_NCHW=batch.image_NCHW.clone(), mask_NHW=batch.mask_NHW.clone())
    while True:
        yield kept


class ModelRung(StepRung):
    """Optimizer steps of a run on one resident batch.

    Args:
        run: its weights go on changing; that changes no step's cost.
        batch: of `loader.batch_size` images on the run's device; it is copied.
        name: of the rung.
        traced: whether `describe` counts FLOPs and draws the roofline, which takes three steps and a second or two.
    """

    def __init__(self, run: Run, batch: Batch, *, name: str = "model", traced: bool = True) -> None:
        self._batch = next(batches := repeat_batch(batch))
        self._traced = traced
        self._step_s: list[float] = []
        super().__init__(name, run, batches)

    def run_round(self) -> Round:
        """Train on the batch as often as the warm-up has settled; see `Rung`."""
        took = super().run_round()
        self._step_s.append(took.figures["step_ms"] / 1000)
        # it waits for nobody: what the clock calls waiting is the call of a generator
        return replace(took, figures={"step_ms": took.figures["step_ms"]})

    def describe(self) -> dict[str, Any]:
        """Tell what a step is, and after the last round what it does and how near it is to its limits.

        Returns:
            What `StepRung` tells; `parameters`; the figures of `judge_step`. Where a step can't be counted, these are missing
            and `not_counted` says why.
        """
        facts = super().describe() | {"parameters": count_parameters(self.run.model)}
        if not (self._traced and self._step_s):
            return facts
        try:
            return facts | judge_step(self.run, self._batch, percentile(self._step_s, 0.5))
        except NotTraceableError as error:
            return facts | {"not_counted": str(error)}


def judge_step(run: Run, batch: Batch, step_s: float) -> dict[str, Any]:
    """Hold a measured step against what its device can do. Waits for the GPU.

    Args:
        run: that has taken a step.
        batch: as it takes them.
        step_s: seconds of a step.

    Returns:
        `gflop_forward_per_image`, `gflop_step_per_image` (a multiplication and an addition are two); measured now:
        `matrix_tflop_per_s` (of the dtype that does most of the arithmetic), `bandwidth_gb_per_s`, `machine` (at which sizes);
        `roofline_images_per_s` and `share_of_roofline_pct`, in the count that fits the run (compiled or not);
        `share_of_matrix_rate_pct`; `roofline`, layer by layer; `next_limit`, a phrase, and `limits`, its figures.

    Raises:
        NotTraceableError: its operations can't be counted, for want of memory.
    """
    trace = trace_step(run, batch)
    flop_of: Counter[torch.dtype] = Counter()
    for op in trace.ops:
        flop_of[op.dtype] += op.flop
    machine = measure_machine(run.device, [dtype for dtype, flop in flop_of.items() if flop])
    roofline = draw_roofline(trace, machine, is_fused=run.compiled)
    arithmetic_s = sum(bound.arithmetic_s for bound in roofline.bounds)
    limit = find_next_limit(roofline, step_s)
    return {
        "gflop_forward_per_image": _round(trace.forward_flop / trace.num_images / 1e9),
        "gflop_step_per_image": _round(trace.flop / trace.num_images / 1e9),
        "matrix_tflop_per_s": _round(machine.rate(max(flop_of, key=lambda dtype: flop_of[dtype])) / 1e12),
        "bandwidth_gb_per_s": _round(machine.copy_bytes_per_s / 1e9),
        "machine": machine.to_json(),
        "roofline_images_per_s": _round(trace.num_images / roofline.seconds),
        "share_of_matrix_rate_pct": _round(100 * arithmetic_s / step_s),
        "share_of_roofline_pct": _round(100 * roofline.seconds / step_s),
        "roofline": describe_roofline(roofline, trace.num_images),
        "next_limit": limit.text,
        "limits": limit.to_json(),
    }


def measure_model(run: Run, batch: Batch, *, rounds: int, seconds: float) -> RungResult:
    """Measure the model rung alone.

    Args:
        run: of `build_run`.
        batch: of its loader.
        rounds: of the measurement.
        seconds: of a round, about.
    """
    return measure_rungs({"model": ModelRung(run, batch)}, rounds=rounds, seconds=seconds, device=run.device)["model"]


def _round(value: float) -> float:
    return float(f"{value:.4g}")
