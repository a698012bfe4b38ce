from __future__ import annotations

import cv2
import loader_reference as reference
import numpy as np
import pytest
import simplejpeg

from unetfast.config import build_config
from unetfast.data.codecs import encode_image
from unetfast.loader.augment import draw_augmentation, find_image_matrix
from unetfast.loader.masklookup import gather_mask
from unetfast.loader.order import Places
from unetfast.loader.pixels import (
    choose_jpeg_reduction,
    decode_reduced,
    resize_box,
    transform_color,
    warp_image,
)


def make_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth shapes and some noise: what a photograph has."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)


def distance(one: np.ndarray, two: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - two.astype(int)).max())


@pytest.mark.parametrize(
    ("box", "target"),
    [
        ((0, 0, 90, 130), (24, 40)),  # whole, smaller
        ((0, 0, 90, 130), (200, 300)),  # whole, larger
        ((0, 0, 90, 130), (30, 300)),  # both
        ((7, 11, 80, 100), (20, 33)),
        ((0, 40, 45, 130), (16, 16)),
        ((30, 31, 40, 45), (64, 64)),
        ((3, 4, 4, 5), (8, 8)),
        ((5, 9, 85, 125), (1, 1)),
        ((30, 31, 33, 120), (40, 20)),  # borders as large as the result
    ],
)
def test_resize_is_the_triangle_filter(box: tuple[int, int, int, int], target: tuple[int, int]) -> None:
    image = make_image(90, 130)
    result = np.empty((*target, 3), dtype=np.uint8)
    resize_box(image, np.array(box, dtype=np.float64), result)
    expected = reference.resize_box(image, box, target)
    assert np.abs(result - expected).max() <= 1.02  # half a level of rounding, half a level of fixed-point weights


def test_a_box_of_the_target_size_is_copied() -> None:
    image = make_image(50, 60)
    result = np.empty((20, 30, 3), dtype=np.uint8)
    resize_box(image, np.array([5.0, 7.0, 25.0, 37.0]), result)
    assert np.array_equal(result, image[5:25, 7:37])


def test_boxes_between_pixels_are_resized_where_they_lie() -> None:
    """A linear ramp stays the same ramp: its value tells where a pixel was taken."""
    image = np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 40, axis=0).repeat(3, axis=2)
    result = np.empty((10, 30, 3), dtype=np.uint8)
    resize_box(image, np.array([4.25, 20.5, 30.75, 140.5]), result)
    expected = 20.5 + (np.arange(30) + 0.5) * 4 - 0.5
    assert np.abs(result[5, :, 0] - expected).max() <= 1
    whole = np.empty((10, 50, 3), dtype=np.uint8)
    resize_box(image, np.array([0, 0, 39.5, 199.25]), whole)
    assert np.abs(whole[5, :-1, 0] - ((np.arange(49) + 0.5) * 199.25 / 50 - 0.5)).max() <= 1


@pytest.mark.parametrize("sections", [{"rotation": {"prob": 1.0}}, {"scale": {"prob": 1.0, "range": [0.4, 0.7]}}])
def test_warp_is_bilinear_about_the_centre_with_zeros_outside(sections: dict[str, object]) -> None:
    image = make_image(61, 83)
    places = Places(np.arange(8), np.zeros(8, dtype=int), np.arange(8), np.zeros(8, dtype=int))
    config = build_config({"augment": sections}).augment
    numbers = draw_augmentation(config, places, np.tile((61, 83), (8, 1)), seed=0, target_hw=(61, 83))
    maps = find_image_matrix(numbers.warp_matrix, np.zeros(8, dtype=bool), np.zeros(8, dtype=bool), (61, 83))
    for matrix, to_centres in zip(numbers.warp_matrix, maps, strict=True):
        result = np.empty_like(image)
        warp_image(image, to_centres, result)
        expected = reference.warp(image.astype(np.float64), matrix)
        assert reference.psnr(result, np.floor(expected + 0.5).astype(np.uint8)) > 48
        assert np.abs(result - expected).max() < 8  # OpenCV rounds positions to 1/32 pixel


def test_color_is_rounded_half_up_and_clipped() -> None:
    image = np.array([[[0, 1, 2], [100, 101, 255]]], dtype=np.uint8)
    half = image.copy()
    transform_color(half, np.hstack([np.eye(3) * 0.5, np.zeros((3, 1))]))
    assert half.tolist() == [[[0, 1, 1], [50, 51, 128]]]
    shifted = image.copy()
    transform_color(shifted, np.hstack([np.eye(3) * 2, np.full((3, 1), -10.0)]))
    assert shifted.tolist() == [[[0, 0, 0], [190, 192, 255]]]


