"""Stripes of logits: equal to torch's whole resize, wherever they are cut."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unetfast.infer.fullsize import iter_stripes


def resize_whole(logits_KHW: Tensor, size_hw: tuple[int, int], max_bytes: int = 2**40) -> Tensor:
    return torch.cat([stripe for _, stripe in iter_stripes(logits_KHW, size_hw, max_bytes=max_bytes)], dim=1)


@settings(max_examples=60, deadline=None)
@given(
    in_hw=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    size_hw=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    rows=st.integers(1, 9),
)
def test_stripes_equal_the_whole_and_torch(in_hw: tuple[int, int], size_hw: tuple[int, int], rows: int) -> None:
    logits_KHW = torch.randn(3, *in_hw, generator=torch.Generator().manual_seed(0))
    whole = resize_whole(logits_KHW, size_hw)
    max_bytes = rows * 4 * 3 * max(size_hw[1], in_hw[1])
    striped = resize_whole(logits_KHW, size_hw, max_bytes)
    torch.testing.assert_close(striped, whole, rtol=0, atol=1e-6)
    expected = F.interpolate(logits_KHW[None], size=size_hw, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-5)


def test_striped_argmax_equals_whole_argmax() -> None:
    logits_KHW = torch.randn(150, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = F.interpolate(logits_KHW[None], size=(211, 173), mode="bilinear", align_corners=False)[0]
    striped = torch.cat([part.argmax(dim=0) for _, part in iter_stripes(logits_KHW, (211, 173), max_bytes=10**6)])
    differ = striped != expected.argmax(dim=0)
    # only where two classes are equal but for rounding
    top = expected.topk(2, dim=0).values
    assert bool(((top[0] - top[1])[differ] < 1e-5).all())
    assert differ.float().mean() < 1e-4


def test_stripes_stay_below_their_limit_and_tell_their_place() -> None:
    logits_KHW = torch.zeros(150, 16, 16)
    tops, rows = [], 0
    for top, stripe_KHW in iter_stripes(logits_KHW, (300, 2100), max_bytes=2 * 2**20):
        assert stripe_KHW.nbytes <= 2 * 2**20
        tops.append(top)
        assert top == rows
        rows += stripe_KHW.shape[1]
    assert rows == 300
    assert len(tops) > 100


def test_same_size_is_the_same_logits() -> None:
    logits_KHW = torch.randn(2, 7, 9)
    assert torch.equal(resize_whole(logits_KHW, (7, 9), max_bytes=1), logits_KHW)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_resized_in_float32(dtype: torch.dtype) -> None:
    logits_KHW = torch.randn(2, 5, 5).to(dtype)
    whole = resize_whole(logits_KHW, (11, 13))
    assert whole.dtype == torch.float32
    expected = F.interpolate(logits_KHW.float()[None], size=(11, 13), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(whole, expected, rtol=0, atol=1e-5)
