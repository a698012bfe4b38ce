"""Where the time of a training step goes: a trace for a viewer, and the ten dearest kernels by name.

The trace is Chrome's format; https://ui.perfetto.dev and chrome://tracing open it, gzipped as it is.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, profile, record_function

from unetfast.bench.harness import format_table
from unetfast.errors import UserError
from unetfast.loader.batch import Batch
from unetfast.train.run import Run
from unetfast.train.step import train_step

NUM_KERNELS = 10
STEPS = 3  # in the trace
LEAD_IN_STEPS = 2  # before it: compilation, and batches that lay ready
_STEP, _WAIT = "unetfast: training step", "unetfast: wait for a batch"
# what Kineto, the profiler's library, writes to stderr and nobody can act on: marks of its own, and that there is no GPU
_KINETO_NOTES = re.compile(rb"USDT:.*SyncActivityProfilerHandler|ERROR:.*gpuGetDeviceCount failed")
_SHOWN = 72  # characters of a kernel's name in the table; the record has it whole


def run_profile(run: Run, batches: Iterator[Batch], path: Path) -> dict[str, Any]:
    """Profile a few training steps.

    Args:
        run: its weights go on changing.
        batches: of its loader; endless.
        path: of the trace, ending in ".json.gz" or ".json"; an older one is replaced.

    Returns:
        `trace`, the file; `steps`; `device`; `step_ms`, mean wall time of a step with the profiler at work (which slows small
        kernels down); `kernel_ms`, time of all kernels a step: of the GPU's, or on a CPU of its operators without those that
        they call; `kernels`, the dearest: `name` (on a CPU with the shapes that went in), `calls_per_step`, `ms_per_step`,
        `share_pct` of `kernel_ms`.

    Raises:
        UserError: the trace cannot be written.
    """
    on_gpu = run.device.type == "cuda"
    for _ in range(LEAD_IN_STEPS):
        train_step(run, next(batches))
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]
    _wait(run.device)
    with _without_kineto_notes():
        with profile(activities=activities, record_shapes=True, acc_events=True) as profiler:
            began_s = time.perf_counter()
            for _ in range(STEPS):
                with record_function(_WAIT):
                    batch = next(batches)
                with record_function(_STEP):
                    train_step(run, batch)
            _wait(run.device)
            wall_s = time.perf_counter() - began_s
        _write_trace(profiler, path)
    events = profiler.key_averages(group_by_input_shape=not on_gpu)
    kernels = _list_kernels(events, on_gpu=on_gpu)
    return {
        "trace": str(path),
        "steps": STEPS,
        "device": run.device.type,
        "step_ms": _round(1000 * wall_s / STEPS),
        "kernel_ms": _round(sum(kernel["ms_per_step"] for kernel in kernels)),
        "kernels": kernels[:NUM_KERNELS],
    }


@contextmanager
def _without_kineto_notes() -> Iterator[None]:
    """Hold back what is written to the process's stderr, and hand it on at the end without Kineto's notes."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as caught:
        stderr = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            rest = [line for line in caught.read().splitlines(keepends=True) if not _KINETO_NOTES.match(line)]
            os.write(2, b"".join(rest))


def _write_trace(profiler: profile, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            path.unlink()  # the profiler itself says nothing where it may not write
        profiler.export_chrome_trace(str(path))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{path}: the profiler's trace cannot be written ({error}); take another --json file or folder"
        ) from None
    if not path.is_file():
        raise UserError(f"{path}: the profiler has written no trace; take another --json file or folder")


def _list_kernels(events: Sequence[Any], *, on_gpu: bool) -> list[dict[str, Any]]:
    """Put kernels in order of their time, the dearest first; our own marks are left out."""
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    found = []
    for event in events:
        if event.device_type != wanted or event.key in (_STEP, _WAIT):
            continue
        took_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if took_us > 0:
            name = event.key if on_gpu else f"{event.key}{_name_shapes(event.input_shapes)}"
            found.append({"name": name, "calls_per_step": _round(event.count / STEPS), "ms_per_step": took_us / 1000 / STEPS})
    total_ms = sum(kernel["ms_per_step"] for kernel in found)
    for kernel in found:
        kernel["share_pct"] = _round(100 * kernel["ms_per_step"] / total_ms)
        kernel["ms_per_step"] = _round(kernel["ms_per_step"])
    return sorted(found, key=lambda kernel: -kernel["ms_per_step"])


def _name_shapes(shapes: Sequence[Any]) -> str:
    """Write the shapes of the tensors that went in, of more than one dimension."""
    named = ["x".join(map(str, shape)) for shape in shapes if len(shape) > 1 and all(isinstance(side, int) for side in shape)]
    return f" ({', '.join(named)})" if named else ""


def format_profile(record: dict[str, Any]) -> str:
    """Write a table for people from what `run_profile` returned."""
    if not record["kernels"]:
        return (
            "profile: the profiler has recorded no kernels; on a GPU its counters may be for administrators alone "
            "(NVIDIA driver option NVreg_RestrictProfilingToAdminUsers=0)"
        )
    what = "GPU kernel" if record["device"] == "cuda" else "operator (shapes that go in)"
    rows = [["share %", "ms a step", "calls a step"]]
    rows += [[f"{kernel[name]:.3g}" for name in ("share_pct", "ms_per_step", "calls_per_step")] for kernel in record["kernels"]]
    names = [what, *(_shorten(kernel["name"]) for kernel in record["kernels"])]
    lines = format_table([[name, *row] for name, row in zip(names, rows, strict=True)])
    share = sum(kernel["share_pct"] for kernel in record["kernels"])
    kind = "GPU kernels" if record["device"] == "cuda" else "operators"
    head = (
        f"profile of {record['steps']} steps, {record['step_ms']:,.5g} ms each with the profiler at work, "
        f"{record['kernel_ms']:,.5g} ms of it in {kind}; the {len(record['kernels'])} dearest hold {share:.0f} %:"
    )
    return f"{head}\n{lines}"


def _shorten(name: str) -> str:
    return name if len(name) <= _SHOWN else f"{name[: _SHOWN - 3]}..."


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _round(value: float) -> float:
    return float(f"{value:.4g}")
