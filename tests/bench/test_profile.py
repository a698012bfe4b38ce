"""The profiler's trace can be read, and the dearest kernels are those of the step."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.autograd import DeviceType

from unetfast.bench import profile as profile_module
from unetfast.bench.model import repeat_batch
from unetfast.bench.profile import format_profile, run_profile
from unetfast.errors import UserError
from unetfast.train.run import Run


def test_trace_and_dearest_kernels_of_training_steps(build_small_run: Callable[..., Run], tmp_path: Path) -> None:
    run = build_small_run()
    path = tmp_path / "new" / "trace.json.gz"
    record = json.loads(json.dumps(run_profile(run, iter(run.loader), path)))
    assert run.step == profile_module.LEAD_IN_STEPS + profile_module.STEPS
    names = [event.get("name") for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]]
    assert names.count("unetfast: training step") == profile_module.STEPS
    assert any("convolution" in str(name) for name in names)
    kernels = record["kernels"]
    assert len(kernels) == profile_module.NUM_KERNELS
    assert [kernel["ms_per_step"] for kernel in kernels] == sorted((kernel["ms_per_step"] for kernel in kernels), reverse=True)
    assert 20 < sum(kernel["share_pct"] for kernel in kernels) <= 100.1
    assert not any("unetfast" in kernel["name"] for kernel in kernels)
    assert any("4x" in kernel["name"] for kernel in kernels)  # the batch's shape
    assert record["kernel_ms"] > 0
    text = format_profile(record)
    assert kernels[0]["name"][:40] in text
    assert len(text.splitlines()) == 12


def test_gpu_kernels_are_those_that_ran_on_the_gpu() -> None:
    def event(key: str, device: DeviceType, device_us: float, cpu_us: float) -> SimpleNamespace:
        return SimpleNamespace(
            key=key, device_type=device, self_device_time_total=device_us, self_cpu_time_total=cpu_us, count=6, input_shapes=[]
        )

    events = [
        event("aten::relu", DeviceType.CPU, 50.0, 900.0),
        event("relu_kernel", DeviceType.CUDA, 3000.0, 0.0),
        event("conv_kernel", DeviceType.CUDA, 9000.0, 0.0),
    ]
    kernels = profile_module._list_kernels(events, on_gpu=True)
    assert [kernel["name"] for kernel in kernels] == ["conv_kernel", "relu_kernel"]
    assert kernels[0] == {"name": "conv_kernel", "calls_per_step": 2.0, "ms_per_step": 3.0, "share_pct": 75.0}
    record = {"device": "cuda", "steps": 3, "step_ms": 5.0, "kernel_ms": 4.0, "kernels": kernels}
    assert "GPU kernel" in format_profile(record)
    assert "4 ms of it in GPU kernels; the 2 dearest hold 100 %" in format_profile(record)


def test_trace_that_cannot_be_written_is_one_line(build_small_run: Callable[..., Run], tmp_path: Path) -> None:
    run = build_small_run()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"trace cannot be written .*take another --json"):
        run_profile(run, repeat_batch(next(iter(run.loader))), tmp_path / "file" / "trace.json.gz")


def test_profile_without_kernels_says_what_to_look_at() -> None:
    record = {"device": "cuda", "steps": 3, "step_ms": 5.0, "kernel_ms": 0.0, "kernels": []}
    assert "recorded no kernels" in format_profile(record)


def _write_notes_and_fail() -> None:
    with profile_module._without_kineto_notes():
        os.write(2, b"USDT:2026-11-21 19:25:04 8523:8523 SyncActivityProfilerHandler.cpp:39] profiler_start\n")
        os.write(2, b"ERROR:2026-11-21 19:25:45 8523:8523 DeviceProperties.cpp:56] gpuGetDeviceCount failed with code 35\n")
        os.write(2, b"ERROR: CUPTI_ERROR_INSUFFICIENT_PRIVILEGES\n")
        raise ValueError("in the middle of it")


def test_notes_of_the_profilers_library_are_dropped_and_all_else_is_handed_on(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="in the middle of it"):
        _write_notes_and_fail()
    os.write(2, b"and on\n")
    assert capfd.readouterr().err == "ERROR: CUPTI_ERROR_INSUFFICIENT_PRIVILEGES\nand on\n"
