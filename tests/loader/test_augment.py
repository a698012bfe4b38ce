from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unetfast.config import AugmentConfig, build_config
from unetfast.loader.augment import Augmentation, draw_augmentation
from unetfast.loader.order import Order, Places
from unetfast.loader.pixels import choose_jpeg_reduction

ALL = {
    "resized_crop": {"prob": 0.5},
    "scale": {"prob": 0.5, "range": [0.6, 1.6]},
    "hflip": {"prob": 0.5},
    "vflip": {"prob": 0.5},
    "rotation": {"prob": 0.5},
    "brightness": {"prob": 0.5},
    "contrast": {"prob": 0.5},
    "saturation": {"prob": 0.5},
    "hue": {"prob": 0.5},
}


def make_config(**sections: object) -> AugmentConfig:
    return build_config({"augment": sections}).augment


def make_places(count: int, epoch: int = 0, repeat: int = 0) -> Places:
    ids = np.arange(count)
    return Places(epoch * count + ids, np.full(count, epoch), ids, np.full(count, repeat))


def draw(
    config: AugmentConfig | None,
    places: Places,
    hw: tuple[int, int] = (100, 150),
    target: tuple[int, int] = (32, 48),
    seed: int = 0,
) -> Augmentation:
    return draw_augmentation(config, places, np.tile(hw, (len(places), 1)), seed=seed, target_hw=target)


def equal(one: Augmentation, two: Augmentation) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(two, name)) for name in one.__slots__)


def test_validation_is_a_plain_resize() -> None:
    numbers = draw(None, make_places(3))
    assert numbers.crop_yxyx.tolist() == [[0, 0, 100, 150]] * 3
    assert not numbers.hflip.any()
    assert not numbers.has_warp.any()
    assert not numbers.has_color.any()
    assert np.allclose(numbers.mask_matrix, [[150 / 48, 0, 0.25 / 48], [0, 100 / 32, 0.25 / 32]], rtol=0, atol=1e-12)
    assert np.allclose(numbers.color_matrix, np.eye(3, 4))


def test_numbers_of_a_sample_depend_on_seed_epoch_sample_and_repeat_alone() -> None:
    config = make_config(**ALL)
    together = draw(config, make_places(50))
    assert equal(draw(config, make_places(50)[17:20]), together[17:20])
    assert equal(draw(config, make_places(50)[::-1]), together[::-1])
    for other in (
        draw(config, make_places(50), seed=1),
        draw(config, make_places(50, epoch=1)),
        draw(config, make_places(50, repeat=1)),
    ):
        assert not equal(other, together)


def test_an_augmentation_does_not_change_the_draws_of_others() -> None:
    flips = draw(make_config(hflip={"prob": 0.5}, rotation={"prob": 0.5}), make_places(50))
    more = draw(make_config(**ALL), make_places(50))
    assert np.array_equal(flips.hflip, more.hflip)
    assert np.array_equal(flips.degrees, more.degrees)


def test_probabilities_and_ranges_are_kept() -> None:
    config = make_config(
        hflip={"prob": 0.25},
        vflip={"prob": 1.0},
        rotation={"prob": 0.5, "degrees": [10, 20]},
        brightness={"prob": 0.5, "range": [0.5, 0.9]},
        hue={"prob": 0.5, "degrees": [-30, -10]},
        scale={"prob": 0.5, "range": [0.5, 0.8]},
    )
    numbers = draw(config, make_places(4000))
    assert abs(numbers.hflip.mean() - 0.25) < 0.04
    assert numbers.vflip.all()
    for values, off, low, high in (
        (numbers.degrees, 0, 10, 20),
        (numbers.brightness, 1, 0.5, 0.9),
        (numbers.hue, 0, -30, -10),
        (numbers.zoom, 1, 0.5, 0.8),
    ):
        drawn = values[values != off]
        assert abs(len(drawn) / 4000 - 0.5) < 0.04
        assert drawn.min() >= low
        assert drawn.max() <= high
        assert abs(drawn.mean() - (low + high) / 2) < 0.03 * (high - low)
    assert not (numbers.contrast != 1).any()
    assert np.array_equal(numbers.has_warp, (numbers.degrees != 0) | (numbers.zoom != 1))


@given(
    hw=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    kind=st.sampled_from(["resized_crop", "crop"]),
    size=st.tuples(st.integers(1, 500), st.integers(1, 500)),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=60, deadline=None)
