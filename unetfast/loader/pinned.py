"""Host memory that a GPU copies in the background, and when it has done so."""

from __future__ import annotations

import torch


class CopyMark:
    """Marks the last copy of some host memory to a device, so that nobody writes into it before it was read.

    Args:
        device: that the memory is copied to; a CPU copies at once, and nothing is waited for.

    Attributes:
        is_pinned: whether the memory must be pinned (page-locked), without which a copy is not made in the background.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.is_pinned = device.type == "cuda"
        self._event = torch.cuda.Event() if self.is_pinned else None  # type: ignore[no-untyped-call]

    def set(self) -> None:
        """Mark the copies that were begun on the device's current stream; waits for nothing."""
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(self._device))

    def wait(self) -> None:
        """Wait, in any thread, until the marked copies have read the memory."""
        if self._event is not None:
            self._event.synchronize()
