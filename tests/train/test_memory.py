"""What counts as out of memory, and into how many parts a batch is cut then."""

from __future__ import annotations

import pytest
import torch

from unetfast.train.memory import is_out_of_memory, next_accumulation


def test_torchs_own_error_on_the_host_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors ..."), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a primitive descriptor for a matmul primitive"), False),
        (RuntimeError("shapes differ"), False),
        (ValueError("not enough memory"), False),
    ],
)
def test_other_signs(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_torchs_own_error_on_a_gpu_is_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50, dtype=torch.uint8, device="cuda")
    assert is_out_of_memory(caught.value)


def test_parts_are_halved_and_stay_equal() -> None:
    assert [next_accumulation(16, parts) for parts in (1, 2, 4, 8, 16)] == [2, 4, 8, 16, None]
    assert [next_accumulation(6, parts) for parts in (1, 2, 3, 6)] == [2, 6, 6, None]
    assert [next_accumulation(7, parts) for parts in (1, 7)] == [7, None]