def test_crop_boxes_lie_in_the_image(hw: tuple[int, int], kind: str, size: tuple[int, int], seed: int) -> None:
    crop = {"prob": 0.8, "size_hw": size} if kind == "crop" else {"prob": 0.8, "area": [0.01, 1.0], "aspect": [0.2, 5.0]}
    config = make_config(**{kind: crop, "scale": {"prob": 0.5, "range": [0.5, 3.0]}})
    top, left, bottom, right = draw(config, make_places(40), hw=hw, seed=seed).crop_yxyx.T
    assert ((top >= 0) & (top < bottom) & (bottom <= hw[0])).all()
    assert ((left >= 0) & (left < right) & (right <= hw[1])).all()


def test_large_boxes_begin_on_pixels_of_a_reduced_jpeg() -> None:
    """Whatever reduction either decode mode takes for a box, the box begins on a whole reduced pixel."""
    config = make_config(resized_crop={"prob": 1.0, "area": [0.02, 1.0]}, scale={"prob": 0.3})
    numbers = draw(config, make_places(400), hw=(1280, 1918), target=(48, 64))
    taken = set()
    for top, left, bottom, right in numbers.crop_yxyx.tolist():
        for mode in ("exact", "fast"):
            reduction = choose_jpeg_reduction((bottom - top, right - left), (48, 64), mode)
            assert top % reduction == left % reduction == 0
            taken.add(reduction)
    assert taken == {1, 2, 4, 8}
    assert len({top % 2 for top in numbers.crop_yxyx[:, 0].tolist()}) == 1  # all are much larger than the batch


def test_plain_crop_takes_its_size_anywhere_and_shrinks_to_fit() -> None:
    config = make_config(crop={"prob": 1.0, "size_hw": [20, 30]})
    boxes = draw(config, make_places(3000), hw=(50, 60)).crop_yxyx
    assert {(bottom - top, right - left) for top, left, bottom, right in boxes.tolist()} == {(20, 30)}
    assert set(boxes[:, 0]) == set(range(31))
    assert set(boxes[:, 1]) == set(range(31))
    small = draw(config, make_places(20), hw=(10, 60)).crop_yxyx  # 20 x 30 fits into 10 x 60 at half its size
    assert {(bottom - top, right - left) for top, left, bottom, right in small.tolist()} == {(10, 15)}
    batch_size = draw(make_config(crop={"prob": 1.0}), make_places(2), target=(32, 48)).crop_yxyx
    assert {(bottom - top, right - left) for top, left, bottom, right in batch_size.tolist()} == {(32, 48)}


def test_resized_crop_keeps_area_and_aspect() -> None:
    config = make_config(resized_crop={"prob": 1.0, "area": [0.1, 0.6], "aspect": [0.5, 2.0]})
    top, left, bottom, right = draw(config, make_places(4000), hw=(1000, 2000)).crop_yxyx.T
    area = (bottom - top) * (right - left) / 2e6
    stretch = (right - left) / 2000 / ((bottom - top) / 1000)
    assert area.min() > 0.098
    assert area.max() < 0.602
    assert abs(area.mean() - 0.35) < 0.01
    assert stretch.min() > 0.495
    assert stretch.max() < 2.02
    assert abs(np.log(stretch).mean()) < 0.03


def test_zoom_in_narrows_the_box_about_its_centre() -> None:
    config = make_config(scale={"prob": 1.0, "range": [2.0, 2.0]})
    numbers = draw(config, make_places(1), hw=(100, 200))
    assert numbers.crop_yxyx.tolist() == [[25, 50, 75, 150]]
    assert not numbers.has_warp.any()


def test_rotation_turns_counter_clockwise_about_the_centre() -> None:
    numbers = draw(make_config(rotation={"prob": 1.0, "degrees": [90, 90]}), make_places(1), target=(40, 40))
    # what stands right of the centre goes up: the target's top middle shows the right middle
    assert np.allclose(numbers.warp_matrix[0] @ (20, 5, 1), (35, 20))
    assert np.allclose(numbers.warp_matrix[0] @ (20, 20, 1), (20, 20))


def test_zoom_out_shrinks_the_content() -> None:
    numbers = draw(make_config(scale={"prob": 1.0, "range": [0.5, 0.5]}), make_places(1), target=(40, 40))
    assert numbers.crop_yxyx.tolist() == [[0, 0, 100, 150]]
    assert np.allclose(numbers.warp_matrix[0] @ (30, 20, 1), (40, 20))
    assert np.allclose(numbers.warp_matrix[0] @ (40, 20, 1), (60, 20))  # outside: 0


