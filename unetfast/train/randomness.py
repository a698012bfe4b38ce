"""Seeds, random states and deterministic kernels."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def capture_rng(device: torch.device | None = None) -> dict[str, Any]:
    """Return the state of every global generator, as tensors and integers (what `weights_only` reads).

    Args:
        device: only this GPU's generator is captured, or none for a CPU; None takes those of all GPUs.
    """
    version, numbers, gauss = random.getstate()
    name, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    if name != "MT19937":
        raise ValueError(f"numpy's global generator is {name}, not MT19937")
    return {
        "torch": torch.get_rng_state(),
        "cuda": _capture_cuda(device),
        "numpy": {"keys": torch.from_numpy(np.asarray(keys).astype(np.int64)), "rest": [place, has_gauss, cached]},
        "python": {"version": version, "numbers": torch.tensor(numbers, dtype=torch.int64), "gauss": gauss},
    }


def _capture_cuda(device: torch.device | None) -> list[torch.Tensor]:
    if device is None:
        return torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []


def restore_rng(state: dict[str, Any], device: torch.device | None = None) -> None:
    """Set every global generator to a captured state; GPUs that the state does not know keep theirs.

    Args:
        state: from `capture_rng`.
        device: the GPU that takes the state of the one GPU that was captured; None sets GPU after GPU.
    """
    torch.set_rng_state(state["torch"])
    states = state["cuda"]
    if device is None:
        for index, cuda_state in enumerate(states[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(cuda_state, index)
    elif device.type == "cuda" and states:
        torch.cuda.set_rng_state(states[(device.index or 0) if len(states) > 1 else 0], device)
    place, has_gauss, cached = state["numpy"]["rest"]
    np.random.set_state(("MT19937", state["numpy"]["keys"].numpy().astype(np.uint32), place, has_gauss, cached))
    python = state["python"]
    random.setstate((python["version"], tuple(python["numbers"].tolist()), python["gauss"]))


def seed_generators(seed: int, *, rank: int = 0, step: int = 0) -> None:
    """Seed every global generator.

    Processes that train together draw their own numbers (dropout), so their seeds differ; rank 0 at step 0 has `seed`,
    as a process alone has. A rank that joins a run at a later step has another seed again, and does not repeat numbers.

    Args:
        seed: of the run, in [0, 2**63).
        rank: of this process.
        step: optimizer steps done.
    """
    if rank or step:
        words = np.random.SeedSequence([seed, rank, step]).generate_state(1, np.uint64)
        seed = int(words[0] >> np.uint64(1))
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


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
    seed_generators(seed)
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
