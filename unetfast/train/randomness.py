"""Seeds, random states and deterministic kernels."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def capture_rng() -> dict[str, Any]:
    """Return the state of every global generator, as tensors and integers (what `weights_only` reads)."""
    version, numbers, gauss = random.getstate()
    name, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    if name != "MT19937":
        raise ValueError(f"numpy's global generator is {name}, not MT19937")
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": {"keys": torch.from_numpy(np.asarray(keys).astype(np.int64)), "rest": [place, has_gauss, cached]},
        "python": {"version": version, "numbers": torch.tensor(numbers, dtype=torch.int64), "gauss": gauss},
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Set every global generator to a captured state; GPUs that the state does not know keep theirs."""
    torch.set_rng_state(state["torch"])
    for index, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda_state, index)
    place, has_gauss, cached = state["numpy"]["rest"]
    np.random.set_state(("MT19937", state["numpy"]["keys"].numpy().astype(np.uint32), place, has_gauss, cached))
    python = state["python"]
    random.setstate((python["version"], tuple(python["numbers"].tolist()), python["gauss"]))


@contextmanager
def numeric_settings(*, seed: int, deterministic: bool, device: torch.device) -> Iterator[None]:
    """Seed every generator and choose kernels for one run; the caller's states and settings come back at the end.

    Args:
        seed: of the initial weights and of dropout; the loader has its own generator with the same seed.
        deterministic: only kernels that give the same bits every time; on a GPU this costs speed. Otherwise cuDNN may try
            several and keep the fastest.
        device: of the run.
    """
    states = capture_rng()
    cudnn = torch.backends.cudnn
    former = (torch.are_deterministic_algorithms_enabled(), cudnn.benchmark, cudnn.deterministic)
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(deterministic)
    cudnn.deterministic = deterministic
    cudnn.benchmark = device.type == "cuda" and not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for, read at its first call
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(former[0])
        cudnn.benchmark, cudnn.deterministic = former[1:]
        if workspace is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
        restore_rng(states)
