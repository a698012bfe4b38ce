"""Carvana: photographs of cars, 16 angles each, with a mask of the car.

Two layouts: Kaggle's (`train/<car>_<angle>.jpg`, `train_masks/<car>_<angle>_mask.gif`), and the four folders that most
projects make of it (`train_images/ train_masks/ val_images/ val_masks/`). Angles of one car are near duplicates, so the
car's id is the group.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unetfast.data.labels import ClassInfo, LabelTable
from unetfast.data.masks import MaskValues, ValueMap, apply_value_map, decode_mask_values, look_up_values
from unetfast.data.sample import FileSpan, SampleRef
from unetfast.data.sources.base import ScanProblem, SourceOptions, SourceScan
from unetfast.data.sources.listing import IMAGE_SUFFIXES, MASK_SUFFIXES, FoundFile, list_files
from unetfast.data.spans import describe_span, read_span
from unetfast.errors import BadSampleError, UserError

LOOKED_FOR = (
    "train/<car>_<angle>.jpg with train_masks/<car>_<angle>_mask.gif, or train_images/ train_masks/ val_images/ val_masks/"
)

_STEM = re.compile(r"(?P<car>.+)_(?P<angle>\d{2})")
_KAGGLE_STEM = re.compile(r"[0-9a-f]{12}_\d{2}")
_KAGGLE = (("", "train", "train_masks"),)  # split, images, masks
_FOUR_FOLDERS = (("train", "train_images", "train_masks"), ("val", "val_images", "val_masks"))


def recognize(root: Path) -> str:
    """Name the layout of a folder: "Kaggle layout", "four folders", or "" where it is not Carvana."""
    for layout, folders in (("four folders", _FOUR_FOLDERS), ("Kaggle layout", _KAGGLE)):
        pairs = [(root / images, root / masks) for _, images, masks in folders]
        if any(images.is_dir() and masks.is_dir() and _looks_right(images, masks) for images, masks in pairs):
            return layout
    return ""


def _looks_right(images: Path, masks: Path) -> bool:
    """Names decide: `<car>_<angle>_mask` of most masks; Kaggle's car ids, 12 hex digits, need no `_mask`."""
    stems = [file.stem for file in list_files(masks, MASK_SUFFIXES, deep=False)]
    num_right = sum(
        1
        for stem in stems
        if _KAGGLE_STEM.fullmatch(stem) or (stem.endswith("_mask") and _STEM.fullmatch(stem[: -len("_mask")]))
    )
    if not stems or num_right * 2 < len(stems):
        return False
    return any(_STEM.fullmatch(file.stem) for file in list_files(images, IMAGE_SUFFIXES, deep=False))


def scan(root: Path, options: SourceOptions) -> SourceScan:
    """List the pairs of a Carvana folder.

    Raises:
        UserError: the folder is not of this layout, or holds no pair.
    """
    layout = recognize(root)
    if not layout:
        raise UserError(f"{root}: not a Carvana folder; looked for {LOOKED_FOR}")
    return _scan_layout(root, layout, options)


def scan_pairs(root: Path, folders: Mapping[str, tuple[str, str]], options: SourceOptions) -> SourceScan:
    """List the pairs of folders that the user named.

    Args:
        root: a folder above all of them.
        folders: split -> folder of images, folder of masks, relative to `root`.
        options: what the user says about the masks.
    """
    samples: list[SampleRef] = []
    problems: list[ScanProblem] = []
    for split, (image_folder, mask_folder) in folders.items():
        _pair_folder(root, split, image_folder, mask_folder, samples, problems)
    return _finish_scan("named folders", samples, problems, [], options)


def holds_cars(images: Path, masks: Path) -> bool:
    """Say whether two folders hold Carvana's images and masks, by their names."""
    return _looks_right(images, masks)


def _scan_layout(root: Path, layout: str, options: SourceOptions) -> SourceScan:
    samples: list[SampleRef] = []
    problems: list[ScanProblem] = []
    notes: list[tuple[str, int]] = []
    for split, image_folder, mask_folder in _FOUR_FOLDERS if layout == "four folders" else _KAGGLE:
        if not (root / image_folder).is_dir() or not (root / mask_folder).is_dir():
            missing = [name for name in (image_folder, mask_folder) if not (root / name).is_dir()]
            notes.append((f"{' and '.join(missing)}: not there, so no {split} split", 1))
            continue
        _pair_folder(root, split, image_folder, mask_folder, samples, problems)
    if layout == "Kaggle layout":
        for extra in ("test", "test_hq", "train_hq"):
            if (root / extra).is_dir():
                notes.append((f"images of {extra}/ left out", len(list_files(root / extra, IMAGE_SUFFIXES, deep=False))))
    if not samples and not problems:
        raise UserError(f"{root}: no Carvana image in it; looked for {LOOKED_FOR}")
    return _finish_scan(layout, samples, problems, notes, options)