def test_color_equals_the_reference() -> None:
    image = make_image(40, 50)
    matrix = np.random.default_rng(3).normal(size=(3, 4)) * 0.2 + np.eye(3, 4)  # no ties at half levels
    expected = np.floor(np.clip(image @ matrix[:, :3].T + matrix[:, 3], 0, 255) + 0.5)
    transform_color(image, matrix)
    assert (image != expected).mean() < 0.001
    assert np.abs(image - expected).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("stored_hw", [(37, 53), (16, 24), (9, 300)])
def test_mask_is_the_floor_lookup(dtype: type, stored_hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    mask = rng.integers(0, np.iinfo(dtype).max, stored_hw).astype(dtype)
    sections = {
        "resized_crop": {"prob": 0.7, "area": [0.2, 1.0]},
        "scale": {"prob": 0.3, "range": [0.5, 2.0]},
        "hflip": {"prob": 0.5},
        "vflip": {"prob": 0.5},
        "rotation": {"prob": 0.5, "degrees": [-180, 180]},
    }
    count = 24
    places = Places(np.arange(count), np.zeros(count, dtype=int), np.arange(count), np.zeros(count, dtype=int))
    numbers = draw_augmentation(
        build_config({"augment": sections}).augment, places, np.tile(stored_hw, (count, 1)), seed=0, target_hw=(16, 24)
    )
    assert 4 < numbers.has_warp.sum() < 20
    ignore_index = int(np.iinfo(dtype).max)
    for row in range(count):
        result = np.empty((16, 24), dtype=dtype)
        gather_mask(mask, numbers.mask_matrix[row], numbers.crop_yxyx[row], ignore_index, result)
        assert np.array_equal(result, reference.render_mask(mask, numbers, row, (16, 24), ignore_index))


def test_a_mask_of_the_target_size_is_copied_and_flipped_without_loss() -> None:
    mask = np.random.default_rng(2).integers(0, 5, (31, 47)).astype(np.uint8)
    crop, result = np.array([0, 0, 31, 47]), np.empty_like(mask)
    gather_mask(mask, np.array([[1.0, 0, 0], [0, 1, 0]]), crop, 255, result)
    assert np.array_equal(result, mask)
    gather_mask(mask, np.array([[-1.0, 0, 47], [0, -1, 31]]), crop, 255, result)
    assert np.array_equal(result, mask[::-1, ::-1])


def test_scaled_decode_leaves_what_its_mode_promises() -> None:
    assert [choose_jpeg_reduction((1280, 1918), (160, 240), mode) for mode in ("exact", "fast")] == [2, 8]
    assert [choose_jpeg_reduction((1280, 1890), (160, 240), mode) for mode in ("exact", "fast")] == [1, 4]
    assert [choose_jpeg_reduction((1280, 1920), (160, 240), mode) for mode in ("exact", "fast")] == [2, 8]
    assert [choose_jpeg_reduction((1280, 300), (160, 240), mode) for mode in ("exact", "fast")] == [1, 1]
    assert choose_jpeg_reduction((6400, 9600), (160, 240), "exact") == 8
    assert choose_jpeg_reduction((100, 100), (256, 256), "fast") == 1
    assert choose_jpeg_reduction((6400, 9600), (160, 240), "full") == 1


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["rgb", "gray"])
def test_reduced_decode_covers_the_same_place(kind: str, reduction: int) -> None:
    image = make_image(77, 101)
    if kind == "gray":
        image = image[:, :, :1].repeat(3, axis=2)
        data = simplejpeg.encode_jpeg(np.ascontiguousarray(image[:, :, :1]), quality=95, colorspace="GRAY")
    else:
        data = encode_image(image, "jpeg")
    reduced = decode_reduced(data, "jpeg", (77, 101), reduction).copy()
    assert reduced.shape == (-(-77 // reduction), -(-101 // reduction), 3)
    result = np.empty((9, 12, 3), dtype=np.uint8)
    resize_box(reduced, np.array([0, 0, 77, 101]) / reduction, result)
    least = {1: 45, 2: 35, 4: 33, 8: 27.9}[reduction]
    assert reference.psnr(result, np.floor(reference.resize_box(image, (0, 0, 77, 101), (9, 12)) + 0.5)) > least


def test_a_member_of_another_size_is_refused() -> None:
    data = encode_image(make_image(20, 30), "jpeg")
    with pytest.raises(ValueError, match=r"JPEG is 30x20, expected 30x21"):
        decode_reduced(data, "jpeg", (21, 30), 1)
    with pytest.raises(ValueError, match="Premature end"):
        decode_reduced(data[: len(data) // 2], "jpeg", (20, 30), 1)
