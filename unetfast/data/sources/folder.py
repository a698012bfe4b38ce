"""Any folder of images and masks, with split folders or none.

Folders are recognised by their names: images/ and masks/ (or image/ label/, imgs/ annotations/, JPEGImages/ SegmentationClass/,
...), below train/ val/ test/, above them, or joined with them (train_images/, trainannot/); or one folder holds both, told
apart by endings such as `_mask`. What the masks' values mean is found as `found_labels` says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from unetfast.data.found_labels import find_labels
from unetfast.data.sample import FileSpan, SampleRef
from unetfast.data.sources.base import ScanProblem, SourceOptions, SourceScan
from unetfast.data.sources.listing import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    SPLIT_OF_FOLDER,
    holds_files,
    list_files,
    list_folder,
)
from unetfast.data.sources.pairing import Pairs, pair_folders, pair_lone_folder
from unetfast.errors import UserError

LOOKED_FOR = (
    "images/ and masks/ (or image label imgs annotations labels gt JPEGImages SegmentationClass ...), alone or with train/ "
    "val/ test/; or one folder of images and masks called alike but for an ending such as _mask"
)

_IMAGE_WORDS = (
    *("images", "image", "imgs", "img", "jpegimages", "jpegs", "photos", "pictures", "frames", "rgb", "inputs", "input"),
    "leftimg8bit",
)
_MASK_WORDS = (
    *("masks", "mask", "labels", "label", "annotations", "annotation", "annot", "anns", "ann", "gts", "gt", "groundtruth"),
    *("ground_truth", "segmentations", "segmentation", "segs", "seg", "targets", "target", "segmentationclass"),
    *("segmentationclassnpy", "segmentationclasspng", "1st_manual", "manual", "gtfine", "segmentation_masks", "label_images"),
)
_CLASS_FILES = ("class_names.txt", "class_dict.csv", "classes.csv")
_VOC_LISTS = "ImageSets/Segmentation"


@dataclass(frozen=True, slots=True)
class _Place:
    """Two folders that belong together; the same one where images and masks lie in one."""

    split: str
    images: Path
    masks: Path
    left_out: tuple[Path, ...] = ()  # further folders of masks

    @property
    def is_lone(self) -> bool:
        return self.images == self.masks


def recognize(root: Path) -> str:
    """Say in words where images and masks lie; "" where none are found."""
    places = _find_places(root)
    if not places:
        return ""
    if places[0].is_lone:
        return "images and masks in one folder" if len(places) == 1 else "images and masks together in split folders"
    shown = [f"{_relative(place.images, root)} + {_relative(place.masks, root)}" for place in places]
    return ", ".join(shown)


def scan(root: Path, options: SourceOptions) -> SourceScan:
    """List the pairs of a folder, and find the classes of its masks.

    Raises:
        UserError: no images and masks are found, several folders of masks fit, or the classes are not clear.
    """
    places = _find_places(root)
    if not places:
        raise UserError(f"{root}: no images and masks found; looked for {LOOKED_FOR}")
    return _scan_places(root, places, recognize(root), options)


def scan_pairs(root: Path, folders: Mapping[str, tuple[Path, Path]], options: SourceOptions) -> SourceScan:
    """List the pairs of folders that the user named, and find the classes of their masks.

    Args:
        root: a folder above all of them.
        folders: split -> folder of images, folder of masks; the same one twice where both lie in one.
        options: what the user says about classes and values.

    Raises:
        UserError: no image has a mask, or the classes are not clear.
    """
    places = [_Place(split, images, masks) for split, (images, masks) in folders.items()]
    return _scan_places(root, places, "named folders", options)


def _scan_places(root: Path, places: list[_Place], layout: str, options: SourceOptions) -> SourceScan:
    samples: list[SampleRef] = []
    problems: list[ScanProblem] = []
    notes: list[tuple[str, int]] = []
    for place in places:
        pairs = _pair(place, root, options.mask_suffix)
        problems += pairs.problems
        samples += _build_samples(place, root, pairs)
        if pairs.num_other_masks:
            notes.append(
                (
                    f"files of {_relative(place.masks, root)} that do not end in {options.mask_suffix}, left out",
                    pairs.num_other_masks,
                )
            )
        for folder in place.left_out:
            what = f"{_relative(folder, root)} left out, {_relative(place.masks, root)} taken; files"
            notes.append((what, len(list_files(folder, MASK_SUFFIXES))))
    samples = _split_by_lists(root, samples, problems, notes)
    if not samples:
        _refuse_empty(root, layout, problems)
    samples.sort(key=lambda sample: (sample.split, sample.name))
    classes_file = options.classes_file or _find_class_file(root)
    if classes_file and not options.classes_file:
        notes.append((f"classes taken from {classes_file.name}", 1))
    found = find_labels(
        [sample.mask for sample in samples],
        classes_file=classes_file,
        ignore_value=options.ignore_value,
        value_map=options.value_map,
        where=str(root),
    )
    return SourceScan("folder", layout, found.labels, samples, found.read_mask, problems, notes + found.notes)


def _find_places(root: Path) -> list[_Place]:
    if not root.is_dir():
        return []
    names, _ = list_folder(root)
    places = _places_by_role(root, names)
    if not places:
        for name in names:
            split = SPLIT_OF_FOLDER.get(name.lower())
            if split:
                inside = _places_by_role(root / name, list_folder(root / name)[0]) or _lone_place(root / name)
                places += [replace(place, split=split) for place in inside]
    return places or _lone_place(root)


def _lone_place(folder: Path) -> list[_Place]:
    pairs = pair_lone_folder(list_files(folder, MASK_SUFFIXES, deep=False), prefix="", mask_suffix=None)
    return [_Place("", folder, folder)] if pairs.pairs else []


def _places_by_role(root: Path, names: list[str]) -> list[_Place]:
    """Sort folders into images and masks by split, and keep the splits that have both."""
    images: dict[str, list[str]] = {}
    masks: dict[str, list[str]] = {}
    bare: dict[str, str] = {}
    for name in names:
        split, role = _role(name)
        if role == "image" and holds_files(root / name, IMAGE_SUFFIXES):
            images.setdefault(split, []).append(name)
        elif role == "mask" and holds_files(root / name, MASK_SUFFIXES):
            masks.setdefault(split, []).append(name)
        elif role == "split":
            bare[split] = name
    places = []
    for split, mask_names in masks.items():
        image_names = images.get(split) or (
            [bare[split]] if split in bare and holds_files(root / bare[split], IMAGE_SUFFIXES) else []
        )
        if not image_names:
            continue
        if len(image_names) > 1:
            raise _several(root, image_names, "images")
        chosen, left_out = _choose_masks(root, mask_names)
        places += _by_inner_splits(_Place(split, root / image_names[0], root / chosen, tuple(root / name for name in left_out)))
    return places


def _role(name: str) -> tuple[str, str]:
    """Read a folder's name: its split ("" for none), and "image", "mask", "split" or ""."""
    lowered = name.lower()
    if lowered in SPLIT_OF_FOLDER:
        return SPLIT_OF_FOLDER[lowered], "split"
    for role, words in (("image", _IMAGE_WORDS), ("mask", _MASK_WORDS)):
        if lowered in words:
            return "", role
        for word in words:
            for pattern in (rf"(\w+?)[_\- ]?{word}", rf"{word}[_\- ](\w+)"):
                match = re.fullmatch(pattern, lowered)
                if match and match[1] in SPLIT_OF_FOLDER:
                    return SPLIT_OF_FOLDER[match[1]], role
    return "", ""


