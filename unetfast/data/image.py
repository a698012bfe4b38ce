"""An image file's bytes become RGB, 8 bits, with every change on the way counted; anything doubtful is refused.

JPEGs are decoded by libjpeg-turbo through simplejpeg, which reports damage that Pillow passes over in silence, and gives
the same pixels; all else by Pillow. Plugins are called directly: `Image.open` would warn by a process-wide limit. The size
in the header is checked before memory is taken, and pixels go from decoder to array in bands, since Pillow takes four bytes a
pixel and copies twice when it is asked for all of them. Colour profiles are not applied.
"""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from unetfast.data.image_headers import check_png, read_gif, read_jpeg_frame
from unetfast.data.pillow_limit import pillow_allows
from unetfast.errors import BadSampleError

DEFAULT_MAX_PIXELS = 178_956_970  # what Pillow refuses by default
EXIF_CHOICES = ("error", "apply", "ignore")
JpegKind = Literal["baseline", "progressive", ""]

_SKIP = "or drop the pair with --on-bad skip"
_GET_AGAIN = f"get the file again, {_SKIP}"
_ORIENTATION_TAG = 0x0112
_PILLOW_GUARDED = (GifImageFile, TiffImageFile)  # these plugins warn by themselves above Pillow's own limit
_SPOOLED_PIXELS = 2**27
_BAND_BYTES = 8 * 2**20  # taken out of a decoded picture at once

