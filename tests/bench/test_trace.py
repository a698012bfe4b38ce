"""The trace of a step: FLOPs against torch's own count and by hand, bytes by hand, times of the same operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unetfast.bench import trace as trace_module
from unetfast.bench.trace import OPAQUE, NotTraceableError, Op, StepTrace, trace_step
from unetfast.train.run import Run
from unetfast.train.step import compute_gradients, train_step

BuildRun = Callable[..., Run]


@pytest.fixture(autouse=True)
def _one_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_module, "_REPEATS", 1)


def traced(run: Run) -> StepTrace:
    batch = next(iter(run.loader))
    train_step(run, batch)
    return trace_step(run, batch)


def find(trace: StepTrace, module: str, name: str) -> Op:
    found = [op for op in trace.ops if op.module == module and op.name == name]
    assert len(found) == 1, [(op.module, op.name) for op in trace.ops]
    return found[0]


def test_flops_are_those_of_a_real_step(build_small_run: BuildRun) -> None:
    run = build_small_run()
    batch = next(iter(run.loader))
    train_step(run, batch)
    trace = trace_step(run, batch)
    with FlopCounterMode(display=False) as counter:
        compute_gradients(run, batch)
    assert trace.flop == counter.get_total_flops() == sum(op.flop for op in trace.ops)
    assert 0 < trace.forward_flop < trace.flop / 2
    assert trace.num_images == 4


def test_classic_unet_has_the_flops_that_are_known_of_it(build_small_run: BuildRun) -> None:
    # 64..1024 channels at 160x240: 56.4 GFLOP forward, 169 a step; here on a twenty-fifth of the pixels
    sections: dict[str, Any] = {"model": {"base_channels": 64, "depth": 4}, "optimizer": {"name": "sgd", "momentum": 0.0}}
    run = build_small_run(loader={"size_hw": [32, 48], "batch_size": 1}, **sections)
    trace = trace_step(run, next(iter(run.loader)))
    assert 25 * trace.forward_flop / 1e9 == pytest.approx(56.45, abs=0.01)
    assert 25 * trace.flop / 1e9 == pytest.approx(169.2, abs=0.1)


def test_traced_run_goes_on_as_it_was(build_small_run: BuildRun) -> None:
    run = build_small_run(train={"compile": "on"}, ema={"decay": 0.9})
    network, batch = run.network, next(iter(run.loader))
    run.model._compiled_call_impl = _refuse  # as if compiled: a trace must see the layers, not this
    trace_step(run, batch)
    assert run.network is network
    assert run.model._compiled_call_impl is _refuse
    assert run.step == 1
    assert all(weight.grad is None for weight in run.model.parameters())
    run.model._compiled_call_impl = None
    train_step(run, batch)


def _refuse(*_: object) -> None:
    raise AssertionError("the compiled network was called")


def test_times_are_those_of_the_operations(build_small_run: BuildRun) -> None:
    trace = traced(build_small_run(ema={"decay": 0.9}))
    assert len(trace.seconds) == len(trace.ops)
    assert all(seconds > 0 for op, seconds in zip(trace.ops, trace.seconds, strict=True) if op.kind != "moving average")
    assert trace.seconds[-1] == 0  # of the average: it stands at the optimizer's


def test_step_that_does_not_fit_uncompiled_says_so(build_small_run: BuildRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = build_small_run()
    batch = next(iter(run.loader))

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(trace_module, "compute_gradients", fail)
        with pytest.raises(NotTraceableError, match="out of memory on cpu where a step runs uncompiled"):
            trace_step(run, batch)
    train_step(run, batch)  # and the run goes on


def test_other_errors_are_not_hidden(build_small_run: BuildRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    run = build_small_run()
    monkeypatch.setattr(trace_module, "compute_gradients", fail)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        trace_step(run, next(iter(run.loader)))


def test_bytes_of_convolution_norm_and_concatenation_by_hand(build_small_run: BuildRun) -> None:
    trace = traced(build_small_run())
    full = 4 * 4 * 32 * 48 * 4  # batch, channels, height, width, bytes of a float32
    image, kernel = full * 3 // 4, 4 * 3 * 3 * 3 * 4
    first = next(op for op in trace.ops if op.module == "encoder.0.0" and op.name == "convolution")
    assert sum(piece.num_bytes for piece in first.reads) == image + kernel
    assert sum(piece.num_bytes for piece in first.writes) == full
    assert first.flop == 2 * 27 * 4 * 4 * 32 * 48
    assert (first.kind, first.backward, first.level_hw) == ("convolution", False, (32, 48))
    norm = next(op for op in trace.ops if op.module == "encoder.0.1" and op.kind == "norm" and not op.backward)
    assert sum(piece.num_bytes for piece in norm.second_reads) == full  # statistics first, then once more
    assert full < sum(piece.num_bytes for piece in norm.writes) < full + 200
    concatenation = next(op for op in trace.ops if op.module == "decoder.1" and op.kind == "concatenation")
    assert sum(piece.num_bytes for piece in concatenation.reads) == 2 * full
    assert concatenation.num_bytes == 4 * full


def test_backward_of_a_convolution_reads_the_gradient_for_each_result(build_small_run: BuildRun) -> None:
    trace = traced(build_small_run())
    inner = find(trace, "encoder.0.3", "convolution_backward")
    first = find(trace, "encoder.0.0", "convolution_backward")  # the image wants no gradient
    assert inner.backward
    assert inner.second_reads
    assert not first.second_reads
    assert first.flop == 2 * 27 * 4 * 4 * 32 * 48


def test_optimizer_and_average_move_what_their_tensors_hold(build_small_run: BuildRun) -> None:
    run = build_small_run(ema={"decay": 0.9}, optimizer={"name": "adam"})
    trace = traced(run)
    weights = sum(4 * weight.numel() for weight in run.model.parameters())
    update = next(op for op in trace.ops if op.kind == "optimizer")
    # gradient twice, weight, two moments and a count of steps a tensor; then weight and moments are written
    num_tensors = sum(1 for _ in run.model.parameters())
    assert update.num_bytes == 8 * weights + 2 * 4 * num_tensors
    assert next(op for op in trace.ops if op.kind == "moving average").num_bytes == 5 * weights
    assert not any(op.kind == "moving average" for op in traced(build_small_run()).ops)


def test_every_kind_and_level_of_a_unet_is_named(build_small_run: BuildRun) -> None:
    trace = traced(build_small_run(train={"amp": "bf16"}))
    kinds = {op.kind for op in trace.ops}
    assert {"convolution", "transposed convolution", "norm", "activation", "concatenation", "pooling", "loss"} <= kinds
    assert {"scores", "cast", "optimizer"} <= kinds
    assert {op.level_hw for op in trace.ops} == {(32, 48), (16, 24), (8, 12), None}
    assert {op.dtype for op in trace.ops if op.flop} == {torch.bfloat16}
    assert all(op.style == OPAQUE for op in trace.ops if op.flop)


def test_padding_belongs_to_the_level_of_the_image(build_small_run: BuildRun) -> None:
    trace = traced(build_small_run(loader={"size_hw": [30, 45]}))
    assert {op.level_hw for op in trace.ops if op.module == "encoder.0.0" and op.flop} == {(30, 45)}


def test_accumulation_is_traced_whole(build_small_run: BuildRun) -> None:
    whole = traced(build_small_run())
    parts = traced(build_small_run(train={"accumulation": 2}))
    assert parts.flop == whole.flop
    assert sum(op.kind == "pooling" for op in parts.ops) == 2 * sum(op.kind == "pooling" for op in whole.ops)


class _Functional(nn.Module):
    """A network that has no module for anything: operations are seen all the same."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, 3, 3, 3))

    def forward(self, image_NCHW: Tensor) -> Tensor:
        hidden_NCHW = F.max_pool2d(F.relu(F.conv2d(image_NCHW, self.weight, padding=1)), 2)
        return F.interpolate(torch.cat([hidden_NCHW, hidden_NCHW], dim=1), scale_factor=2)[:, : len(self.weight)]


class _Looking(_Functional):
    """Does more where values ask for it."""

    def forward(self, image_NCHW: Tensor) -> Tensor:
        return super().forward(image_NCHW if float(image_NCHW.mean()) > 1e9 else -image_NCHW)


def build_functional(num_classes: int, in_channels: int) -> nn.Module:
    return _Functional(num_classes)


def build_looking(num_classes: int, in_channels: int) -> nn.Module:
    return _Looking(num_classes)


@pytest.mark.parametrize("build", ["build_functional", "build_looking"])
def test_any_module_is_traced(build_small_run: BuildRun, build: str) -> None:
    trace = traced(build_small_run(model={"factory": f"{__name__}:{build}"}))
    assert {"convolution", "activation", "pooling", "concatenation", "up-sampling"} <= {op.kind for op in trace.ops}


@pytest.mark.parametrize("loss", ["lovasz", "dice", "focal"])
def test_every_loss_is_traced(build_small_run: BuildRun, loss: str) -> None:
    trace = traced(build_small_run(loss={loss: 1.0}))
    assert any(op.kind == "loss" and op.backward for op in trace.ops)