def _choose_masks(root: Path, names: list[str]) -> tuple[str, list[str]]:
    """Choose among folders of masks: the one of image files where the others hold the same as .npy."""
    pictures = [name for name in names if holds_files(root / name, IMAGE_SUFFIXES)]
    chosen = pictures or names
    if len(chosen) > 1:
        raise _several(root, chosen, "masks")
    return chosen[0], [name for name in names if name != chosen[0]]


def _several(root: Path, names: list[str], what: str) -> UserError:
    return UserError(
        f"{root}: {', '.join(f'{name}/' for name in names)} may all hold the {what}; move away those that do not count"
    )


def _by_inner_splits(place: _Place) -> list[_Place]:
    """Take images/train with masks/train where both folders have split folders in them."""
    if place.split:
        return [place]
    inner = [
        {SPLIT_OF_FOLDER[name.lower()]: folder / name for name in list_folder(folder)[0] if name.lower() in SPLIT_OF_FOLDER}
        for folder in (place.images, place.masks)
    ]
    both = sorted(inner[0].keys() & inner[1].keys())
    return [_Place(split, inner[0][split], inner[1][split], place.left_out) for split in both] or [place]


def _pair(place: _Place, root: Path, mask_suffix: str | None) -> Pairs:
    image_prefix, mask_prefix = _relative(place.images, root), _relative(place.masks, root)
    if place.is_lone:
        files = list_files(place.images, MASK_SUFFIXES, deep=False)
        return pair_lone_folder(files, prefix=image_prefix, mask_suffix=mask_suffix)
    return pair_folders(
        list_files(place.images, IMAGE_SUFFIXES),
        list_files(place.masks, MASK_SUFFIXES),
        image_prefix=image_prefix,
        mask_prefix=mask_prefix,
        mask_suffix=mask_suffix,
    )