# first bytes -> plugin
_PLUGINS: tuple[tuple[bytes, Callable[[io.BytesIO], ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"GIF87a", GifImageFile),
    (b"GIF89a", GifImageFile),
    (b"BM", BmpImageFile),
    (b"II*\0", TiffImageFile),
    (b"MM\0*", TiffImageFile),
    (b"RIFF", WebPImageFile),
    (b"P4", PpmImageFile),
    (b"P5", PpmImageFile),
    (b"P6", PpmImageFile),
)

# EXIF orientation -> what Pillow does to show the image upright, and its inverse (ImageOps.exif_transpose)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BACK = {**_UPRIGHT, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}

# what libjpeg-turbo warns of although every pixel was decoded
_HARMLESS_JPEG = ("extraneous bytes before marker", "Invalid SOS parameters", "Unknown Adobe color transform")


class TooLargeError(BadSampleError):
    """A picture has more pixels than the limit that guards against files made to fill the memory.

    Args:
        file: the file at fault.
        reason: what was found, and the limit.
        remedy: what to do about it.
        num_pixels: what it has; 0 where that is not known.
    """

    def __init__(self, file: str, reason: str, remedy: str, num_pixels: int = 0) -> None:
        super().__init__(file, reason, remedy)
        self.num_pixels = num_pixels

    def __reduce__(self) -> tuple[type[TooLargeError], tuple[str, str, str, int]]:  # type: ignore[override]
        return type(self), (self.file, self.reason, self.remedy, self.num_pixels)


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """A decoded image.

    Args:
        rgb_HWC: uint8, (H, W, 3), RGB.
        copyable: the file's bytes are a JPEG that every decoder reads as these pixels, so they may be stored untouched.
        jpeg_kind: how a JPEG is coded; "" for other formats.
        notes: what was changed on the way in, such as "grey -> RGB".
    """

    rgb_HWC: np.ndarray
    copyable: bool = False
    jpeg_kind: JpegKind = ""
    notes: tuple[str, ...] = ()


def load_image(
    data: bytes | Path,
    *,
    file: str,
    exif: str = "error",
    max_pixels: int = DEFAULT_MAX_PIXELS,
    on_header: Callable[[int], object] | None = None,
) -> LoadedImage:
    """Decode an image file to RGB, 8 bits.

    Grey is replicated, CMYK converted, 16 bits reduced to their high byte (as Pillow does for 16-bit colour), transparency
    dropped; each is noted.

    Args:
        data: the file's bytes (JPEG, PNG, GIF, BMP, TIFF, WebP, PNM), or its path: then the bytes are let go as soon as they
            are decoded.
        file: its name, for messages.
        exif: what to do where EXIF says that the picture is shown turned: "error" refuses (its mask may be turned or
            not), "apply" turns the pixels, "ignore" leaves them as stored.
        max_pixels: larger images are refused before decoding.
        on_header: told the number of pixels once the header was found sound, before memory is taken for them.

    Raises:
        BadSampleError: undecodable, damaged, cut short, animated, larger than `max_pixels` (`TooLargeError`), more than 16
            bits, or turned by EXIF under "error".
        ValueError: `exif` is none of its three values.
        OSError: the path cannot be read.
    """
    if exif not in EXIF_CHOICES:
        raise ValueError(f"exif is {exif!r}, not one of {', '.join(EXIF_CHOICES)}")
    with pillow_allows(max_pixels if max_pixels > DEFAULT_MAX_PIXELS else 0):
        return _load_image(data, file, exif, max_pixels, on_header)


def _load_image(
    data: bytes | Path, file: str, exif: str, max_pixels: int, on_header: Callable[[int], object] | None
) -> LoadedImage:
    if isinstance(data, Path):
        data = data.read_bytes()
    picture = open_picture(data, file, max_pixels)
    orientation = _orientation(picture, data)
    if orientation != 1 and exif == "error":
        raise BadSampleError(
            file,
            f"EXIF orientation {orientation}: viewers show it turned, and its mask may fit either way",
            f"--exif apply turns the image, --exif ignore takes the pixels as stored, {_SKIP}",
        )
    if on_header is not None:
        on_header(picture.width * picture.height)
    if isinstance(picture, JpegImageFile):
        loaded = _load_jpeg(data, picture, file)
    else:
        sixteen_bit_color = isinstance(picture, PngImageFile) and picture.mode != "I;16" and check_png(data).bit_depth == 16
        del data  # Pillow lets go of it too
        loaded = _load_other(picture, file, orientation, sixteen_bit_color)
    del picture
    if orientation == 1:
        return loaded
    # under "ignore" the bytes must not be copied either: other readers would turn them by their EXIF tag
    if exif == "ignore":
        return LoadedImage(loaded.rgb_HWC, False, loaded.jpeg_kind, (*loaded.notes, "EXIF orientation ignored"))
    turned = np.ascontiguousarray(_turn_upright(loaded.rgb_HWC, orientation))
    return LoadedImage(turned, False, loaded.jpeg_kind, (*loaded.notes, "EXIF orientation applied"))


def open_picture(data: bytes, file: str, max_pixels: int = DEFAULT_MAX_PIXELS) -> ImageFile:
    """Read an image's header and check format, size and number of frames; no pixel is decoded.

    Returns:
        Pillow's image, not loaded.

    Raises:
        BadSampleError: an unknown format, a broken header, a picture larger than `max_pixels`, an animation.
    """
    plugin = next((plugin for magic, plugin in _PLUGINS if data.startswith(magic)), None)
    if plugin is None:
        raise BadSampleError(
            file,
            f"is no image that can be read (it begins with {data[:8]!r})",
            f"convert it to PNG or JPEG, {_SKIP}",
        )
    limit = max_pixels
    if plugin in _PILLOW_GUARDED and max_pixels <= DEFAULT_MAX_PIXELS:
        limit = min(limit, Image.MAX_IMAGE_PIXELS or limit)
    try:
        if plugin is GifImageFile:
            gif = read_gif(data)
            if gif.width * gif.height > limit:
                raise _bomb(file, f"{gif.width}x{gif.height} pixels", limit, gif.width * gif.height)
            if gif.num_frames > 1:
                raise _animated(file, gif.num_frames)
            if not gif.complete:
                raise ValueError("the file is cut short")
        elif plugin is PngImageFile:
            check_png(data)
    except BadSampleError:
        raise
    except ValueError as error:
        raise BadSampleError(file, f"cannot be decoded ({error})", _GET_AGAIN) from None
    try:
        picture = plugin(io.BytesIO(data))
        num_frames = getattr(picture, "n_frames", 1)
    except Image.DecompressionBombError:
        raise _bomb(file, "more pixels than Pillow's own limit", limit) from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, UnidentifiedImageError, IndexError, KeyError) as error:
        raise BadSampleError(file, f"cannot be decoded ({_first_line(error)})", _GET_AGAIN) from None
    width, height = picture.size
    if width * height > limit:
        raise _bomb(file, f"{width}x{height} pixels", limit, width * height)
    if width <= 0 or height <= 0:
        raise BadSampleError(file, f"is {width}x{height} pixels", _GET_AGAIN)
    if num_frames > 1:
        raise _animated(file, num_frames)
    return picture


