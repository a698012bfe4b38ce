"""The real files: what scaled JPEG decoding costs in fidelity, file by file."""

from __future__ import annotations

from pathlib import Path

import loader_reference as reference
import numpy as np
import pytest
import simplejpeg

from unetfast.loader.pixels import choose_jpeg_reduction, decode_reduced, resize_box

pytestmark = pytest.mark.real

# folder, batch size, number of JPEGs, whether "exact" reduces any of them while it decodes
FOLDERS = [
    ("carvana/train", (160, 240), 96),
    ("carvana/train", (80, 120), 96),
    ("ade20k/ADEChallengeData2016/images", (256, 256), 12),
    ("ade20k/ADEChallengeData2016/images", (48, 64), 12),
    ("ade20k_5class/ADEChallengeData2016/images", (256, 256), 59),
    ("ade20k_5class/ADEChallengeData2016/images", (48, 48), 59),
]


def render(data: bytes, target_hw: tuple[int, int], reduction: int) -> np.ndarray:
    height, width = simplejpeg.decode_jpeg_header(data)[:2]
    result = np.empty((*target_hw, 3), dtype=np.uint8)
    decoded = decode_reduced(data, "jpeg", (height, width), reduction)
    resize_box(decoded, np.array([0, 0, height, width]) / reduction, result)
    return result


@pytest.mark.parametrize(("folder", "target_hw", "count"), FOLDERS)
def test_scaled_decoding_of_real_files(real_data: Path, folder: str, target_hw: tuple[int, int], count: int) -> None:
    files = sorted((real_data / folder).rglob("*.jpg"))
    assert len(files) == count
    num_reduced = 0
    for file in files:
        data = file.read_bytes()
        hw = simplejpeg.decode_jpeg_header(data)[:2]
        full = render(data, target_hw, 1)
        for decode, least in (("exact", 50.0), ("fast", 28.0)):
            reduction = choose_jpeg_reduction(hw, target_hw, decode)
            assert reference.psnr(render(data, target_hw, reduction), full) >= least, (file.name, decode, reduction)
            num_reduced += reduction > 1
    assert num_reduced


def test_full_decode_and_resize_equal_the_reference_on_real_files(real_data: Path) -> None:
    for file in sorted((real_data / "ade20k").rglob("images/**/*.jpg")):
        data = file.read_bytes()
        height, width = simplejpeg.decode_jpeg_header(data)[:2]
        expected = reference.resize_box(simplejpeg.decode_jpeg(data, "RGB"), (0, 0, height, width), (256, 256))
        assert np.abs(render(data, (256, 256), 1) - expected).max() <= 1.02, file.name
