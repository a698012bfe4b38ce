"""Class ids of one image as they come in, piece by piece, and as they are read again, from the top down.

Small ones are an array. Those of a large image, whose pieces come panel by panel and whose mask is written row by row, lie in a
file without a name, which is gone when it is closed, however that happens.

Axis legend: H height, W width.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from unetfast.errors import UserError

MEMORY_BYTES = 64 * 2**20
BAND_BYTES = 4 * 2**20


class Prediction:
    """Predicted class ids of one image.

    Args:
        size_hw: height and width of the image, pixels.
        num_classes: K; ids are uint8 up to 256 classes, else uint16.
        folder: where the file goes if there must be one; made if need be.
        memory_bytes: larger predictions go to a file.

    Raises:
        UserError: the file cannot be made.
    """

    def __init__(self, size_hw: tuple[int, int], num_classes: int, *, folder: Path, memory_bytes: int = MEMORY_BYTES) -> None:
        self.size_hw = size_hw
        self.dtype: np.dtype[Any] = np.dtype(np.uint8 if num_classes <= 256 else np.uint16)
        self._folder = folder
        self._array_HW: np.ndarray | None = None
        self._file: IO[bytes] | None = None
        self._row_bytes = size_hw[1] * self.dtype.itemsize
        if size_hw[0] * self._row_bytes <= memory_bytes:
            self._array_HW = np.empty(size_hw, dtype=self.dtype)
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(buffering=0, dir=folder)  # noqa: SIM115  # closed by close()
        except OSError as error:
            raise self._refusal(error) from None

    @classmethod
    def of(cls, pred_HW: np.ndarray) -> Prediction:
        """Take a whole array of class ids."""
        height, width = pred_HW.shape
        prediction = cls.__new__(cls)
        prediction.size_hw, prediction.dtype = (height, width), pred_HW.dtype
        prediction._folder, prediction._file, prediction._array_HW = Path(), None, pred_HW
        prediction._row_bytes = width * pred_HW.dtype.itemsize
        return prediction

    def write_block(self, top: int, left: int, ids_HW: np.ndarray) -> None:
        """Put in a piece whose first pixel is at this row and column.

        Raises:
            UserError: the disk is full.
        """
        num_rows, num_columns = ids_HW.shape
        if self._array_HW is not None:
            self._array_HW[top : top + num_rows, left : left + num_columns] = ids_HW
            return
        ids_HW = np.ascontiguousarray(ids_HW, dtype=self.dtype)
        pieces = [ids_HW] if num_columns == self.size_hw[1] else list(ids_HW)
        try:
            for place, piece in enumerate(pieces):
                self._write_at((top + place) * self._row_bytes + left * self.dtype.itemsize, piece.tobytes())
        except OSError as error:
            raise self._refusal(error) from None

    def rows(self, top: int, bottom: int, step: int = 1) -> np.ndarray:
        """Read rows from `top` up to `bottom`, every `step`-th row and column of them; (n, m)."""
        if self._array_HW is not None:
            return self._array_HW[top:bottom:step, ::step]
        num_rows = len(range(top, bottom, step))
        if step > 1:
            return np.concatenate([self.rows(row, row + 1)[:, ::step] for row in range(top, bottom, step)])
        assert self._file is not None
        self._file.seek(top * self._row_bytes)
        data = self._file.read(num_rows * self._row_bytes)
        return np.frombuffer(data, dtype=self.dtype).reshape(num_rows, self.size_hw[1])

    def iter_bands(self, band_bytes: int = BAND_BYTES) -> Iterator[np.ndarray]:
        """Read all rows from the top down, some at a time."""
        num_rows = max(1, band_bytes // self._row_bytes)
        for top in range(0, self.size_hw[0], num_rows):
            yield self.rows(top, min(top + num_rows, self.size_hw[0]))

    def whole(self, step: int = 1) -> np.ndarray:
        """Read every `step`-th row and column at once."""
        return self.rows(0, self.size_hw[0], step)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Prediction:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _write_at(self, position: int, data: bytes) -> None:
        assert self._file is not None
        view = memoryview(data)
        while view:
            written = os.pwrite(self._file.fileno(), view, position)
            view, position = view[written:], position + written

    def _refusal(self, error: OSError) -> UserError:
        reason = error.strerror or error
        return UserError(f"{self._folder}: a temporary file cannot be written ({reason}); free space or take another --out")
