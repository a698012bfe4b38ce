"""The real files through both backends: every single file within the bounds, without augmentation, with each, and with all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from backend_parity import AUGMENTATIONS, DEVICES, FLIPS, FileParity, check_parity, compare_backends, device_or_skip

from unetfast.data.pack import pack
from unetfast.data.reader import open_shards

pytestmark = [pytest.mark.real, pytest.mark.dali, pytest.mark.slow]


@dataclass(frozen=True)
class RealSet:
    """A folder of the real files.

    Args:
        folder: inside the real files.
        num_files: images, all splits together.
        names_xxh3: of their paths in the folder, sorted, one a line.
        preset_hw: height and width of a batch as the preset of the data set has it, pixels.
        stored_hw: the one size of all its images; None where they differ.
    """

    folder: str
    num_files: int
    names_xxh3: str
    preset_hw: tuple[int, int]
    stored_hw: tuple[int, int] | None = None


SETS = {
    "carvana": RealSet("carvana", 96, "d29f4e4b82c81805", (160, 240), (1280, 1918)),
    "clevr": RealSet("clevr/Dataset_Student", 88, "49b05a3aaec3ba87", (160, 240), (160, 240)),
    "ade20k": RealSet("ade20k/ADEChallengeData2016", 12, "b82305b70c15a208", (256, 256)),
    "ade20k_5class": RealSet("ade20k_5class/ADEChallengeData2016", 59, "d8862cad5c455074", (256, 256)),
    "membrane": RealSet("folder/membrane", 12, "50cd0d61fd998aaf", (256, 256), (512, 512)),
    "voc_labelme": RealSet("folder/voc_labelme", 3, "75327b8cff06ae58", (256, 256)),
}


@pytest.fixture(scope="session")
def packed(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Pack a real folder with the packer's defaults, once."""
    done: dict[str, Path] = {}

    def do(name: str) -> Path:
        if name not in done:
            done[name] = tmp_path_factory.mktemp(name) / "shards"
            pack(real_data / SETS[name].folder, done[name], workers=1)
        return done[name]

    return do


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return device_or_skip(request.param)


def compare_every_file(
    shards: Path, real: RealSet, size_hw: tuple[int, int], augment: dict[str, Any], *, device: torch.device, **bounds: Any
) -> list[FileParity]:
    """Compare all splits, hold every file to the bounds, and prove that no file of the list was left out."""
    found, seen = [], []
    folder = open_shards(shards)
    for split in folder.manifest.splits:
        with folder.split(split) as reader:
            names = [reader.read_json(sample_id)["source_path"] for sample_id in range(reader.num_samples)]
        files = compare_backends(shards, size_hw, augment, split=split, training=bool(augment), device=device)
        check_parity(files, names, **bounds)
        found += files
        seen += [names[sample_id] for sample_id in {file.sample_id for file in files}]
    assert len(seen) == real.num_files
    assert xxhash.xxh3_64_hexdigest("\n".join(sorted(seen)).encode()) == real.names_xxh3, sorted(seen)
    return found


def report(record_property: Callable[[str, object], None], files: list[FileParity]) -> None:
    least, most = min(file.psnr for file in files), max(file.mask_share for file in files)
    record_property("least_psnr_db", least)
    record_property("most_mask_pixels_pct", 100 * most)
    print(f"{len(files)} images: least PSNR {least:.1f} dB, masks differ on {100 * most:.4f} % of one's pixels at most")


@pytest.mark.parametrize("kind", AUGMENTATIONS)
@pytest.mark.parametrize("name", SETS)
def test_every_file_at_its_presets_size(
    name: str,
    kind: str,
    device: torch.device,
    packed: Callable[[str], Path],
    record_property: Callable[[str, object], None],
) -> None:
    real, augment = SETS[name], AUGMENTATIONS[kind]
    moves = {"resized_crop", "scale", "rotation"} & augment.keys()
    not_resized = real.preset_hw == real.stored_hw or (kind == "crop" and real.stored_hw is not None)
    files = compare_every_file(
        packed(name), real, real.preset_hw, augment, device=device, masks_equal=not_resized and not moves
    )
    report(record_property, files)


@pytest.mark.parametrize("kind", ["none", "flips"])
@pytest.mark.parametrize("name", [name for name, real in SETS.items() if real.stored_hw])
def test_masks_at_their_stored_size_are_equal(
    name: str,
    kind: str,
    device: torch.device,
    packed: Callable[[str], Path],
    record_property: Callable[[str, object], None],
) -> None:
    real = SETS[name]
    assert real.stored_hw is not None
    bounds = {"masks_equal": True, "images_equal": {"lz4", "png"}}
    augment = FLIPS if kind == "flips" else {}
    files = compare_every_file(packed(name), real, real.stored_hw, augment, device=device, **bounds)
    report(record_property, files)


@pytest.mark.parametrize("kind", ["none", "all"])
def test_carvana_at_half_its_size(
    kind: str, device: torch.device, packed: Callable[[str], Path], record_property: Callable[[str, object], None]
) -> None:
    report(
        record_property,
        compare_every_file(packed("carvana"), SETS["carvana"], (640, 960), AUGMENTATIONS[kind], device=device),
    )


def test_the_greyscale_file_is_among_them(packed: Callable[[str], Path]) -> None:
    folder = open_shards(packed("ade20k_5class"))
    found = []
    for split in folder.manifest.splits:
        with folder.split(split) as reader:
            paths = [reader.read_json(sample_id)["source_path"] for sample_id in range(reader.num_samples)]
            found += [reader.decode_image(i) for i, path in enumerate(paths) if path.endswith("ADE_train_00003020.jpg")]
    assert len(found) == 1
    assert (found[0] == found[0][..., :1]).all()
