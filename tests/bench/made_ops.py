"""Operations of a made-up step, for tests of what is computed from a trace."""

from __future__ import annotations

import torch

from unetfast.bench.trace import OPAQUE, POINTWISE, REDUCTION, Op, Piece


def piece(storage: int, num_bytes: int = 100, version: int = 0) -> Piece:
    return Piece(storage, version, 0, num_bytes)


def make_op(
    kind: str,
    reads: tuple[Piece, ...],
    writes: tuple[Piece, ...],
    *,
    flop: int = 0,
    level_hw: tuple[int, int] | None = (8, 8),
    module: str = "layer",
    second: tuple[Piece, ...] = (),
    backward: bool = False,
) -> Op:
    style = {"convolution": OPAQUE, "optimizer": OPAQUE, "sum": REDUCTION}.get(kind, POINTWISE)
    return Op(kind, module, kind, style, backward, flop, torch.float32, level_hw, reads, second, writes)
