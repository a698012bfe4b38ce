"""A mask file's bytes become class ids: values decoded as they stand in the file, then looked up in one table.

The values of a palette image are its indices, not its colours: that is how VOC, ADE20K and Carvana write classes. Where the
classes are told apart by colour (a colour table was given and the masks are RGB), palettes are turned into colours first.
A value that the table does not hold is never guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile

from unetfast.data.counting import count_values
from unetfast.data.image import DEFAULT_MAX_PIXELS, load_pixels, open_picture
from unetfast.data.image_headers import check_png
from unetfast.data.labels import LabelTable, MaskValue
from unetfast.data.npy import decode_npy_mask
from unetfast.data.sample import FileSpan, shorten
from unetfast.data.spans import describe_span, read_span
from unetfast.errors import BadSampleError, UserError

NPY_MAGIC = b"\x93NUMPY"
# (value or colour in the masks, class id or None for ignore)
ValueMap = tuple[tuple[MaskValue, int | None], ...]

_SKIP = "or drop the pair with --on-bad skip"
_MIN_VALUE, _MAX_VALUE = -32768, 65535  # values that the lookup table holds


@dataclass(frozen=True, slots=True)
class MaskValues:
    """A decoded mask before its values are looked up.

    Args:
        values: integers (H, W), or uint8 RGB (H, W, 3).
        palette: uint8 (n, 3), RGB, n at most 256, of a palette image; None for all else.
    """

    values: np.ndarray
    palette: np.ndarray | None = None

    @property
    def is_rgb(self) -> bool:
        return self.values.ndim == 3

    def as_rgb(self) -> np.ndarray:
        """Colours, uint8 (H, W, 3): through the palette, or grey replicated."""
        if self.is_rgb:
            return self.values
        if self.palette is None:
            return np.repeat(self.values[:, :, None].astype(np.uint8), 3, axis=2)
        full = np.zeros((256, 3), dtype=np.uint8)
        full[: len(self.palette)] = self.palette
        return np.asarray(full[self.values])

    def as_single_channel(self, file: str) -> np.ndarray:
        """Integers (H, W); an RGB mask whose three channels are equal is grey.

        Raises:
            BadSampleError: the mask is coloured.
        """
        if not self.is_rgb:
            return self.values
        red, green, blue = cv2.split(self.values)
        if np.array_equal(red, green) and np.array_equal(red, blue):
            return np.asarray(red)
        colors = shorten_values(distinct_values(self)[0])
        raise BadSampleError(
            file,
            f"RGB mask without a colour table; its colours are {colors}",
            "name each class's colour with --classes FILE (lines of `name r g b`), or with --map '#rrggbb=ID'",
        )


def decode_mask_values(data: bytes, file: str, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> MaskValues:
    """Decode a mask file; no value is changed on the way.

    Args:
        data: the file's bytes: PNG, GIF, BMP, TIFF, WebP, PNM (mode 1, L, P, I;16, RGB) or .npy of integers.
        file: its name, for messages.
        max_pixels: larger masks are refused before decoding.

    Raises:
        BadSampleError: undecodable, damaged, animated, too large, JPEG (which changes values at edges), or of another mode.
    """
    if data.startswith(NPY_MAGIC):
        return MaskValues(decode_npy_mask(data, file))
    picture = open_picture(data, file, max_pixels)
    if isinstance(picture, JpegImageFile):
        raise BadSampleError(
            file,
            "is a JPEG: its compression changes class values along every edge",
            f"use the masks as they were before JPEG (PNG, GIF, .npy), {_SKIP}",
        )
    if isinstance(picture, PpmImageFile) and not any("raw" in str(tile[0]) for tile in picture.tile):
        raise BadSampleError(file, "is a PNM whose greatest value is not 255, which readers scale", f"save it as PNG, {_SKIP}")
    load_pixels(picture, file)
    return MaskValues(_pixel_values(picture, data, file), _palette(picture) if picture.mode == "P" else None)


def _pixel_values(picture: Image.Image, data: bytes, file: str) -> np.ndarray:
    mode = picture.mode
    if mode == "1":
        bytes_HW = np.asarray(picture).view(np.uint8)  # Pillow hands out 0 and 255
        return np.asarray(bytes_HW != 0, dtype=np.uint8)
    if mode in ("L", "P", "I;16", "I"):
        return np.asarray(picture)
    if mode == "I;16B":
        return np.asarray(picture).astype(np.uint16)
    if mode == "LA":
        return np.asarray(picture.getchannel("L"))
    if mode in ("RGB", "RGBA"):
        if isinstance(picture, PngImageFile) and check_png(data).bit_depth == 16:
            raise BadSampleError(file, "is an RGB mask of 16 bits a channel", f"save it as 8-bit RGB or as class ids, {_SKIP}")
        return np.asarray(np.asarray(picture)[:, :, :3])  # transparency says nothing of classes
    raise BadSampleError(file, f"holds {mode} pixels, a mask holds class values", f"save it as PNG of class ids, {_SKIP}")


def _palette(picture: Image.Image) -> np.ndarray | None:
    flat = picture.getpalette("RGB")
    return None if not flat else np.array(flat, dtype=np.uint8).reshape(-1, 3)


@dataclass(frozen=True, slots=True)
class TableMaskReader:
    """Reads mask files by a table of values or colours.

    Args:
        labels: the classes.
        table: every value (or colour) that may occur, and its class id or None for ignore; all numbers or all colours.
        by_color: `table` holds colours.
    """

    labels: LabelTable
    table: ValueMap
    by_color: bool = False

    def __call__(self, span: FileSpan) -> np.ndarray:
        """Read one mask's class ids; see `MaskReader`."""
        file = describe_span(span)
        mask = decode_mask_values(read_span(span), file)
        return self.to_ids(mask, file)

    def to_ids(self, mask: MaskValues, file: str) -> np.ndarray:
        """Look up a decoded mask: ids of dtype `labels.mask_dtype`, (H, W).

        Raises:
            BadSampleError: a value has no class.
        """
        if self.by_color:
            return look_up_colors(mask.as_rgb(), self.table, self.labels, file)
        return look_up_values(mask.as_single_channel(file), self.table, self.labels, file)


