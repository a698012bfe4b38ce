"""A net traced by `torch.export`: what the ONNX form is made of, and the pt2 form itself.

Axis legend: N batch, C channels, H height, W width.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from unetfast.errors import UserError
from unetfast.infer.export.graph import MaskNet

MAX_SIDE_PX = 2**16
MAX_BATCH = 2**16
# axes of the image that may have any size
DYNAMIC_AXES = {
    0: torch.export.Dim("batch", min=1, max=MAX_BATCH),
    2: torch.export.Dim("height", min=1, max=MAX_SIDE_PX),
    3: torch.export.Dim("width", min=1, max=MAX_SIDE_PX),
}


def build_mask_program(net: MaskNet, *, what: str) -> torch.export.ExportedProgram:
    """Trace a net into a program with dynamic batch, height and width.

    Args:
        net: on the CPU, in evaluation mode.
        what: the model in words, for the message.

    Raises:
        UserError: the net's code cannot be traced.
    """
    # sizes that stand for any other: unlike each other, and unlike 0 and 1, which torch takes for constants
    height, width = (side + 38 + 4 * place for place, side in enumerate(net.size_hw))
    image_NCHW = torch.zeros(2, 3, height, width, dtype=torch.uint8)
    try:
        with quiet_exporter(), torch.no_grad():
            return torch.export.export(net, (image_NCHW,), dynamic_shapes={"image": DYNAMIC_AXES})
    except Exception as error:  # whatever the net's code does that a graph cannot hold
        raise UserError(
            f"{what} cannot be exported: torch.export stops at {type(error).__name__} ({first_line(error)[:200]}); "
            "--format safetensors takes the weights alone"
        ) from None


def build_pt2(program: torch.export.ExportedProgram, metadata: dict[str, str]) -> bytes:
    """Turn a program into the bytes of a .pt2 file; each metadata text is an extra file of its name."""
    buffer = io.BytesIO()
    with quiet_exporter():
        torch.export.save(program, buffer, extra_files=dict(metadata))
    return buffer.getvalue()


def open_pt2(data: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that runs the program as it stands in a file."""
    with quiet_exporter():
        module = torch.export.load(io.BytesIO(data)).module()

    def run(image_NCHW: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(module(torch.from_numpy(image_NCHW)).numpy())

    return run


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep to itself what torch's exporter warns of in its own code and says about operators that are not used here."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