def load_pixels(picture: ImageFile, file: str) -> None:
    """Decode the pixels of an opened picture.

    Raises:
        BadSampleError: the file is damaged or cut short.
    """
    try:
        picture.load()
    except Image.DecompressionBombError:
        raise _bomb(file, "more pixels than Pillow's own limit", Image.MAX_IMAGE_PIXELS or 0) from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, KeyError) as error:
        raise BadSampleError(file, f"cannot be decoded ({_first_line(error)})", _GET_AGAIN) from None


def _load_jpeg(data: bytes, picture: JpegImageFile, file: str) -> LoadedImage:
    try:
        frame = read_jpeg_frame(data)
    except ValueError as error:
        raise BadSampleError(file, f"cannot be decoded ({error})", _GET_AGAIN) from None
    marker, component_ids = frame.marker, frame.component_ids
    kind: JpegKind = "baseline" if marker in (0xC0, 0xC1) else "progressive" if marker == 0xC2 else ""
    if len(component_ids) == 4:
        _decode_jpeg(data, file, "CMYK")  # for the damage that Pillow does not see
        load_pixels(picture, file)
        return LoadedImage(_to_rgb(picture), False, kind, ("CMYK -> RGB",))
    rgb_HWC, warned = _decode_jpeg(data, file, "RGB")
    notes = []
    if len(component_ids) == 1:
        notes.append("grey -> RGB")
    # written without the usual YCbCr step; decoders on GPUs take it for YCbCr
    stored_as_rgb = len(component_ids) == 3 and (
        picture.info.get("adobe_transform") == 0 or (component_ids == b"RGB" and not {"adobe", "jfif"} & picture.info.keys())
    )
    if stored_as_rgb:
        notes.append("JPEG stored as RGB instead of YCbCr")
    if warned:
        notes.append("JPEG with harmless faults")
    return LoadedImage(rgb_HWC, bool(kind) and not stored_as_rgb and not warned, kind, tuple(notes))


def _decode_jpeg(data: bytes, file: str, colorspace: str) -> tuple[np.ndarray, bool]:
    """Decode, and say whether libjpeg-turbo warned of something harmless."""
    try:
        return simplejpeg.decode_jpeg(data, colorspace=colorspace, strict=True), False
    except (ValueError, OSError) as error:
        message = _first_line(error)
        if not any(text in message for text in _HARMLESS_JPEG):
            raise BadSampleError(file, f"is damaged or cut short ({message})", _GET_AGAIN) from None
    return simplejpeg.decode_jpeg(data, colorspace=colorspace, strict=False), True


def _load_other(picture: ImageFile, file: str, orientation: int, sixteen_bit_color: bool) -> LoadedImage:
    load_pixels(picture, file)
    _let_go_of_bytes(picture)
    image: Image.Image = picture
    if isinstance(picture, TiffImageFile) and orientation != 1:
        image = picture.transpose(_BACK[orientation])  # Pillow turns TIFFs while loading
        picture.close()
    notes = []
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        notes.append("transparency dropped")
        image.info.pop("transparency", None)
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):
        rgb_HWC, more_notes = _high_byte(image, file)
        return LoadedImage(rgb_HWC, notes=(*notes, *more_notes))
    if image.mode in ("1", "L", "LA", "La"):
        notes.append("grey -> RGB")
    elif image.mode == "CMYK":
        notes.append("CMYK -> RGB")
    elif image.mode not in ("RGB", "RGBA", "P", "PA"):
        raise BadSampleError(
            file, f"holds {image.mode} pixels", f"convert it to 8-bit RGB or grey yourself, so that the range is yours, {_SKIP}"
        )
    if sixteen_bit_color:
        notes.append("16 bits -> 8 bits")
    return LoadedImage(_to_rgb(image), notes=tuple(notes))


def _let_go_of_bytes(picture: ImageFile) -> None:
    """Free the file's bytes, which a decoded picture still holds: those of a large PNG are half as large as its pixels."""
    for stream in (picture.fp, getattr(picture, "_fp", None)):
        if isinstance(stream, io.BytesIO):
            stream.close()


