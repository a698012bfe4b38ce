"""Predicted class ids become files: masks in the source's own values and colours, overlays, masks by class.

Each file is written under a temporary name and renamed, so a name never holds half a picture.

Axis legend: K classes, H height, W width.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from unetfast.data.labels import LabelTable
from unetfast.errors import UserError
from unetfast.infer.png import PngWriter
from unetfast.infer.prediction import Prediction
from unetfast.viz.overlay import draw_overlay
from unetfast.viz.palette import classes_in

JPEG_QUALITY = 92
# larger overlays show every n-th pixel: JPEG ends at a side of 65,535, and drawing takes 20 bytes and more a pixel
MAX_OVERLAY_SIDE_PX = 16384
MAX_OVERLAY_PX = 64 * 2**20


@dataclass(frozen=True, slots=True)
class MaskFormat:
    """How predicted masks are stored, so that they look like the source's own.

    Args:
        kind: "palette" (PNG of mode P: a pixel is the class's value, shown in its colour), "grey" (8-bit grey PNG of the
            values), "rgb" (PNG in the colours that mean the classes), "png16" (16-bit grey PNG), or "npy" (int32, where a value
            fits no PNG, such as -1).
        value_of: the source's value of each class: (K,), or (K, 3) for "rgb".
        palette: for "palette": RGB of the values 0..255, uint8, (256, 3); values that mean no class are black.
    """

    kind: str
    value_of: np.ndarray
    palette: np.ndarray | None = None

    @property
    def suffix(self) -> str:
        return ".npy" if self.kind == "npy" else ".png"

    def encode(self, pred_HW: np.ndarray) -> bytes:
        """Turn class ids in [0, K), (H, W), into the bytes of a file."""
        buffer = io.BytesIO()
        self.write(buffer, Prediction.of(pred_HW))
        return buffer.getvalue()

    def write(self, file: BinaryIO, prediction: Prediction) -> None:
        """Write class ids as a whole file, some rows at a time."""
        if self.kind == "npy":
            write_npy_header(file, np.dtype("<i4"), prediction.size_hw)
            for ids_HW in prediction.iter_bands():
                file.write(np.ascontiguousarray(self.value_of[ids_HW], dtype="<i4").tobytes())
            return
        num_channels = 3 if self.kind == "rgb" else 1
        png = PngWriter(file, prediction.size_hw, dtype=self.value_of.dtype, num_channels=num_channels, palette=self.palette)
        for ids_HW in prediction.iter_bands():
            png.write_rows(self.value_of[ids_HW])
        png.close()


def choose_mask_format(labels: LabelTable) -> MaskFormat:
    """Choose the smallest format that holds the source's values of all classes.

    Raises:
        UserError: some classes are told by a number and others by a colour.
    """
    values = [info.value for info in labels.classes]
    numbers = [value for value in values if isinstance(value, int)]
    colors = [value for value in values if not isinstance(value, int)]
    if numbers and colors:
        raise UserError("the label table tells some classes by a number and others by a colour; pack the data again")
    if colors:
        return MaskFormat("rgb", np.array(colors, dtype=np.uint8))
    if min(numbers) >= 0 and max(numbers) <= 255:
        palette = np.zeros((256, 3), dtype=np.uint8)
        palette[numbers] = labels.palette
        return MaskFormat("palette", np.array(numbers, dtype=np.uint8), palette)
    if min(numbers) >= 0 and max(numbers) <= 65535:
        return MaskFormat("png16", np.array(numbers, dtype=np.uint16))
    return MaskFormat("npy", np.array(numbers, dtype=np.int32))


def encode_overlay(image_HWC: np.ndarray, prediction: Prediction, labels: LabelTable) -> bytes:
    """Draw a prediction over its image, with legend, as a JPEG of full colour resolution; a very large one thinned out."""
    height, width = prediction.size_hw
    step = max(-(-max(height, width) // MAX_OVERLAY_SIDE_PX), math.ceil(math.sqrt(height * width / MAX_OVERLAY_PX)))
    image_HWC, pred_HW = image_HWC[::step, ::step], prediction.whole(step)
    picture = draw_overlay(image_HWC, pred_HW, labels.palette, labels.names, labels.ignore_index)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def class_file_names(labels: LabelTable) -> list[str]:
    """Name the mask file of each class: its id, so that names sort, and what of its name suits every file system."""
    digits = len(str(labels.num_classes - 1))
    names = (re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60] for name in labels.names)
    return [f"{class_id:0{digits}d}_{name}".rstrip("_") + ".png" for class_id, name in enumerate(names)]


def write_class_masks(folder: Path, prediction: Prediction, labels: LabelTable) -> None:
    """Write one PNG of 0 and 255 for each class that occurs, and remove those of a former run for classes that do not.

    Raises:
        UserError: a file cannot be written.
    """
    present: set[int] = set()
    for ids_HW in prediction.iter_bands():
        present.update(classes_in(ids_HW, num_classes=labels.num_classes))
    for class_id, name in enumerate(class_file_names(labels)):
        path = folder / name
        if class_id not in present:
            path.unlink(missing_ok=True)
            continue
        with open_whole(path) as file:
            png = PngWriter(file, prediction.size_hw, dtype=np.dtype(np.uint8))
            for ids_HW in prediction.iter_bands():
                png.write_rows(np.where(ids_HW == class_id, 255, 0).astype(np.uint8))
            png.close()


def write_file(path: Path, data: bytes) -> None:
    """Write a whole file, making its folder.

    Raises:
        UserError: it cannot be written (no permission, disk full).
    """
    with open_whole(path) as file:
        file.write(data)


@contextmanager
def open_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file that appears under its name only when the block ends well.

    Raises:
        UserError: it cannot be written (no permission, disk full).
    """
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); free space or take another --out") from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_npy_header(file: BinaryIO, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
    """Write the head of an .npy file in C order; the raw numbers follow."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


class ProbsWriter:
    """Writes class probabilities to an .npy file piece by piece; float16, (K, H, W), C order.

    Args:
        file: open for writing, at its start.
        shape_KHW: classes, height and width.
    """

    def __init__(self, file: BinaryIO, shape_KHW: tuple[int, int, int]) -> None:
        self._file = file
        self._shape = shape_KHW
        write_npy_header(file, np.dtype("<f2"), shape_KHW)
        self._start = file.tell()

    def write_block(self, top: int, left: int, probs_KHW: np.ndarray) -> None:
        """Write a piece of all classes whose first pixel is at this row and column; float16, (K, rows, columns)."""
        _, height, width = self._shape
        whole_rows = probs_KHW.shape[2] == width
        for class_id, rows_HW in enumerate(probs_KHW):
            for place, piece in enumerate([rows_HW] if whole_rows else rows_HW):
                self._file.seek(self._start + 2 * (width * (class_id * height + top + place) + left))
                self._file.write(np.ascontiguousarray(piece, dtype="<f2").tobytes())
