"""The trace of a step: FLOPs against torch's own count and by hand, bytes by hand, and that nothing changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unetfast.bench.trace import OPAQUE, NotTraceableError, Op, StepTrace, trace_step
from unetfast.train.run import Run
from unetfast.train.step import compute_gradients, train_step

BuildRun = Callable[..., Run]


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
    # 64..1024 channels at 160x240: 56.4 GFLOP forward, 169 a step; tracing computes nothing, so this is cheap
    run = build_small_run(model={"base_channels": 64, "depth": 4}, loader={"size_hw": [160, 240]})
    trace = trace_step(run, next(iter(run.loader)))
    assert trace.forward_flop / trace.num_images / 1e9 == pytest.approx(56.45, abs=0.01)
    assert trace.flop / trace.num_images / 1e9 == pytest.approx(169.2, abs=0.1)


def test_trace_changes_neither_weights_nor_statistics_nor_gradients(build_small_run: BuildRun) -> None:
    run = build_small_run(ema={"decay": 0.9})
    batch = next(iter(run.loader))
    train_step(run, batch)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    trace_step(run, batch)
    after = run.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(type(tensor) is type(before[name]) for name, tensor in after.items())
    assert all(weight.grad is None for weight in run.model.parameters())
    train_step(run, batch)  # and it goes on


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
    def forward(self, image_NCHW: Tensor) -> Tensor:
        return super().forward(image_NCHW if float(image_NCHW.mean()) > 0 else -image_NCHW)


def build_functional(num_classes: int, in_channels: int) -> nn.Module:
    return _Functional(num_classes)


def build_looking(num_classes: int, in_channels: int) -> nn.Module:
    return _Looking(num_classes)


def test_any_module_is_traced(build_small_run: BuildRun) -> None:
    trace = traced(build_small_run(model={"factory": f"{__name__}:build_functional"}))
    assert {"convolution", "activation", "pooling", "concatenation", "up-sampling"} <= {op.kind for op in trace.ops}


def test_network_that_looks_at_values_is_refused_with_the_reason(build_small_run: BuildRun) -> None:
    run = build_small_run(model={"factory": f"{__name__}:build_looking"})
    with pytest.raises(NotTraceableError, match=r"DataDependentOutput.*_local_scalar_dense"):
        traced(run)