def _build_samples(place: _Place, root: Path, pairs: Pairs) -> Iterable[SampleRef]:
    prefix = _relative(place.images, root)
    for image, mask in pairs.pairs:
        yield SampleRef(
            name=image.stem,
            source_path=prefix + image.relative,
            image=FileSpan(image.path),
            mask=FileSpan(mask.path),
            split=place.split,
            num_bytes=image.num_bytes + mask.num_bytes,
        )


def _split_by_lists(
    root: Path, samples: list[SampleRef], problems: list[ScanProblem], notes: list[tuple[str, int]]
) -> list[SampleRef]:
    """Split a VOC folder by its lists of names, where it has them; what no list names is left out and counted."""
    split_of: dict[str, str] = {}
    for split in ("train", "val", "test"):
        path = root / _VOC_LISTS / f"{split}.txt"
        if path.is_file():
            split_of |= dict.fromkeys(path.read_text(encoding="utf-8").split(), split)
    if not split_of or any(sample.split for sample in samples):
        return samples
    listed = [replace(sample, split=split_of[sample.name]) for sample in samples if sample.name in split_of]
    unlisted = [problem for problem in problems if Path(problem.file).stem not in split_of]
    problems[:] = [problem for problem in problems if Path(problem.file).stem in split_of]
    known = {sample.name for sample in listed} | {Path(problem.file).stem for problem in problems}
    for name in sorted(split_of.keys() - known):
        reason = f"names {name}, of which there is neither image nor mask"
        problems.append(
            ScanProblem(f"{_VOC_LISTS}/{split_of[name]}.txt", reason, "add its files, or take the name off the list")
        )
    num_left_out = len(samples) - len(listed) + len(unlisted)
    if num_left_out:
        notes.append((f"files that the lists in {_VOC_LISTS}/ do not name, left out", num_left_out))
    return listed


def _refuse_empty(root: Path, layout: str, problems: list[ScanProblem]) -> None:
    shown = "\n".join(f"  {problem.file} {problem.reason}" for problem in problems[:8])
    raise UserError(
        f"{root}: no image has a mask ({layout}):\n{shown}\n  if masks have an ending of their own, name it with --mask-suffix"
    )


def _find_class_file(root: Path) -> Path | None:
    return next((root / name for name in _CLASS_FILES if (root / name).is_file()), None)


def _relative(folder: Path, root: Path) -> str:
    """A folder's path from the source folder with a closing slash; "" for that folder itself."""
    return "" if folder == root else f"{folder.relative_to(root).as_posix()}/"