def _finish_scan(
    layout: str,
    samples: list[SampleRef],
    problems: list[ScanProblem],
    notes: list[tuple[str, int]],
    options: SourceOptions,
) -> SourceScan:
    labels = apply_value_map(_build_labels(samples), options.value_map)
    samples.sort(key=lambda sample: (sample.split, sample.name))
    return SourceScan("carvana", layout, labels, samples, CarvanaMaskReader(labels, options.value_map), problems, notes)


def _pair_folder(
    root: Path,
    split: str,
    image_folder: str,
    mask_folder: str,
    samples: list[SampleRef],
    problems: list[ScanProblem],
) -> None:
    masks: dict[str, list[FoundFile]] = {}
    for file in list_files(root / mask_folder, MASK_SUFFIXES, deep=False):
        masks.setdefault(file.stem.removesuffix("_mask"), []).append(file)
    images: dict[str, list[FoundFile]] = {}
    for file in list_files(root / image_folder, IMAGE_SUFFIXES, deep=False):
        images.setdefault(file.stem, []).append(file)
    for stem, files in sorted(images.items()):
        source_path = f"{image_folder}/{files[0].relative}"
        found = masks.pop(stem, [])
        if len(files) > 1:
            others = ", ".join(file.relative for file in files[1:])
            problems.append(ScanProblem(source_path, f"has the same name as {others}", "keep one of them"))
        elif not found:
            problems.append(
                ScanProblem(source_path, f"has no mask {mask_folder}/{stem}_mask.gif", "add the mask, or remove the image")
            )
        elif len(found) > 1:
            names = ", ".join(f"{mask_folder}/{file.relative}" for file in found)
            problems.append(ScanProblem(source_path, f"has {len(found)} masks: {names}", "keep one of them"))
        else:
            match = _STEM.fullmatch(stem)
            samples.append(
                SampleRef(
                    name=stem,
                    source_path=source_path,
                    image=FileSpan(files[0].path),
                    mask=FileSpan(found[0].path),
                    group=match["car"] if match else stem,
                    split=split,
                    num_bytes=files[0].num_bytes + found[0].num_bytes,
                )
            )
    for stem, files in sorted(masks.items()):
        for file in files:
            reason = f"has no image {image_folder}/{stem}.jpg"
            problems.append(ScanProblem(f"{mask_folder}/{file.relative}", reason, "add the image, or remove the mask"))


def _build_labels(samples: list[SampleRef]) -> LabelTable:
    """Make the two classes; the car's value is that of the first mask that can be read, so predictions are written alike."""
    car_value = 255
    for sample in samples[:20]:
        try:
            values_HW = _car_values(decode_mask_values(read_span(sample.mask), sample.mask.path), sample.mask.path)
        except BadSampleError:
            continue
        if values_HW.any():
            car_value = 255 if int(values_HW.max()) == 255 else 1
            break
    return LabelTable(
        classes=(
            ClassInfo(name="background", color=(0, 0, 0), value=0),
            ClassInfo(name="car", color=(255, 255, 255), value=car_value),
        )
    )


def _car_values(mask: MaskValues, file: str) -> np.ndarray:
    """Values 0 and 1, or 0 and 255; of palettes whose first two colours are white and black, in that order, too."""
    values_HW = mask.as_single_channel(file)
    # a tool that sorts palettes may have put white first: then the colours say which is the car
    if mask.palette is not None and mask.palette[:2].tolist() == [[255, 255, 255], [0, 0, 0]] and int(values_HW.max()) <= 1:
        return np.asarray(1 - values_HW)
    return values_HW


@dataclass(frozen=True, slots=True)
class CarvanaMaskReader:
    """Reads a Carvana mask: 0 is background, 1 or 255 is car; further values by `value_map`."""

    labels: LabelTable
    value_map: ValueMap = ()

    def __call__(self, span: FileSpan) -> np.ndarray:
        """Read one mask's class ids; see `MaskReader`."""
        file = describe_span(span)
        values_HW = _car_values(decode_mask_values(read_span(span), file), file)
        table: dict[int, int | None] = {0: 0, 1: 1, 255: 1}
        mapped = {value: class_id for value, class_id in self.value_map if not isinstance(value, tuple)}
        # 1 beside 255 is neither of the two ways to write a car
        if not {1, 255} & mapped.keys() and bool((values_HW == 1).any()) and bool((values_HW == 255).any()):
            raise BadSampleError(
                file,
                "holds both 1 and 255; a Carvana mask marks the car by one of them",
                "map one of them with --map 1=0 or --map 1=1, or drop the pair with --on-bad skip",
            )
        return look_up_values(values_HW, tuple((table | mapped).items()), self.labels, file)