def _iter_bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Cut a picture into bands of whole rows: (first row, band)."""
    num_rows = max(1, _BAND_BYTES // (4 * image.width))
    for top in range(0, image.height, num_rows):
        yield top, image.crop((0, top, image.width, min(top + num_rows, image.height)))


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Convert a picture to uint8, (H, W, 3), band by band; alpha is dropped, and the colours beneath it stay as they are.

    A very large picture goes by way of the disk, so that Pillow's four bytes a pixel are gone before our three are there.
    """
    shape = (image.height, image.width, 3)
    if image.width * image.height > _SPOOLED_PIXELS:
        with tempfile.TemporaryFile(buffering=0) as file:
            for _, band in _iter_bands(image):
                _band_to_rgb(band).tofile(file)
            image.close()
            file.seek(0)
            return np.fromfile(file, dtype=np.uint8).reshape(shape)
    rgb_HWC = np.empty(shape, dtype=np.uint8)
    for top, band in _iter_bands(image):
        rgb_HWC[top : top + band.height] = _band_to_rgb(band)
    return rgb_HWC


def _band_to_rgb(band: Image.Image) -> np.ndarray:
    if band.mode == "LA":
        band = band.getchannel("L")
    elif band.mode == "PA":
        band = band.convert("RGBA")
    return np.asarray(band if band.mode == "RGB" else band.convert("RGB"))


def _high_byte(image: Image.Image, file: str) -> tuple[np.ndarray, list[str]]:
    """Reduce 16-bit grey to RGB of 8 bits; refuse what would turn black."""
    extrema = [(int(band.min()), int(band.max())) for band in (np.asarray(band) for _, band in _iter_bands(image))]
    low, high = min(low for low, _ in extrema), max(high for _, high in extrema)
    remedy = f"convert it to 8 bits yourself, so that the range is yours, {_SKIP}"
    if low < 0 or high > 65535:
        raise BadSampleError(file, f"32-bit values from {low} to {high}", remedy)
    if 0 < high < 256:
        raise BadSampleError(file, f"a 16-bit file with values of 0 to {high} alone: its high bytes are all 0", remedy)
    notes = ["16 bits -> 8 bits", "grey -> RGB"]
    if 0 < high < 4096:
        notes.append("16 bits, less than a sixteenth of the range used: dark")
    rgb_HWC = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for top, band in _iter_bands(image):
        rgb_HWC[top : top + band.height] = (np.asarray(band) >> 8).astype(np.uint8)[:, :, None]
    return rgb_HWC, notes


def _turn_upright(rgb_HWC: np.ndarray, orientation: int) -> np.ndarray:
    """View pixels as EXIF wants them shown; a mirror image is turned after it is mirrored."""
    if orientation in (5, 7):
        return _turn_upright(rgb_HWC.transpose(1, 0, 2), {5: 1, 7: 3}[orientation])
    if orientation in (2, 4):
        return rgb_HWC[:, ::-1] if orientation == 2 else rgb_HWC[::-1]
    # counter-clockwise quarter turns
    return np.rot90(rgb_HWC, {1: 0, 3: 2, 6: 3, 8: 1}[orientation])


def _orientation(picture: ImageFile, data: bytes) -> int:
    """EXIF orientation, 1 (upright) to 8; a block that cannot be read turns no viewer's picture and counts as 1."""
    try:
        if isinstance(picture, PngImageFile):
            exif = Image.Exif()
            exif.load(check_png(data).exif)  # Pillow reads a block behind the pixels only after decoding them
        else:
            exif = picture.getexif()
        found = exif.get(_ORIENTATION_TAG)
    except (OSError, SyntaxError, ValueError, struct.error, KeyError):
        return 1
    return found if isinstance(found, int) and found in _UPRIGHT else 1


def _bomb(file: str, found: str, limit: int, num_pixels: int = 0) -> TooLargeError:
    return TooLargeError(file, f"has {found}, the limit is {limit} pixels", f"scale it down, its mask too, {_SKIP}", num_pixels)


def _animated(file: str, num_frames: int) -> BadSampleError:
    return BadSampleError(
        file,
        f"is an animation of {num_frames} frames (or pages); an image here is one frame",
        f"save the frame that belongs to the mask as PNG, {_SKIP}",
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
