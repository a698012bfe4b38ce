"""Bounds of operations by hand, what is called the next limit, and the JSON of it."""

from __future__ import annotations

import json

import pytest
import torch
from made_ops import make_op, piece

from unetfast.bench.machine import Machine
from unetfast.bench.roofline import describe_roofline, draw_roofline, find_next_limit, format_roofline
from unetfast.bench.trace import Op, StepTrace

# 1 FLOP and 1 byte take a second
MACHINE = Machine({torch.float32: 1.0}, {torch.float32: 1}, 1.0)


def trace_of(*ops: Op) -> StepTrace:
    """Operations that take 250 s each."""
    return StepTrace(ops, (250.0,) * len(ops), sum(op.flop for op in ops), 0, 2)


CONVOLUTION = make_op("convolution", (piece(0),), (piece(1),), flop=1000, level_hw=(16, 16), module="first")
POINTWISE = (
    make_op("activation", (piece(1),), (piece(2),), level_hw=(16, 16), module="second"),
    make_op("cast", (piece(2),), (piece(3),), level_hw=(8, 8), module="third"),
)
UPDATE = make_op("optimizer", (piece(-1, 300),), (piece(-2, 100),), level_hw=None, module="update")


def test_bound_is_the_slower_of_arithmetic_and_bytes() -> None:
    roofline = draw_roofline(trace_of(CONVOLUTION, *POINTWISE), MACHINE, is_fused=False)
    assert [bound.seconds for bound in roofline.bounds] == [1000, 200, 200]
    assert [bound.limit for bound in roofline.bounds] == ["arithmetic", "memory", "memory"]
    assert roofline.seconds == 1400
    assert draw_roofline(trace_of(CONVOLUTION, *POINTWISE), MACHINE, is_fused=True).seconds == pytest.approx(1200)


def test_rate_is_that_of_the_dtype() -> None:
    both = Machine({torch.float32: 1.0, torch.bfloat16: 10.0}, {}, 1e9)
    assert both.rate(torch.bfloat16) == 10
    assert both.rate(torch.int64) == 1  # as float32


@pytest.mark.parametrize(
    ("ops", "step_s", "name", "text"),
    [
        ((CONVOLUTION, *POINTWISE), 1500, "arithmetic", "arithmetic at the device's matrix rate (67 % of a step)"),
        (POINTWISE, 500, "memory", "memory traffic at levels 16x16 and 8x8 (80 % of a step)"),
        ((*POINTWISE, UPDATE), 1000, "memory", "memory traffic at level 16x16 (80 % of a step)"),
        ((UPDATE,), 500, "memory", "memory traffic of weights and their update (80 % of a step)"),
        (
            (CONVOLUTION, *POINTWISE),
            14000,
            "kernels",
            "kernels below their limits (90 % of a step; arithmetic explains 7 %, memory traffic 3 %), "
            "most in activation at 16x16 (0 %)",
        ),
    ],
)
def test_next_limit_is_the_largest_part_of_a_step(ops: tuple[Op, ...], step_s: float, name: str, text: str) -> None:
    limit = find_next_limit(draw_roofline(trace_of(*ops), MACHINE, is_fused=False), step_s)
    assert (limit.name, limit.text) == (name, text)
    assert sum(limit.shares_pct.values()) == pytest.approx(100)


def test_slowest_operations_are_named_where_they_are_what_ran() -> None:
    trace = StepTrace((CONVOLUTION, *POINTWISE), (1300.0, 200.0, 210.0), 1000, 0, 2)
    limit = find_next_limit(draw_roofline(trace, MACHINE, is_fused=False), 14000)
    assert limit.text.endswith(", most in convolution at 16x16 (2 %)")
    assert "most in" not in find_next_limit(draw_roofline(trace, MACHINE, is_fused=True), 14000).text


def test_step_that_is_faster_than_the_roofline_has_nothing_left_over() -> None:
    limit = find_next_limit(draw_roofline(trace_of(*POINTWISE), MACHINE, is_fused=False), 100)
    assert limit.shares_pct == pytest.approx({"arithmetic": 0, "memory": 100, "kernels": 0})


def test_json_tells_layers_and_levels_whose_sums_are_the_whole() -> None:
    roofline = draw_roofline(trace_of(CONVOLUTION, *POINTWISE, UPDATE), MACHINE, is_fused=False)
    told = json.loads(json.dumps(describe_roofline(roofline, 2)))
    assert told["counted"] == "eager"
    assert told["eager_ms"] == 1_800_000
    assert told["fused_ms"] == 1_600_000
    assert told["memory_bound_ms"] == 800_000
    assert told["measured_ms"] == 1_000_000
    assert [level["measured_ms"] for level in told["levels"]] == [500_000, 250_000, 250_000]
    assert sum(layer["measured_ms"] for layer in told["layers"]) == told["measured_ms"]
    assert [level["level_hw"] for level in told["levels"]] == [[16, 16], [8, 8], None]
    assert sum(level["bound_ms"] for level in told["levels"]) == told["eager_ms"]
    assert sum(layer["bound_ms"] for layer in told["layers"]) == told["eager_ms"]
    assert told["layers"][0]["limit"] == "arithmetic"
    assert told["layers"][1]["pass"] == "forward"


def test_table_shows_each_level_and_what_it_reached() -> None:
    roofline = draw_roofline(trace_of(CONVOLUTION, *POINTWISE, UPDATE), MACHINE, is_fused=False)
    lines = format_roofline(describe_roofline(roofline, 2)).splitlines()
    assert lines[2].split()[0] == "8x8"
    assert lines[2].split()[-2:] == ["2.5e+05", "80"]
    assert lines[-1].split()[0] == "weights"
