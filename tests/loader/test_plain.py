"""Batches of the CPU backend equal the plain form of every step, bit for bit: speed changes no pixel."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plain_pixels as plain
import pytest
import torch
from loader_batches import ALL, keep
from loader_shards import make_sample, write_shards

from unetfast.config import build_config
from unetfast.data.labels import ClassInfo, LabelTable
from unetfast.data.reader import open_shards
from unetfast.loader.build import build_loader
from unetfast.loader.kernels.find import find_kernel
from unetfast.loader.masklookup import gather_by_opencv, gather_mask
from unetfast.loader.stream import SampleStream

CPU = torch.device("cpu")
AUGMENTS: dict[str, dict[str, Any]] = {
    "none": {},
    "flips": {"hflip": {"prob": 0.5}, "vflip": {"prob": 0.5}},
    "rotation": {"rotation": {"prob": 0.8}, "hflip": {"prob": 0.5}},
    "crops": {"resized_crop": {"prob": 0.8, "area": [0.1, 0.8]}, "hflip": {"prob": 0.5}},
    "plain-crop": {"crop": {"prob": 0.8}},
    "chosen-crop": {"resized_crop": {"prob": 1.0, "area": [0.05, 0.5]}, "max_class_share": 0.5, "rotation": {"prob": 0.3}},
    "all": ALL,
}


@pytest.fixture(scope="module")
def two_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Masks of one bit a pixel, in widths that fill their last byte and in others."""
    classes = tuple(ClassInfo(name=name, color=(i, i, i), value=i) for i, name in enumerate(("background", "thing")))
    labels = LabelTable(classes=classes, ignore_value=None)
    assert labels.mask_bits == 1
    sizes = [(40, 56), (24, 32), (61, 47), (250, 333)]
    made = [make_sample(i, sizes[i % 4], kind=["jpeg", "lz4"][i // 4 % 2], labels=labels) for i in range(8)]
    return write_shards(tmp_path_factory.mktemp("bits"), made, labels=labels)


@pytest.mark.parametrize("decode", ["exact", "fast", "full"])
@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("folder", ["shards", "two_classes"])
def test_batches_are_those_of_the_plain_steps(folder: str, augment: str, decode: str, request: pytest.FixtureRequest) -> None:
    path, target_hw, num_batches = request.getfixturevalue(folder), (24, 32), 3
    sections = {"size_hw": target_hw, "batch_size": 8, "threads": 2, "decode": decode, "backend": "cpu"}
    config = build_config({"loader": sections, "augment": AUGMENTS[augment], "train": {"seed": 5}})
    with open_shards(path).split("train") as reader:
        with build_loader(reader, config, training=True, device=CPU) as loader:
            found = keep(loader, num_batches)
        stream = SampleStream(reader, config, training=True, target_hw=target_hw, batch_size=8)
        for number, batch in enumerate(found):
            plan = stream.plan(8 * number)
            assert plan is not None
            numbers = plan.augmentation
            for row, sample_id in enumerate(plan.places.sample_ids.tolist()):
                mask = reader.decode_mask(sample_id)
                stream.crop_rule.settle(numbers, row, mask)
                image = plain.render_image(
                    reader.read_image(sample_id), reader.image_codec(sample_id), mask.shape, numbers, row, target_hw, decode
                )
                where = f"batch {number}, row {row}, sample {sample_id}"
                assert np.array_equal(batch.image[row].permute(1, 2, 0).numpy(), image), where
                ids = plain.look_up_mask(
                    mask, numbers.mask_matrix[row], numbers.crop_yxyx[row], stream.crop_rule.ignore_index, target_hw
                )
                assert np.array_equal(batch.mask[row].numpy(), ids), where


def turn(degrees: float, zoom: float, centre_xy: tuple[float, float], target_hw: tuple[int, int]) -> np.ndarray:
    cosine, sine = zoom * np.cos(np.deg2rad(degrees)), zoom * np.sin(np.deg2rad(degrees))
    linear = np.array([[cosine, -sine], [sine, cosine]])
    return np.hstack([linear, (centre_xy - linear @ (target_hw[1] / 2, target_hw[0] / 2))[:, None]])


@pytest.fixture(params=["numba", "opencv"])
def look_up(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Each way to look masks up."""
    if request.param == "opencv":
        return gather_by_opencv
    pytest.importorskip("numba")
    assert [find_kernel("mask", np.dtype(name)).problem for name in ("uint8", "uint16")] == ["", ""]
    return gather_mask


@pytest.mark.parametrize("kind", ["bits", "uint8", "uint16"])
def test_mask_lookup_is_exact_for_any_box_and_matrix(kind: str, look_up: Callable[..., None]) -> None:
    """Also boxes that begin inside a byte, masks large enough to be looked up in their bits, and places far outside."""
    rng = np.random.default_rng(4)
    dtype = np.uint16 if kind == "uint16" else np.uint8
    ignore_index = int(np.iinfo(dtype).max)
    for trial, scale in itertools.product(range(60), (1, 8, 4000)):
        stored_hw = rng.integers(1, 200, 2)
        target_hw = tuple(rng.integers(1, 40, 2).tolist())
        mask = rng.integers(0, 2 if kind == "bits" else 200, stored_hw).astype(dtype)
        top, left = (int(rng.integers(0, size)) for size in stored_hw)
        bottom, right = int(rng.integers(top + 1, stored_hw[0] + 1)), int(rng.integers(left + 1, stored_hw[1] + 1))
        if trial % 3:
            matrix = turn(
                rng.uniform(-180, 180), scale * rng.uniform(0.2, 1), ((left + right) / 2, (top + bottom) / 2), target_hw
            )
        else:
            step_x, step_y = rng.choice([-1.0, 1.0, (right - left) / target_hw[1], -scale * 0.7], 2)
            matrix = np.array(
                [[step_x, 0, (left, right)[int(step_x < 0)] + 0.01], [0, step_y, (top, bottom)[int(step_y < 0)] + 0.01]]
            )
        found = np.empty(target_hw, dtype=dtype)
        stored = np.packbits(mask, axis=1) if kind == "bits" else mask
        look_up(stored, matrix, (top, left, bottom, right), ignore_index, found, is_packed=kind == "bits")
        expected = plain.look_up_mask(mask, matrix, np.array([top, left, bottom, right]), ignore_index, target_hw)
        assert np.array_equal(found, expected), f"trial {trial}, scale {scale}"


def test_a_mask_wider_than_opencv_takes_is_looked_up_too(look_up: Callable[..., None]) -> None:
    mask = np.arange(40_000, dtype=np.uint16)[None].repeat(2, axis=0)
    found = np.empty((3, 50), dtype=np.uint16)
    for matrix in (turn(0.001, 900.0, (20_000.0, 1.0), (3, 50)), np.array([[800.0, 0, 0.01], [0, 0.66, 0.01]])):
        look_up(mask, matrix, (0, 0, 2, 40_000), 65535, found)
        assert np.array_equal(found, plain.look_up_mask(mask, matrix, np.array([0, 0, 2, 40_000]), 65535, (3, 50)))
        assert len(np.unique(found)) > 20


def test_plans_do_not_depend_on_how_many_positions_are_computed_at_once(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = build_config({"augment": ALL})

    def plan(first_window: int, window: int) -> list[Any]:
        monkeypatch.setattr("unetfast.loader.stream._FIRST_WINDOW", first_window)
        monkeypatch.setattr("unetfast.loader.stream._WINDOW", window)
        with open_shards(shards).split("train") as reader:
            stream = SampleStream(reader, config, training=True, target_hw=(24, 32), batch_size=4)
            plans = [stream.plan(start) for start in range(0, 120, 4)]
        return [(one.places.sample_ids.tolist(), one.augmentation.mask_matrix.tolist()) for one in plans if one is not None]

    assert len(plan(64, 1024)) == 30
    assert plan(64, 1024) == plan(1, 7) == plan(300, 5)
