"""Toy sets in the sizes of real ones: their files take as many bytes a pixel as real files do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unetfast.bench.toyshards import TOY_SETS, draw_toy
from unetfast.data.toy import write_toy

# bytes a pixel, from a fifth below to a fifth above the median of real files
IMAGE_BAND = {"carvana": (0.033, 0.050), "clevr": (0.62, 0.94), "ade20k": (0.14, 0.22)}
MASK_BAND = (0.015, 0.025)  # of ade20k's annotations; those of the others are as plain as real ones
REAL_FOLDERS = {
    "carvana": "carvana/train/*.jpg",
    "clevr": "clevr/Dataset_Student/*/*/image_*.png",
    "ade20k": "ade20k*/ADEChallengeData2016/images/training/*.jpg",
}


def count_bytes_per_px(files: list[Path]) -> float:
    """Return the median over files."""
    found = []
    for file in files:
        with Image.open(file) as image:
            found.append(file.stat().st_size / (image.width * image.height))
    return float(np.median(found))


@pytest.mark.parametrize("name", TOY_SETS)
def test_drawn_files_are_as_large_as_real_ones(name: str, tmp_path: Path) -> None:
    toy = TOY_SETS[name]
    num_groups = {"ade20k": 4, "clevr": 8, "carvana": 2}[name]
    write_toy(
        tmp_path,
        name,
        num_groups=num_groups,
        seed=3,
        images_per_group=1,
        size_hw=toy.size_hw,
        layout=toy.layout,
        grain=toy.grain,
    )
    pattern = {"carvana": "train/*.jpg", "clevr": "*/image_*.png", "ade20k": "images/*/*.jpg"}[name]
    low, high = IMAGE_BAND[name]
    assert low < count_bytes_per_px(sorted(tmp_path.glob(pattern))) < high
    if name == "ade20k":
        assert MASK_BAND[0] < count_bytes_per_px(sorted(tmp_path.glob("annotations/*/*.png"))) < MASK_BAND[1]


@pytest.mark.parametrize("name", TOY_SETS)
def test_the_bands_hold_real_files(name: str, real_data: Path) -> None:
    low, high = IMAGE_BAND[name]
    assert low < count_bytes_per_px(sorted(real_data.glob(REAL_FOLDERS[name]))) < high
    if name == "ade20k":
        masks = sorted(real_data.glob("ade20k/ADEChallengeData2016/annotations/*/*.png"))
        assert MASK_BAND[0] < count_bytes_per_px(masks) < MASK_BAND[1]


def test_drawn_scenes_are_of_the_named_size_on_average(tmp_path: Path) -> None:
    source = draw_toy("ade20k", tmp_path, small=True)
    sides_wh = []
    for file in sorted((source / "images" / "training").glob("*.jpg")):
        with Image.open(file) as image:
            sides_wh.append(image.size)
    height, width = TOY_SETS["ade20k"].size_hw
    assert np.mean(sides_wh, axis=0) == pytest.approx((width / 4, height / 4), rel=0.1)
