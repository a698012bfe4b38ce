"""How busy the GPU was, as NVML tells it: its multiprocessors, its JPEG unit, and the memory taken on it.

NVML averages over its own period (a sixth of a second to a second), so a round must be longer than that to say something.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_PERIOD_S = 0.1


class DeviceMeter:
    """Samples one GPU while a round runs.

    Args:
        device: of the side; on a CPU nothing is sampled.

    Attributes:
        missing: why there are no samples; "" where there are some.
    """

    def __init__(self, device: torch.device) -> None:
        self.missing = "" if device.type == "cuda" else "no GPU"
        self._device = device
        self._handle: Any = None
        self._base_free = 0
        self._least_free = 0
        self._num_samples = 0
        self._sums: dict[str, float] = {}
        self._ended = threading.Event()
        if self.missing:
            return
        torch.zeros(1, device=device)  # makes the context, whose memory is nobody's cost
        try:
            import pynvml

            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(device.index or 0)
            self._nvml = pynvml
        except Exception as error:  # no package, no library, no permission: the figure is left out and says so
            self.missing = f"no NVML ({error or type(error).__name__})"

    def start(self) -> None:
        """Take what the device holds now as the base that `memory` counts from."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._base_free = self._least_free = torch.cuda.mem_get_info(self._device)[0]

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Around a round."""
        self._sums, self._num_samples = {}, 0
        if self._device.type != "cuda":
            yield
            return
        self._ended.clear()
        thread = threading.Thread(target=self._sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def read(self) -> dict[str, float | None]:
        """Return the mean shares of the last round, percent; None where the device does not tell."""
        shares = {name: self._sums.get(name) for name in ("gpu_pct", "jpeg_unit_pct")}
        return {name: None if total is None else round(total / self._num_samples, 1) for name, total in shares.items()}

    def memory(self) -> dict[str, float | None]:
        """Return MiB of device memory: the most that all processes took since `start`, and PyTorch's own share here."""
        if self._device.type != "cuda":
            return {"device_mib": None, "torch_device_mib": None}
        taken = (self._base_free - self._least_free) / 2**20
        return {
            "device_mib": round(taken, 1),
            "torch_device_mib": round(torch.cuda.max_memory_allocated(self._device) / 2**20, 1),
        }

    def _sample(self) -> None:
        while not self._ended.wait(_PERIOD_S):
            self._least_free = min(self._least_free, torch.cuda.mem_get_info(self._device)[0])
            if self._handle is None:
                continue
            self._num_samples += 1
            self._add("gpu_pct", lambda: self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu)
            self._add("jpeg_unit_pct", lambda: self._nvml.nvmlDeviceGetJpgUtilization(self._handle)[0])

    def _add(self, name: str, ask: Any) -> None:
        try:
            self._sums[name] = self._sums.get(name, 0.0) + ask()
        except Exception as error:  # older NVML, or a virtual GPU that does not tell
            self.missing = f"NVML does not tell {name} ({error or type(error).__name__})"
