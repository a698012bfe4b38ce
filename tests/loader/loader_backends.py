"""The backends, each with the devices its batches can be wanted on, as test parameters.

DALI runs in its CPU mode where its batches are wanted on the host: its graph, but not its GPU kernels.
"""

from __future__ import annotations

import pytest
import torch

CPU_BACKENDS = [
    pytest.param(("cpu", "cpu"), id="cpu"),
    pytest.param(("cpu", "cuda"), id="cpu-cuda", marks=pytest.mark.gpu),
]
DALI_BACKENDS = [
    pytest.param(("dali", "cpu"), id="dali", marks=pytest.mark.dali),
    pytest.param(("dali", "cuda"), id="dali-cuda", marks=[pytest.mark.dali, pytest.mark.gpu]),
]
BACKENDS = CPU_BACKENDS + DALI_BACKENDS

# for tests that only concern DALI, above a test that takes `make_loader`
dali_only = pytest.mark.parametrize("backend_and_device", DALI_BACKENDS, indirect=True)


def find_backend(backend: str, device: str) -> tuple[str, torch.device]:
    """Return a backend and a device, or skip the test with the reason why they cannot be had."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    if backend == "dali":
        pytest.importorskip("nvidia.dali", reason="needs the extra dali")
    return backend, torch.device(device)