def look_up_values(values_HW: np.ndarray, table: ValueMap, labels: LabelTable, file: str) -> np.ndarray:
    """Turn a mask's numbers into class ids.

    Args:
        values_HW: any integer dtype, (H, W).
        table: number -> class id, or None for ignore.
        labels: the classes.
        file: the mask's file, for messages.

    Returns:
        Ids, dtype `labels.mask_dtype`, (H, W).

    Raises:
        BadSampleError: a number has no class; names the numbers found.
    """
    lookup, unknown = _value_lookup(table, labels.num_classes, labels.ignore_index)
    if values_HW.dtype == np.uint8:
        ids_HW = np.asarray(cv2.LUT(np.ascontiguousarray(values_HW), lookup[-_MIN_VALUE : -_MIN_VALUE + 256]))
    elif values_HW.dtype == np.uint16:
        ids_HW = lookup[-_MIN_VALUE:][values_HW]
    else:
        low, high = int(values_HW.min()), int(values_HW.max())
        if low < _MIN_VALUE or high > _MAX_VALUE:
            raise BadSampleError(
                file, f"values run from {low} to {high}", f"a mask holds class values up to {_MAX_VALUE}, {_SKIP}"
            )
        ids_HW = lookup[values_HW.astype(np.int64) - _MIN_VALUE]
    if bool((ids_HW == unknown).any()):
        found = np.unique(values_HW)
        strange = np.unique(values_HW[ids_HW == unknown])
        raise _unknown(file, [int(value) for value in found], [int(value) for value in strange], table, labels)
    return np.asarray(ids_HW.astype(labels.mask_dtype, copy=False))


def look_up_colors(rgb_HWC: np.ndarray, table: ValueMap, labels: LabelTable, file: str) -> np.ndarray:
    """Turn a mask's colours into class ids; as `look_up_values`, for uint8 RGB (H, W, 3)."""
    lookup, unknown = _color_lookup(table, labels.num_classes, labels.ignore_index)
    codes_HW = color_codes(rgb_HWC)
    ids_HW = lookup[codes_HW]
    if bool((ids_HW == unknown).any()):
        found = [_decode_color(int(code)) for code in np.unique(codes_HW)]
        strange = [_decode_color(int(code)) for code in np.unique(codes_HW[ids_HW == unknown])]
        raise _unknown(file, found, strange, table, labels)
    return np.asarray(ids_HW.astype(labels.mask_dtype, copy=False))


def color_codes(rgb_HWC: np.ndarray) -> np.ndarray:
    """Pack uint8 RGB (H, W, 3) into uint32 (H, W): red + 256 * green + 65536 * blue."""
    rgba_HWC = np.asarray(cv2.cvtColor(np.ascontiguousarray(rgb_HWC), cv2.COLOR_RGB2RGBA))
    return rgba_HWC.view("<u4")[:, :, 0] & np.uint32(0xFFFFFF)


def _decode_color(code: int) -> tuple[int, int, int]:
    return code & 255, code >> 8 & 255, code >> 16


@lru_cache(maxsize=8)
def _value_lookup(table: ValueMap, num_classes: int, ignore_index: int) -> tuple[np.ndarray, int]:
    lookup, unknown = _empty_lookup(_MAX_VALUE - _MIN_VALUE + 1, num_classes, ignore_index)
    for value, class_id in table:
        if isinstance(value, tuple):
            raise TypeError(f"colour {value} in a table of numbers")
        lookup[value - _MIN_VALUE] = ignore_index if class_id is None else class_id
    return lookup, unknown


@lru_cache(maxsize=2)
def _color_lookup(table: ValueMap, num_classes: int, ignore_index: int) -> tuple[np.ndarray, int]:
    lookup, unknown = _empty_lookup(1 << 24, num_classes, ignore_index)
    for value, class_id in table:
        if not isinstance(value, tuple):
            raise TypeError(f"number {value} in a table of colours")
        red, green, blue = value
        lookup[red | green << 8 | blue << 16] = ignore_index if class_id is None else class_id
    return lookup, unknown