def test_the_mask_matrix_is_all_steps_in_one() -> None:
    config = make_config(**ALL)
    numbers = draw(config, make_places(60), target=(32, 48))
    position = np.array([11.5, 20.5, 1.0])
    for row in range(60):
        x, y = numbers.warp_matrix[row] @ position
        x, y = 48 - x if numbers.hflip[row] else x, 32 - y if numbers.vflip[row] else y
        top, left, bottom, right = numbers.crop_yxyx[row]
        expected = (left + x * (right - left) / 48, top + y * (bottom - top) / 32)
        assert np.allclose(numbers.mask_matrix[row] @ position, np.add(expected, (0.25 / 48, 0.25 / 32)), rtol=0, atol=1e-9)


def test_color_order_is_saturation_and_hue_then_contrast_then_brightness() -> None:
    places = make_places(1)
    grey = np.array([200.0, 200.0, 200.0, 1.0])

    def apply(**sections: object) -> np.ndarray:
        return draw(make_config(**sections), places).color_matrix[0] @ grey

    def fixed(value: float) -> dict[str, object]:
        return {"prob": 1.0, "range": [value, value]}

    assert np.allclose(apply(brightness=fixed(0.5)), 100)
    assert np.allclose(apply(contrast=fixed(0.5)), 164)
    assert np.allclose(apply(contrast=fixed(0.5), brightness=fixed(0.5)), 82)
    assert np.allclose(apply(saturation=fixed(0.0)), 200, atol=1)
    assert np.allclose(apply(hue={"prob": 1.0, "degrees": [120, 120]}), 200, atol=1)


@pytest.mark.parametrize(("stored", "target"), [(160, 240), (1, 960), (240, 96), (1760, 240), (1918, 960), (2100, 256)])
@pytest.mark.parametrize("flipped", [False, True])
def test_ties_of_masks_are_decided_alike_in_float32_and_float64(stored: int, target: int, flipped: bool) -> None:
    config = make_config(hflip={"prob": float(flipped)})
    matrix = draw(config, make_places(1), hw=(1, stored), target=(1, target)).mask_matrix[0, 0]
    sign, start = (-1, stored) if flipped else (1, 0)
    exact = [start + sign * (2 * i + 1) * stored // (2 * target) for i in range(target)]  # in whole numbers
    centres = np.arange(target) + 0.5
    assert np.floor(centres * matrix[0] + matrix[2]).tolist() == exact
    in_float32 = centres.astype(np.float32) * np.float32(matrix[0]) + np.float32(matrix[2])
    assert np.floor(in_float32).tolist() == exact


def test_numbers_follow_the_sample_under_any_order() -> None:
    """The same samples get the same numbers in an epoch, whatever the order and the batches they come in."""
    config = make_config(**ALL)
    shuffled = Order(50, seed=0).locate(np.arange(50))
    by_block = Order(50, seed=0, shuffle="block", block_size=8).locate(np.arange(50))
    one, two = draw(config, shuffled), draw(config, by_block)
    assert equal(one[np.argsort(shuffled.sample_ids)], two[np.argsort(by_block.sample_ids)])


@pytest.mark.dali
def test_color_matrix_is_that_of_dali() -> None:
    pytest.importorskip("nvidia.dali", reason="needs the extra dali")
    from nvidia.dali import fn, pipeline_def, types

    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    rows = make_config(
        brightness={"prob": 0.8}, contrast={"prob": 0.8}, saturation={"prob": 0.8}, hue={"prob": 0.8, "degrees": [-90, 90]}
    )
    numbers = draw(rows, make_places(12))

    def constant(values: np.ndarray) -> object:
        return lambda: list(values)

    @pipeline_def(batch_size=12, num_threads=1, device_id=None)
    def pipeline() -> object:
        images = fn.external_source(lambda: [image] * 12, dtype=types.UINT8, layout="HWC")
        factors = {
            name: fn.external_source(constant(getattr(numbers, name).astype(np.float32)), dtype=types.FLOAT)
            for name in ("brightness", "contrast", "saturation", "hue")
        }
        return fn.color_twist(images, **factors)

    built = pipeline()
    built.build()
    twisted = built.run()[0].as_array().astype(int)
    pixels = np.append(image.reshape(-1, 3), np.ones((64 * 64, 1)), axis=1)
    for row in range(12):
        expected = np.floor(np.clip(pixels @ numbers.color_matrix[row].T, 0, 255) + 0.5).reshape(64, 64, 3)
        assert np.abs(expected - twisted[row]).max() <= 1
        assert (expected != twisted[row]).mean() < 0.001
