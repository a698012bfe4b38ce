"""Predicted class ids become files: masks in the source's own values and colours, overlays, masks by class.

Each file is written under a temporary name and renamed, so a name never holds half a picture.

Axis legend: K classes, H height, W width.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from unetfast.data.labels import LabelTable
from unetfast.errors import UserError
from unetfast.viz.overlay import draw_overlay
from unetfast.viz.palette import classes_in

JPEG_QUALITY = 92
MAX_OVERLAY_PX = 16384  # JPEG ends at 65,535; larger overlays show every n-th pixel


@dataclass(frozen=True, slots=True)
class MaskFormat:
    """How predicted masks are stored, so that they look like the source's own.

    Args:
        kind: "palette" (PNG of mode P: a pixel is the class's value, shown in its colour), "rgb" (PNG in the colours that
            mean the classes), "png16" (16-bit grey PNG), or "npy" (int32, where a value fits no PNG, such as -1).
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
        values = self.value_of[pred_HW]
        if self.kind == "npy":
            buffer = io.BytesIO()
            np.save(buffer, values)
            return buffer.getvalue()
        picture = Image.fromarray(values)
        if self.palette is not None:
            picture.putpalette(self.palette.tobytes())
        return encode_png(picture)


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


def encode_png(picture: Image.Image) -> bytes:
    """Encode losslessly."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def encode_overlay(image_HWC: np.ndarray, pred_HW: np.ndarray, labels: LabelTable) -> bytes:
    """Draw a prediction over its image, with legend, as a JPEG of full colour resolution."""
    step = -(-max(pred_HW.shape) // MAX_OVERLAY_PX)
    image_HWC, pred_HW = image_HWC[::step, ::step], pred_HW[::step, ::step]
    picture = draw_overlay(image_HWC, pred_HW, labels.palette, labels.names, labels.ignore_index)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def class_file_names(labels: LabelTable) -> list[str]:
    """Name the mask file of each class: its id, so that names sort, and what of its name suits every file system."""
    digits = len(str(labels.num_classes - 1))
    names = (re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60] for name in labels.names)
    return [f"{class_id:0{digits}d}_{name}".rstrip("_") + ".png" for class_id, name in enumerate(names)]


def write_class_masks(folder: Path, pred_HW: np.ndarray, labels: LabelTable) -> None:
    """Write one PNG of 0 and 255 for each class that occurs, and remove those of a former run for classes that do not.

    Raises:
        UserError: a file cannot be written.
    """
    present = classes_in(pred_HW, num_classes=labels.num_classes)
    for class_id, name in enumerate(class_file_names(labels)):
        path = folder / name
        if class_id in present:
            mask_HW = np.where(pred_HW == class_id, 255, 0).astype(np.uint8)
            write_file(path, encode_png(Image.fromarray(mask_HW)))
        else:
            path.unlink(missing_ok=True)


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


class ProbsWriter:
    """Writes class probabilities to an .npy file stripe by stripe; float16, (K, H, W), C order.

    Args:
        file: open for writing, at its start.
        shape_KHW: classes, height and width.
    """

    def __init__(self, file: BinaryIO, shape_KHW: tuple[int, int, int]) -> None:
        self._file = file
        self._shape = shape_KHW
        header = {"descr": "<f2", "fortran_order": False, "shape": shape_KHW}
        np.lib.format.write_array_header_1_0(file, header)
        self._start = file.tell()

    def write_rows(self, top: int, probs_KHW: np.ndarray) -> None:
        """Write rows `top` and following of all classes; float16, (K, rows, W)."""
        _, height, width = self._shape
        for class_id, rows_HW in enumerate(probs_KHW):
            self._file.seek(self._start + 2 * width * (class_id * height + top))
            self._file.write(np.ascontiguousarray(rows_HW, dtype="<f2").tobytes())