def _empty_lookup(size: int, num_classes: int, ignore_index: int) -> tuple[np.ndarray, int]:
    """Make a table full of an id that means unknown: the first free one, or past the dtype where all are taken."""
    narrow, wide = (np.uint8, np.uint16) if ignore_index == 255 else (np.uint16, np.uint32)
    if num_classes < ignore_index:
        return np.full(size, num_classes, dtype=narrow), num_classes
    unknown = 2 * ignore_index + 1
    return np.full(size, unknown, dtype=wide), unknown


def _unknown(
    file: str, found: Sequence[MaskValue], strange: Sequence[MaskValue], table: ValueMap, labels: LabelTable
) -> BadSampleError:
    known = sorted((value for value, _ in table), key=lambda value: value if isinstance(value, tuple) else (value,))
    one = format_value(strange[0])
    return BadSampleError(
        file,
        f"holds the values {shorten_values(found)}, of which {shorten_values(strange)} belong to none of the "
        f"{labels.num_classes} classes (known values: {shorten_values(known)})",
        f"map it with --map '{one}=CLASS_ID' or --map '{one}=ignore', {_SKIP}",
    )


def distinct_values(mask: MaskValues) -> tuple[Sequence[MaskValue], bool]:
    """List the values of a mask, ascending, and say whether they are colours; grey RGB counts as numbers."""
    values = mask.values
    if mask.is_rgb:
        colors = [_decode_color(int(code)) for code in np.unique(color_codes(values))]
        if all(red == green == blue for red, green, blue in colors):
            return sorted(red for red, _, _ in colors), False
        return sorted(colors), True
    if values.dtype in (np.uint8, np.uint16):
        return np.flatnonzero(count_values(values)).tolist(), False
    return np.unique(values).tolist(), False


def format_value(value: MaskValue) -> str:
    """Write a mask value as --map takes it: a number, or #rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*value) if isinstance(value, tuple) else str(value)


def shorten_values(values: Sequence[MaskValue], limit: int = 12) -> str:
    """List values for a message, the first `limit` of them."""
    numbers = [value for value in values if not isinstance(value, tuple)]
    if len(numbers) == len(values):
        return shorten(numbers, limit)
    text = ", ".join(format_value(value) for value in values[:limit])
    return f"{text}, ... ({len(values)} values)" if len(values) > limit else text


def parse_color(text: str) -> tuple[int, int, int] | None:
    """Read `#rrggbb`; None where the text is something else."""
    match = re.fullmatch(r"#([0-9a-fA-F]{2})([0-9a-fA-F]{2})([0-9a-fA-F]{2})", text.strip())
    return (int(match[1], 16), int(match[2], 16), int(match[3], 16)) if match else None


def apply_value_map(labels: LabelTable, value_map: ValueMap) -> LabelTable:
    """Fit a fixed label table to --map: a value mapped to `ignore` is declared, where the table has no ignored value yet.

    Raises:
        UserError: --map names a colour, or a class that the table does not have.
    """
    for value, class_id in value_map:
        if isinstance(value, tuple):
            raise UserError(
                f"--map {format_value(value)}: the masks of this data set hold numbers; map these, such as --map 255=1"
            )
        if class_id is not None and class_id >= labels.num_classes:
            raise UserError(f"--map {value}={class_id}: the data set has the classes 0..{labels.num_classes - 1}")
    ignored = [value for value, class_id in value_map if class_id is None]
    if not ignored or labels.has_ignore:
        return labels
    return labels.model_copy(update={"ignore_value": ignored[0]})


def check_value(value: int, where: str) -> None:
    """Refuse a value that no mask can hold: tables reach from -32768 to 65535.

    Raises:
        UserError: begins with `where`, the option or line that names the value.
    """
    if not _MIN_VALUE <= value <= _MAX_VALUE:
        raise UserError(f"{where}: values of masks lie between {_MIN_VALUE} and {_MAX_VALUE}")


def parse_value_map(texts: list[str]) -> ValueMap:
    """Read the values of --map: `VALUE=ID` or `VALUE=ignore`, VALUE a number or `#rrggbb`; several may be joined by commas.

    Raises:
        UserError: a text is of another form, or one value is mapped twice.
    """
    pairs: dict[MaskValue, int | None] = {}
    for text in (part.strip() for whole in texts for part in whole.split(",")):
        left, _, right = (part.strip() for part in text.partition("="))
        color = parse_color(left)
        value: MaskValue | None = color if color else int(left) if re.fullmatch(r"-?\d{1,9}", left) else None
        if value is None or not (right == "ignore" or re.fullmatch(r"\d{1,5}", right)):
            raise UserError(
                f"--map {text}: not of the form VALUE=CLASS_ID or VALUE=ignore, such as --map 255=1, --map 7=ignore or "
                "--map '#ff0000=2'"
            )
        if not isinstance(value, tuple):
            check_value(value, f"--map {text}")
        class_id = None if right == "ignore" else int(right)
        if value in pairs and pairs[value] != class_id:
            raise UserError(f"--map {text}: {left} is mapped twice; keep one of the two")
        pairs[value] = class_id
    return tuple(pairs.items())
