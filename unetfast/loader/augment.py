"""What is done to each sample: the numbers of its augmentation, for many samples at once; no pixels here.

Every number is drawn for (seed, epoch, sample) alone, so both backends, all threads and ranks, and a resumed run do the same to
the same sample. (A sample that the balanced sampler takes several times in an epoch is drawn anew each time.) One choice is
left open here: with `augment.max_class_share` several crop boxes are drawn, and the sample's mask takes one (foreground.py).

Coordinates are (x, y) with whole numbers at pixel edges: the centre of pixel (row i, column j) is (j + 0.5, i + 0.5).

What a pixel is. Image: (1) the crop box, whole stored pixels, is resized to the target size with an antialiasing triangle
filter, whose support may reach past the box into the image; (2) it is flipped; (3) where a rotation or a zoom-out is drawn, one
bilinear warp about the centre at target size, 0 outside; (4) colour by one matrix, rounded half up, clipped. Mask: the class
at floor(mask_matrix @ (x, y, 1)) of the stored mask, `ignore_index` outside the crop box. The matrix carries a quarter of a
stored pixel over the target's size on top: centres that fall exactly between two stored pixels (a third of all columns at some
ratios) go to the latter one, in float32 on a GPU as in float64 on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from unetfast.config import AugmentConfig
from unetfast.loader.draw import STREAM_AUGMENT, STREAM_CROPS, draw_uniform
from unetfast.loader.order import Places

# the place of each draw in a sample's row; new ones go to the end, so that old runs can be repeated
_DRAWS = (
    "crop_if",
    "crop_area",
    "crop_aspect",
    "crop_y",
    "crop_x",
    "scale_if",
    "scale",
    "hflip",
    "vflip",
    "rotation_if",
    "rotation",
    "brightness_if",
    "brightness",
    "contrast_if",
    "contrast",
    "saturation_if",
    "saturation",
    "hue_if",
    "hue",
)
# what each further crop box is drawn from, box after box, in a stream of its own
_CROP_DRAWS = ("crop_area", "crop_aspect", "crop_y", "crop_x")
NUM_CANDIDATES = 10

# RGB <-> YIQ as DALI's color_twist has it, so that one formula serves both backends
_RGB_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.321], [0.211, -0.523, 0.311]])
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)
_MIDDLE_GREY = 128.0


@dataclass(frozen=True, slots=True)
class Augmentation:
    """The numbers of n samples, one row each.

    Args:
        crop_yxyx: crop box in stored pixels: top, left, bottom, right, int64, (n, 4).
        hflip: mirrored left to right, bool, (n,).
        vflip: mirrored top to bottom, bool, (n,).
        degrees: rotation of the content, counter-clockwise as seen, 0 where none is drawn, float64, (n,).
        zoom: size of the content after the warp relative to before, in (0, 1], float64, (n,).
        has_warp: whether step 3 is done, bool, (n,).
        warp_matrix: from a target position to the position in the resized, flipped image, float64, (n, 2, 3).
        image_matrix: the same for `warp_image`: into the image that is not flipped yet, from pixel centres, float64, (n, 2, 3).
        brightness: factor, 1 where none is drawn, float64, (n,).
        contrast: factor about middle grey (128), likewise.
        saturation: factor, likewise.
        hue: turn of the hue in degrees, 0 where none is drawn, float64, (n,).
        has_color: whether step 4 is done, bool, (n,).
        color_matrix: from (R, G, B, 1) in 0..255 to (R, G, B), float64, (n, 3, 4).
        mask_matrix: from a target position to the position in the stored mask, all steps in one, and the quarter that decides
            ties, float64, (n, 2, 3).
        candidates_yxyx: boxes of which the sample's mask takes one, `crop_yxyx` as drawn first, all equal where a sample is not
            cropped, int64, (n, NUM_CANDIDATES, 4); (n, 0, 4) where nothing is to be chosen.
    """

    crop_yxyx: np.ndarray
    hflip: np.ndarray
    vflip: np.ndarray
    degrees: np.ndarray
    zoom: np.ndarray
    has_warp: np.ndarray
    warp_matrix: np.ndarray
    image_matrix: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray
    hue: np.ndarray
    has_color: np.ndarray
    color_matrix: np.ndarray
    mask_matrix: np.ndarray
    candidates_yxyx: np.ndarray

    def __len__(self) -> int:
        return len(self.hflip)

    def __getitem__(self, part: slice | np.ndarray) -> Augmentation:
        return Augmentation(*(getattr(self, name)[part] for name in _FIELDS))

    @property
    def has_candidates(self) -> bool:
        """Whether masks have their crops still to choose."""
        return bool(self.candidates_yxyx.shape[1])

    def replace_crop(self, row: int, crop_yxyx: np.ndarray, target_hw: tuple[int, int]) -> None:
        """Give a row another crop box, in place; all else that was drawn for it stays.

        Args:
            row: of the sample.
            crop_yxyx: the box, int64, (4,).
            target_hw: height and width of the batch, pixels.
        """
        part = slice(row, row + 1)
        self.crop_yxyx[row] = crop_yxyx
        self.mask_matrix[part] = _mask_matrix(
            self.crop_yxyx[part], self.hflip[part], self.vflip[part], self.warp_matrix[part], target_hw
        )


_FIELDS = tuple(field.name for field in fields(Augmentation))


def boxes_are_fixed(config: AugmentConfig | None) -> bool:
    """Say whether the crop box of every sample is always its whole image; None is a plain resize."""
    if config is None:
        return True
    zooms_in = config.scale.prob > 0 and config.scale.range[1] > 1
    return config.resized_crop.prob == 0 and config.crop.prob == 0 and not zooms_in


def draw_augmentation(
    config: AugmentConfig | None, places: Places, stored_hw: np.ndarray, *, seed: int, target_hw: tuple[int, int]
) -> Augmentation:
    """Draw the augmentation of many samples.

    Args:
        config: probabilities and ranges; None is a plain resize (validation).
        places: the samples and their epochs, n of them.
        stored_hw: height and width of each sample as stored, pixels, (n, 2).
        seed: of the run.
        target_hw: height and width of the batch, pixels.
    """
    config = config or AugmentConfig()
    numbers = draw_uniform(seed, STREAM_AUGMENT, places.epochs, places.sample_ids, places.repeats, len(_DRAWS))
    draws = dict(zip(_DRAWS, numbers.T, strict=True))
    stored_hw = np.asarray(stored_hw, dtype=np.int64).reshape(len(places), 2)

    scale = _draw_value(draws, "scale", config.scale.prob, config.scale.range, otherwise=1.0)
    zoom_in = np.maximum(scale, 1.0)
    crop_yxyx = _draw_crop(config, draws, stored_hw, zoom_in, target_hw)
    candidates_yxyx = np.empty((len(places), 0, 4), dtype=np.int64)
    if config.max_class_share < 1:
        redraws = _draw_crops_anew(draws, places, seed)
        others = [_draw_crop(config, redraw, stored_hw, zoom_in, target_hw) for redraw in redraws]
        candidates_yxyx = np.stack([crop_yxyx, *others], axis=1)
    hflip, vflip = draws["hflip"] < config.hflip.prob, draws["vflip"] < config.vflip.prob
    degrees = _draw_value(draws, "rotation", config.rotation.prob, config.rotation.degrees, otherwise=0.0)
    zoom = np.minimum(scale, 1.0)
    warp_matrix = _warp_matrix(degrees, zoom, target_hw)

    brightness = _draw_value(draws, "brightness", config.brightness.prob, config.brightness.range, otherwise=1.0)
    contrast = _draw_value(draws, "contrast", config.contrast.prob, config.contrast.range, otherwise=1.0)
    saturation = _draw_value(draws, "saturation", config.saturation.prob, config.saturation.range, otherwise=1.0)
    hue = _draw_value(draws, "hue", config.hue.prob, config.hue.degrees, otherwise=0.0)
    return Augmentation(
        crop_yxyx=crop_yxyx,
        hflip=hflip,
        vflip=vflip,
        degrees=degrees,
        zoom=zoom,
        has_warp=(degrees != 0) | (zoom != 1),
        warp_matrix=warp_matrix,
        image_matrix=find_image_matrix(warp_matrix, hflip, vflip, target_hw),
        brightness=brightness,
        contrast=contrast,
        saturation=saturation,
        hue=hue,
        has_color=(brightness != 1) | (contrast != 1) | (saturation != 1) | (hue != 0),
        color_matrix=_color_matrix(brightness, contrast, saturation, hue),
        mask_matrix=_mask_matrix(crop_yxyx, hflip, vflip, warp_matrix, target_hw),
        candidates_yxyx=candidates_yxyx,
    )


def _draw_value(
    draws: dict[str, np.ndarray], name: str, prob: float, bounds: tuple[float, float], otherwise: float
) -> np.ndarray:
    low, high = bounds
    return np.where(draws[f"{name}_if"] < prob, low + (high - low) * draws[name], otherwise)


def _draw_crops_anew(draws: dict[str, np.ndarray], places: Places, seed: int) -> list[dict[str, np.ndarray]]:
    """Draw what further crop boxes are made from; whether a sample is cropped at all stays as it was drawn."""
    num_draws = (NUM_CANDIDATES - 1) * len(_CROP_DRAWS)
    numbers = draw_uniform(seed, STREAM_CROPS, places.epochs, places.sample_ids, places.repeats, num_draws)
    anew = numbers.reshape(len(places), NUM_CANDIDATES - 1, len(_CROP_DRAWS)).transpose(1, 2, 0)
    return [draws | dict(zip(_CROP_DRAWS, of_box, strict=True)) for of_box in anew]


def _draw_crop(
    config: AugmentConfig, draws: dict[str, np.ndarray], stored_hw: np.ndarray, zoom_in: np.ndarray, target_hw: tuple[int, int]
) -> np.ndarray:
    """Draw crop boxes of whole pixels inside the images: top, left, bottom, right, int64, (n, 4)."""
    full = stored_hw.astype(np.float64)
    if config.resized_crop.prob > 0:
        prob, size = config.resized_crop.prob, _resized_crop_size(config, draws, full)
    else:
        wanted = np.array(config.crop.size_hw if min(config.crop.size_hw) > 0 else target_hw, dtype=np.float64)
        # a box that does not fit shrinks by one factor for both sides
        prob, size = config.crop.prob, wanted * np.minimum(1.0, (full / wanted).min(axis=1, keepdims=True))
    drawn = (draws["crop_if"] < prob)[:, None]
    size_hw = np.clip(np.floor(np.where(drawn, size, full) + 0.5), 1, full)
    places = np.stack([draws["crop_y"], draws["crop_x"]], axis=1)
    start = np.where(drawn, np.floor(places * (full - size_hw + 1)), 0.0)
    # zoom-in narrows the box about its centre
    narrow_hw = np.clip(np.floor(size_hw / zoom_in[:, None] + 0.5), 1, size_hw)
    start = start + np.floor((size_hw - narrow_hw) / 2)
    # boxes begin on multiples of the largest of 8, 4, 2, 1 that is at most one target pixel, give or take a percent: so they do
    # not begin between the pixels of a JPEG that is reduced while it is decoded
    least = 1.01 * (narrow_hw / target_hw).min(axis=1, keepdims=True)
    start -= start % np.select([least >= 8, least >= 4, least >= 2], [8, 4, 2], 1)
    return np.concatenate([start, start + narrow_hw], axis=1).astype(np.int64)


def _resized_crop_size(config: AugmentConfig, draws: dict[str, np.ndarray], full: np.ndarray) -> np.ndarray:
    """Draw a box by area and aspect: area uniform; aspect log-uniform over the part of its range that fits into the image."""
    low, high = config.resized_crop.area
    area = low + (high - low) * draws["crop_area"]
    shortest, longest = np.log(config.resized_crop.aspect)
    # stretch r of an area a fits while a * r <= 1 and a / r <= 1
    bound = -np.log(area)
    shortest, longest = np.clip(shortest, -bound, bound), np.clip(longest, -bound, bound)
    stretch = np.exp(shortest + (longest - shortest) * draws["crop_aspect"])
    return np.asarray(full * np.sqrt(np.stack([area / stretch, area * stretch], axis=1)))


def _mask_matrix(
    crop_yxyx: np.ndarray, hflip: np.ndarray, vflip: np.ndarray, warp_matrix: np.ndarray, target_hw: tuple[int, int]
) -> np.ndarray:
    """Map target positions to the stored mask, (n, 2, 3)."""
    matrix = _multiply(_box_matrix(crop_yxyx, hflip, vflip, target_hw), warp_matrix)
    # positions of an upright box are multiples of 1 / (2 * target size) stored pixels: this is the middle between two of them
    matrix[:, :, 2] += 0.25 / np.array([target_hw[1], target_hw[0]])
    return matrix


def _box_matrix(crop_yxyx: np.ndarray, hflip: np.ndarray, vflip: np.ndarray, target_hw: tuple[int, int]) -> np.ndarray:
    """Map positions of the resized, flipped image to the stored one, (n, 2, 3)."""
    top, left, bottom, right = crop_yxyx.T.astype(np.float64)
    height, width = target_hw
    matrix = np.zeros((len(crop_yxyx), 2, 3))
    matrix[:, 0, 0] = np.where(hflip, left - right, right - left) / width
    matrix[:, 0, 2] = np.where(hflip, right, left)
    matrix[:, 1, 1] = np.where(vflip, top - bottom, bottom - top) / height
    matrix[:, 1, 2] = np.where(vflip, bottom, top)
    return matrix


def _warp_matrix(degrees: np.ndarray, zoom: np.ndarray, target_hw: tuple[int, int]) -> np.ndarray:
    """Map target positions to the unwarped image: the inverse of turning and shrinking the content about the centre."""
    height, width = target_hw
    cosine, sine = np.cos(np.deg2rad(degrees)) / zoom, np.sin(np.deg2rad(degrees)) / zoom
    matrix = np.empty((len(degrees), 2, 3))
    matrix[:, 0, 0], matrix[:, 0, 1] = cosine, -sine
    matrix[:, 1, 0], matrix[:, 1, 1] = sine, cosine
    matrix[:, :, 2] = np.array([width, height]) / 2 - matrix[:, :, :2] @ (np.array([width, height]) / 2)
    return matrix


def find_image_matrix(warp_matrix: np.ndarray, hflip: np.ndarray, vflip: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """Lead warps into images that are not flipped yet, and count from pixel centres.

    Args:
        warp_matrix: from target positions to those in the resized, flipped image, whole numbers at pixel edges, float64,
            (n, 2, 3).
        hflip: which images are mirrored left to right, bool, (n,).
        vflip: and which top to bottom.
        hw: height and width of the images, pixels.

    Returns:
        For `unetfast.loader.pixels.warp_image`, float64, (n, 2, 3).
    """
    matrix = warp_matrix.copy()
    for axis, (is_flipped, size) in enumerate(((hflip, hw[1]), (vflip, hw[0]))):
        matrix[is_flipped, axis] *= -1
        matrix[is_flipped, axis, 2] += size
    matrix[:, :, 2] += matrix[:, :, 0] * 0.5 + matrix[:, :, 1] * 0.5 - 0.5
    return matrix


def _multiply(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """Compose affine maps: outer(inner(position))."""
    result = outer[:, :, :2] @ inner
    result[:, :, 2] += outer[:, :, 2]
    return np.asarray(result)


def _color_matrix(brightness: np.ndarray, contrast: np.ndarray, saturation: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """Compose saturation and hue in YIQ, then contrast about middle grey, then brightness: DALI's color_twist, in float64."""
    cosine, sine = np.cos(np.deg2rad(hue)), np.sin(np.deg2rad(hue))
    in_yiq = np.zeros((len(hue), 3, 3))
    in_yiq[:, 0, 0] = 1
    in_yiq[:, 1, 1] = in_yiq[:, 2, 2] = cosine * saturation
    in_yiq[:, 1, 2], in_yiq[:, 2, 1] = sine * saturation, -sine * saturation
    matrix = np.empty((len(hue), 3, 4))
    matrix[:, :, :3] = (brightness * contrast)[:, None, None] * (_YIQ_TO_RGB @ in_yiq @ _RGB_TO_YIQ)
    matrix[:, :, 3] = ((_MIDDLE_GREY - _MIDDLE_GREY * contrast) * brightness)[:, None]
    return matrix
