"""Real files packed with PNG members, read back by webdataset and by DALI's own reader: the source's very pixels and ids.

The truth is read from the source files by Pillow and numpy alone. LZ4 members are held to the same truth through the
standard lz4 library.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import lz4.frame
import numpy as np
import pytest
from PIL import Image

from unetfast.data.pack import PackOptions, pack
from unetfast.data.reader import open_shards

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    # webdataset leaves the tar files that it has read to the garbage collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"),
]


def carvana_truth(root: Path, source_path: str) -> np.ndarray:
    image = root / source_path
    return np.array(Image.open(root / "train_masks" / f"{image.stem}_mask.gif"))


def clevr_truth(root: Path, source_path: str) -> np.ndarray:
    image = root / source_path
    return np.load(image.parent / "mask.npy", allow_pickle=False)[int(image.stem.split("_")[1])]


def ade20k_truth(root: Path, source_path: str) -> np.ndarray:
    path = root / source_path.replace("images/", "annotations/", 1).replace(".jpg", ".png")
    return np.array(Image.open(path)) - np.uint8(1)  # 0 wraps to 255, the ignore index


def membrane_truth(root: Path, source_path: str) -> np.ndarray:
    return (np.array(Image.open(root / source_path.replace("image/", "label/", 1))) == 255).astype(np.uint8)


def voc_truth(root: Path, source_path: str) -> np.ndarray:
    return np.array(Image.open(root / "SegmentationClass" / f"{Path(source_path).stem}.png"))


CASES: dict[str, tuple[str, Callable[[Path, str], np.ndarray], dict[str, int]]] = {
    "carvana": ("carvana", carvana_truth, {"all": 96}),
    "clevr": ("clevr/Dataset_Student", clevr_truth, {"train": 44, "val": 44}),
    "ade20k": ("ade20k/ADEChallengeData2016", ade20k_truth, {"train": 6, "val": 6}),
    "ade20k_5class": ("ade20k_5class/ADEChallengeData2016", ade20k_truth, {"all": 59}),
    "membrane": ("folder/membrane", membrane_truth, {"all": 12}),
    "voc_labelme": ("folder/voc_labelme", voc_truth, {"all": 3}),
}


def rgb(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def source_path_of(meta: bytes) -> str:
    found = json.loads(meta)["source_path"]
    assert isinstance(found, str)
    return found


def read_with_webdataset(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    import webdataset

    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    for sample in webdataset.WebDataset(tars, shardshuffle=False, empty_check=False):
        image = sample.get("jpg") or sample["image.png"]
        yield rgb(image), np.array(Image.open(io.BytesIO(sample["mask.png"]))), source_path_of(sample["json"])


def read_with_dali(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    from nvidia.dali import fn, pipeline_def, types

    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    indices = [path.replace(".tar", ".idx") for path in tars]
    total = sum(int(Path(path).read_text().split(maxsplit=2)[1]) for path in indices)

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)
    def pipeline():  # type: ignore[no-untyped-def]
        image, mask, meta = fn.readers.webdataset(
            paths=tars, index_paths=indices, ext=["jpg;image.png", "mask.png", "json"], missing_component_behavior="error"
        )
        return (
            fn.decoders.image(image, device="cpu", output_type=types.RGB, adjust_orientation=False),
            fn.decoders.image(mask, device="cpu", output_type=types.GRAY),
            meta,
        )

    pipe = pipeline()
    pipe.build()
    for _ in range(total):
        image, mask, meta = pipe.run()
        yield np.array(image[0]), np.array(mask[0])[..., 0], source_path_of(np.array(meta[0]).tobytes())


def check_against_source(
    samples: Iterator[tuple[np.ndarray, np.ndarray, str]], root: Path, truth: Callable[[Path, str], np.ndarray]
) -> set[str]:
    seen = set()
    for image_HWC, mask_HW, source_path in samples:
        np.testing.assert_array_equal(image_HWC, rgb((root / source_path).read_bytes()), err_msg=source_path)
        np.testing.assert_array_equal(mask_HW, truth(root, source_path), err_msg=source_path)
        assert source_path not in seen
        seen.add(source_path)
    return seen


def check_counts(seen: dict[str, set[str]], wanted: dict[str, int]) -> None:
    if "all" in wanted:
        assert sum(map(len, seen.values())) == wanted["all"]
    else:
        assert {split: len(paths) for split, paths in seen.items()} == wanted


@pytest.mark.parametrize("case", CASES)
def test_webdataset_reads_the_sources_pixels_and_ids(case: str, real_data: Path, tmp_path: Path) -> None:
    folder, truth, counts = CASES[case]
    root = real_data / folder
    pack(root, tmp_path / "shards", options=PackOptions(image_codec="png", mask_codec="png"), workers=2)
    shards = open_shards(tmp_path / "shards")
    seen = {
        split: check_against_source(read_with_webdataset(shards.path / split), root, truth) for split in shards.manifest.splits
    }
    check_counts(seen, counts)


@pytest.mark.dali
@pytest.mark.parametrize("case", CASES)
def test_dalis_own_reader_reads_the_sources_pixels_and_ids(case: str, real_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali")
    folder, truth, counts = CASES[case]
    root = real_data / folder
    pack(root, tmp_path / "shards", options=PackOptions(image_codec="png", mask_codec="png"), workers=2)
    shards = open_shards(tmp_path / "shards")
    seen = {split: check_against_source(read_with_dali(shards.path / split), root, truth) for split in shards.manifest.splits}
    check_counts(seen, counts)


def read_lz4_with_the_standard_library(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    import webdataset

    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    for sample in webdataset.WebDataset(tars, shardshuffle=False, empty_check=False):
        meta = json.loads(sample["json"])
        height, width = meta["height"], meta["width"]
        if "jpg" in sample:
            image_HWC = rgb(sample["jpg"])
        else:
            image_HWC = np.frombuffer(lz4.frame.decompress(sample["image.lz4"]), np.uint8).reshape(height, width, 3)
        raw = np.frombuffer(lz4.frame.decompress(sample["mask.lz4"]), np.uint8)
        if meta["mask_bits"] == 1:
            mask_HW = np.unpackbits(raw.reshape(height, -1), axis=1)[:, :width]
        else:
            mask_HW = raw.reshape(height, width)
        yield image_HWC, mask_HW, meta["source_path"]


@pytest.mark.parametrize("case", CASES)
def test_lz4_members_equal_the_source_through_the_standard_library(case: str, real_data: Path, tmp_path: Path) -> None:
    folder, truth, counts = CASES[case]
    root = real_data / folder
    pack(root, tmp_path / "shards", workers=2)
    shards = open_shards(tmp_path / "shards")
    seen = {
        split: check_against_source(read_lz4_with_the_standard_library(shards.path / split), root, truth)
        for split in shards.manifest.splits
    }
    check_counts(seen, counts)
