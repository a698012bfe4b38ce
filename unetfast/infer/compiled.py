"""A net compiled for the few batches that a prediction asks for: `unetfast predict --compile`.

Batches have one length and few sizes, so each size is one static graph; a shorter batch is filled up, and a batch of another
size goes through the net as it is, and is counted. On a GPU each graph is recorded once as a CUDA graph and replayed by one
call: an image alone is predicted in less time than its kernels take to be launched one by one.

Axis legend: N batch, C channels, K classes, H height, W width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable

import torch
from torch import Tensor, nn

from unetfast.compilecache import keep_compiled
from unetfast.compiler import allow_many_graphs, compiler_errors, say_why
from unetfast.errors import UserError
from unetfast.infer.augmented import Tta, scale_side
from unetfast.infer.load import TrainedModel

Call = Callable[[], Tensor]
_NUM_WARMUP_CALLS = 3  # before a record: kernels are chosen and workspaces taken in the first ones


class StaticModel(nn.Module):
    """A net that is compiled once for each size of a batch, at the first batch of that size.

    Its logits lie in memory that the next batch of the same size is written to.

    Args:
        model: uint8 images (N, C, H, W) to logits (N, K, H, W), in evaluation mode, on `device`; called without gradients.
        device: where it is.
        batch_size: images that a compiled batch holds; smaller batches are filled up with what lay there before.
        sizes_hw: heights and widths that are compiled.
        fullgraph: whether the net must be one graph, as ours are; False compiles what can be compiled.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device,
        batch_size: int,
        sizes_hw: Collection[tuple[int, int]],
        fullgraph: bool = True,
    ) -> None:
        super().__init__()
        self._plain = model
        self._compiled = copy.copy(model)  # the same layers and weights; compiling it leaves `model` as it is
        allow_many_graphs()
        self._compiled.compile(fullgraph=fullgraph, dynamic=False)
        self._device = device
        self._batch_size = batch_size
        self._sizes_hw = frozenset(sizes_hw)
        self._ready: dict[tuple[int, int], tuple[Tensor, Call]] = {}
        self.num_uncompiled = 0  # images that went through the net as it is

    def describe(self) -> str:
        """Say to people what is compiled."""
        sizes = ", ".join(f"{height}x{width}" for height, width in sorted(self._sizes_hw))
        graphs = ", replayed as CUDA graphs" if self._device.type == "cuda" else ""
        return f"batches of {self._batch_size}, {sizes}{graphs}"

    def forward(self, image_NCHW: Tensor) -> Tensor:
        """Predict.

        Args:
            image_NCHW: uint8; N at most `batch_size` for a compiled size.

        Returns:
            Logits (N, K, H, W), valid until the next call.

        Raises:
            UserError: torch cannot compile the net, or its kernels cannot be recorded.
        """
        num, channels, height, width = image_NCHW.shape
        if num > self._batch_size or (height, width) not in self._sizes_hw:
            self.num_uncompiled += num
            logits_NKHW: Tensor = self._plain(image_NCHW)
            return logits_NKHW
        if (height, width) not in self._ready:
            self._ready[height, width] = self._prepare(channels, height, width)
        buffer_NCHW, call = self._ready[height, width]
        buffer_NCHW[:num].copy_(image_NCHW)
        return call()[:num]

    def _prepare(self, channels: int, height: int, width: int) -> tuple[Tensor, Call]:
        """Compile for a size; returns the memory that images are put into, and the call that reads it."""
        buffer_NHWC = torch.zeros(self._batch_size, height, width, channels, dtype=torch.uint8, device=self._device)
        buffer_NCHW = buffer_NHWC.permute(0, 3, 1, 2)

        def call() -> Tensor:
            logits_NKHW: Tensor = self._compiled(buffer_NCHW)
            return logits_NKHW

        try:
            if self._device.type == "cuda":
                return buffer_NCHW, record(call, self._device)
            call()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if not isinstance(error, (RuntimeError, *compiler_errors())):  # RuntimeError: a record's
                raise
            raise UserError(
                f"--compile: torch cannot compile the network for {self._batch_size} x {height}x{width} pixels "
                f"({say_why(error)}); leave --compile out"
            ) from error
        return buffer_NCHW, call


def build_static(trained: TrainedModel, size_hw: tuple[int, int], *, batch_size: int, tta: Tta | None = None) -> StaticModel:
    """Compile a checkpoint's network for batches of one size, and its scaled copies, each at the first batch of its size.

    Args:
        trained: of `load_model`.
        size_hw: height and width of the images, or windows, pixels.
        batch_size: images, or windows, a batch.
        tta: whose copies are asked for.
    """
    keep_compiled()
    return StaticModel(
        trained.model,
        device=trained.device,
        batch_size=batch_size,
        sizes_hw=static_sizes(size_hw, tta),
        fullgraph=not trained.checkpoint.config.model.factory,
    )


def record(call: Call, device: torch.device) -> Call:
    """Record the kernels of a call as a CUDA graph; returns a call that replays them.

    Args:
        call: reads the same memory each time, and waits for nothing.
        device: a GPU.

    Returns:
        Gives the same memory each time, with the numbers of that time.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_NUM_WARMUP_CALLS):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # what other threads do is no part of it
            result = call()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def static_sizes(size_hw: tuple[int, int], tta: Tta | None) -> list[tuple[int, int]]:
    """List the heights and widths that a net is asked for where images, or windows, have one size."""
    scales: Iterable[float] = (1.0,) if tta is None else tta.scales
    height, width = size_hw
    return [(height, width) if scale == 1 else (scale_side(height, scale), scale_side(width, scale)) for scale in scales]
