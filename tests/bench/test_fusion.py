"""Bytes of fused kernels: small steps counted by hand, and laws over any step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_ops import make_op, piece

from unetfast.bench.fusion import count_fused_bytes
from unetfast.bench.trace import Op, trace_step
from unetfast.train.run import Run
from unetfast.train.step import train_step


def test_chain_of_pointwise_operations_reads_and_writes_once() -> None:
    ops = [
        make_op("activation", (piece(0),), (piece(1),)),
        make_op("cast", (piece(1),), (piece(2, 50),)),
        make_op("activation", (piece(2, 50),), (piece(3, 50),)),
    ]
    assert [op.num_bytes for op in ops] == [200, 150, 100]
    assert sum(count_fused_bytes(ops)) == pytest.approx(150)  # 100 in, 50 out


def test_value_that_somebody_else_reads_is_written() -> None:
    chain = [make_op("activation", (piece(0),), (piece(1),)), make_op("cast", (piece(1),), (piece(2),))]
    ops = [*chain, make_op("convolution", (piece(1),), (piece(3),))]
    assert sum(count_fused_bytes(ops)) == pytest.approx((100 + 100 + 100) + 200)


def test_convolution_parts_kernels() -> None:
    ops = [
        make_op("activation", (piece(0),), (piece(1),)),
        make_op("convolution", (piece(1),), (piece(2),)),
        make_op("activation", (piece(2),), (piece(3),)),
    ]
    assert count_fused_bytes(ops) == pytest.approx([200, 200, 200])


def test_sum_over_a_way_around_a_convolution_does_not_join_what_comes_before_it() -> None:
    # a residual block: the last addition reads the first activation, and cannot be one kernel with it
    ops = [
        make_op("activation", (piece(0),), (piece(1),)),
        make_op("convolution", (piece(1),), (piece(2),)),
        make_op("addition", (piece(1), piece(2)), (piece(3),)),
    ]
    assert count_fused_bytes(ops) == pytest.approx([200, 200, 300])


def test_reduction_ends_a_chain_and_parts_it_from_what_needs_its_result() -> None:
    ops = [
        make_op("activation", (piece(0),), (piece(1),)),
        make_op("sum", (piece(1),), (piece(2, 4),)),
        make_op("scale", (piece(1), piece(2, 4)), (piece(3),)),
    ]
    # first kernel: reads 0, writes 1 and 2; second: reads 1 and 2, writes 3
    assert sum(count_fused_bytes(ops)) == pytest.approx((100 + 100 + 4) + (100 + 4 + 100))


def test_second_half_of_a_norm_joins_the_activation_behind_it() -> None:
    ops = [
        make_op("convolution", (piece(0),), (piece(1),)),
        make_op("norm", (piece(1),), (piece(2),), second=(piece(1),)),
        make_op("activation", (piece(2),), (piece(2, version=1),)),  # in place
        make_op("convolution", (piece(2, version=1),), (piece(4),)),
    ]
    assert [op.num_bytes for op in ops] == [200, 300, 200, 200]
    fused = count_fused_bytes(ops)
    assert fused[0] == fused[3] == 200
    assert sum(fused[1:3]) == pytest.approx(100 + 100 + 100)  # statistics; read and write


def test_two_halves_of_a_buffer_written_in_turn_are_both_counted() -> None:
    ops = [
        make_op("copy", (piece(0),), (piece(1),)),
        make_op("copy", (piece(2),), (piece(1, version=1),)),
        make_op("convolution", (piece(1, 200, version=1),), (piece(3),)),
    ]
    assert sum(count_fused_bytes(ops)) == pytest.approx(200 + 200 + 300)


@st.composite
def steps(draw: st.DrawFn) -> list[Op]:
    ops: list[Op] = []
    for place in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["convolution", "activation", "sum", "norm", "concatenation"]))
        sources = draw(st.lists(st.integers(0, place), min_size=1, max_size=3, unique=True))
        reads = tuple(piece(source, 10 * (source + 1)) for source in sources)
        second = reads[:1] if kind == "norm" else ()
        ops.append(make_op(kind, reads, (piece(place + 1, 10 * (place + 2)),), second=second))
    return ops


@given(steps())
def test_fusing_moves_no_more_and_never_less_than_what_enters_and_leaves(ops: list[Op]) -> None:
    fused, alone = sum(count_fused_bytes(ops)), sum(op.num_bytes for op in ops)
    made = {made.storage for op in ops for made in op.writes}
    read = {source for op in ops for source in op.reads}
    entering = sum(one.num_bytes for one in read if one.storage not in made)
    leaving = sum(made.num_bytes for op in ops for made in op.writes if made not in read)
    assert entering + leaving <= fused * (1 + 1e-9)
    assert fused <= alone * (1 + 1e-9)


def test_unet_moves_less_when_fused_and_no_convolution_does(build_small_run: Callable[..., Run]) -> None:
    run = build_small_run()
    batch = next(iter(run.loader))
    train_step(run, batch)
    ops = trace_step(run, batch).ops
    fused = count_fused_bytes(ops)
    alone = [op.num_bytes for op in ops]
    assert sum(fused) < 0.95 * sum(alone)
    assert all(one == other for op, one, other in zip(ops, fused, alone, strict=True) if op.flop)
