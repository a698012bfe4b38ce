"""When host memory that a GPU copies in the background may be written again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unetfast.loader.pinned import CopyMark


def test_a_cpu_copies_at_once() -> None:
    mark = CopyMark(torch.device("cpu"))
    assert not mark.is_pinned
    mark.set()
    mark.wait()


def test_copies_are_marked_on_the_stream_of_their_own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class MadeEvent:
        def record(self, stream: str) -> None:
            calls.append(("record", stream))

        def synchronize(self) -> None:
            calls.append("wait")

    monkeypatch.setattr(torch.cuda, "Event", MadeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    mark = CopyMark(torch.device("cuda", 1))
    assert mark.is_pinned
    mark.set()
    mark.wait()
    assert calls == [("record", "stream of cuda:1"), "wait"]


@pytest.mark.gpu
def test_memory_may_be_written_behind_the_wait() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    device = torch.device("cuda", torch.cuda.current_device())
    mark = CopyMark(device)
    memory = torch.ones(1 << 24, dtype=torch.uint8, pin_memory=mark.is_pinned)
    mark.wait()  # nothing was copied yet
    copy = memory.to(device, non_blocking=True)
    mark.set()
    mark.wait()
    memory.fill_(0)
    assert bool((copy == 1).all())
