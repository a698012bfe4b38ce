"""Memory that runs out: what an error of it looks like, and what comes after it."""

from __future__ import annotations

import gc

import torch

from unetfast.hostmemory import release_freed_memory

# of the CPU allocator, of oneDNN (whose kernels are written into memory of their own; without an address space for them it says
# no more than this), of CUDA's libraries, and of CUDA itself where the error is not torch.OutOfMemoryError
_SIGNS = (
    *("can't allocate memory", "not enough memory", "could not create a primitive", "could not create a memory object"),
    *("CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED"),
    *("CUDA out of memory", "CUDA error: out of memory"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out, on a GPU or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    if "primitive descriptor" in text:  # oneDNN has no kernel for the operation: no matter how much memory there is
        return False
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)


def next_accumulation(num_images: int, accumulation: int) -> int | None:
    """Say in how many equal parts a batch is cut next, when its parts do not fit: twice as many, or the next that divides it.

    Args:
        num_images: of one optimizer step on this device.
        accumulation: parts now; divides `num_images`.

    Returns:
        Number of parts; None where a part is a single image already.
    """
    if accumulation >= num_images:
        return None
    return next(parts for parts in range(2 * accumulation, num_images + 1) if num_images % parts == 0)


def free_memory(device: torch.device) -> None:
    """Give back what nobody holds any more, to the GPU's other users too."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        release_freed_memory()
