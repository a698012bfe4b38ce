"""ADE20K: the scene parsing benchmark's folder, and the full release.

Both give the benchmark's 150 classes, so that a model of one fits the other. `ADEChallengeData2016` has masks of 0..150, 0
for all else: ignored. The full release has `<image>_seg.png` with a class number of the release's own 3,688 in red and green,
and the names of the numbers in a JSON file beside each image; those whose name is one of the 150 keep their class, the
rest is ignored and counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from unetfast.data.labels import ClassInfo, LabelTable
from unetfast.data.masks import ValueMap, apply_value_map, decode_mask_values, look_up_values
from unetfast.data.sample import FileSpan, SampleRef
from unetfast.data.sources.ade20k_classes import CLASSES
from unetfast.data.sources.base import MaskReader, ScanProblem, SourceOptions, SourceScan
from unetfast.data.sources.listing import IMAGE_SUFFIXES, FoundFile, list_files, list_folder
from unetfast.data.spans import describe_span, read_span
from unetfast.errors import BadSampleError, UserError

LOOKED_FOR = (
    "images/training/ADE_*.jpg with annotations/training/ADE_*.png (ADEChallengeData2016), or images/ADE/training/ with "
    "<image>_seg.png and <image>.json (full release)"
)

_SPLITS = (("train", "training"), ("val", "validation"))
_NAME = re.compile(r"ADE_[a-z]+_\d+")
_UPPER_PART = (np.arange(256) // 10 * 256).astype(np.uint16)  # of a class number, by red
_NUMBER_NAME = re.compile(r'"name"\s*:\s*"((?:[^"\\]|\\.)*)"\s*,\s*"name_ndx"\s*:\s*(\d+)')
_NUMBER_KEY = re.compile(r'"name_ndx"\s*:')


def build_labels() -> LabelTable:
    """Make the 150 classes, ids 0..149; in the source's masks they are 1..150, and 0 is ignored."""
    classes = [
        ClassInfo(name=names.split(", ")[0], color=color, value=place) for place, (names, color) in enumerate(CLASSES, start=1)
    ]
    return LabelTable(classes=tuple(classes), ignore_value=0)


def class_of_name(names: str) -> int | None:
    """Find the benchmark's class of an object name of the full release; None where it is not among the 150.

    Names are lists of synonyms; they agree when they hold the same synonyms in any order. One alone never decides: a wheel
    is no bicycle, though "wheel" is one of bicycle's synonyms.
    """
    return _CLASS_OF_NAMES.get(_synonyms(names))


def _synonyms(names: str) -> frozenset[str]:
    return frozenset(" ".join(name.lower().split()) for name in names.split(",") if name.strip())


_CLASS_OF_NAMES = {_synonyms(names): class_id for class_id, (names, _) in enumerate(CLASSES)}
# the benchmark's "door, double door" stands for two object names of the release
_CLASS_OF_NAMES |= {_synonyms(name): _CLASS_OF_NAMES[_synonyms("door, double door")] for name in ("door", "double door")}


def recognize(root: Path) -> str:
    """Name the layout: "ADEChallengeData2016", "full release", or "" where it is not ADE20K."""
    for _, name in _SPLITS:
        images, masks = root / "images" / name, root / "annotations" / name
        # other data sets have the same two folders; the names tell
        if images.is_dir() and masks.is_dir() and any(_NAME.match(file) for file in list_folder(images)[1]):
            return "ADEChallengeData2016"
    if any((root / "images" / "ADE" / name).is_dir() for _, name in _SPLITS):
        return "full release"
    return ""


def scan(root: Path, options: SourceOptions) -> SourceScan:
    """List the pairs of an ADE20K folder.

    Raises:
        UserError: the folder is not of this layout, or holds no image.
    """
    layout = recognize(root)
    if not layout:
        raise UserError(f"{root}: not an ADE20K folder; looked for {LOOKED_FOR}")
    labels = apply_value_map(build_labels(), options.value_map)
    samples: list[SampleRef] = []
    problems: list[ScanProblem] = []
    notes: list[tuple[str, int]] = []
    for split, folder in _SPLITS:
        if layout == "full release":
            _pair_full(root, split, f"images/ADE/{folder}", samples, problems)
        else:
            _pair_benchmark(root, split, folder, samples, problems)
    if not samples and not problems:
        raise UserError(f"{root}: no ADE20K image in it; looked for {LOOKED_FOR}")
    samples.sort(key=lambda sample: (sample.split, sample.name))
    reader: MaskReader
    if layout == "full release":
        samples, numbers = _read_numbers(samples, problems, notes)
        mapped = {value: class_id for value, class_id in options.value_map if not isinstance(value, tuple)}
        reader = FullMaskReader(labels, tuple((numbers | mapped).items()))
    else:
        reader = BenchmarkMaskReader(labels, options.value_map)
        if (root / "images" / "testing").is_dir():
            notes.append(("test images without masks left out", len(list_files(root / "images" / "testing", IMAGE_SUFFIXES))))
    return SourceScan("ade20k", layout, labels, samples, reader, problems, notes)


def _pair_benchmark(root: Path, split: str, folder: str, samples: list[SampleRef], problems: list[ScanProblem]) -> None:
    images = _by_stem(root / "images" / folder, problems, f"images/{folder}", frozenset({".jpg", ".jpeg", ".png"}))
    masks = _by_stem(root / "annotations" / folder, problems, f"annotations/{folder}", frozenset({".png"}))
    for stem, image in sorted(images.items()):
        mask = masks.pop(stem, None)
        if mask is None:
            reason = f"has no mask annotations/{folder}/{stem}.png"
            problems.append(ScanProblem(f"images/{folder}/{image.relative}", reason, "add the mask, or remove the image"))
        else:
            samples.append(_pair(stem, f"images/{folder}/{image.relative}", image, mask, split))
    for stem, mask in sorted(masks.items()):
        reason = f"has no image images/{folder}/{stem}.jpg"
        problems.append(ScanProblem(f"annotations/{folder}/{mask.relative}", reason, "add the image, or remove the mask"))


def _by_stem(folder: Path, problems: list[ScanProblem], name: str, suffixes: frozenset[str]) -> dict[str, FoundFile]:
    if not folder.is_dir():
        return {}
    files: dict[str, FoundFile] = {}
    for file in list_files(folder, suffixes):
        if file.stem in files:
            other = files[file.stem].relative
            problems.append(ScanProblem(f"{name}/{file.relative}", f"has the same name as {other}", "keep one of the two"))
        else:
            files[file.stem] = file
    return files


def _pair(name: str, source_path: str, image: FoundFile, mask: FoundFile, split: str) -> SampleRef:
    return SampleRef(
        name=name,
        source_path=source_path,
        image=FileSpan(image.path),
        mask=FileSpan(mask.path),
        split=split,
        num_bytes=image.num_bytes + mask.num_bytes,
    )


def _pair_full(root: Path, split: str, folder: str, samples: list[SampleRef], problems: list[ScanProblem]) -> None:
    if not (root / folder).is_dir():
        return
    for below, files in _walk_full(root / folder, ""):
        masks = {name: file for name, file in files.items() if name.endswith("_seg.png")}
        for name, image in files.items():
            if image.suffix not in (".jpg", ".jpeg"):
                continue
            source_path = f"{folder}/{below}{name}"
            mask = masks.pop(f"{image.stem}_seg.png", None)
            if mask is None:
                problems.append(
                    ScanProblem(source_path, f"has no mask {image.stem}_seg.png beside it", "add the mask, or remove the image")
                )
            elif f"{image.stem}.json" not in files:
                reason = f"has no {image.stem}.json beside it, which names the numbers of its mask"
                problems.append(ScanProblem(source_path, reason, "add the JSON file, or remove the image and its mask"))
            else:
                samples.append(_pair(below + image.stem, source_path, image, mask, split))
        for name in masks:
            reason = f"has no image {name.removesuffix('_seg.png')}.jpg beside it"
            problems.append(ScanProblem(f"{folder}/{below}{name}", reason, "add the image, or remove the mask"))


def _walk_full(folder: Path, prefix: str) -> Iterator[tuple[str, dict[str, FoundFile]]]:
    """Walk the scene folders; the folders of single objects' masks, named like their image, are left out."""
    files = {file.relative: file for file in list_files(folder, (".jpg", ".jpeg", ".png", ".json"), deep=False)}
    if files:
        yield prefix, files
    image_stems = {file.stem for file in files.values() if file.suffix in (".jpg", ".jpeg")}
    for name in list_folder(folder)[0]:
        if name not in image_stems:
            yield from _walk_full(folder / name, f"{prefix}{name}/")


def _read_numbers(
    samples: list[SampleRef], problems: list[ScanProblem], notes: list[tuple[str, int]]
) -> tuple[list[SampleRef], dict[int, int | None]]:
    """Learn from the JSON files of all images which number is which of the 150 classes, or none of them.

    Returns:
        The samples whose JSON file can be read; number -> class id or None. Problems and notes are added to.

    Raises:
        UserError: two files give one number to different classes.
    """
    numbers: dict[int, int | None] = {}
    name_of: dict[int, str] = {}
    num_ignored_objects = 0
    readable = []
    with ThreadPoolExecutor(max_workers=4) as threads:
        for sample, objects in zip(samples, threads.map(_read_objects, samples), strict=True):
            if isinstance(objects, ScanProblem):
                problems.append(objects)
                continue
            readable.append(sample)
            for number, names in objects:
                class_id = class_of_name(names)
                if numbers.setdefault(number, class_id) != class_id:
                    raise UserError(
                        f"{sample.source_path}: its JSON file calls number {number} {names!r}, another calls it "
                        f"{name_of[number]!r}: the folder mixes releases; pack each on its own"
                    )
                name_of.setdefault(number, names)
                num_ignored_objects += class_id is None
    num_names = sum(1 for class_id in numbers.values() if class_id is None)
    if num_names:
        notes.append(("object names that are none of the 150 classes, ignored", num_names))
        notes.append(("objects of such names", num_ignored_objects))
    return readable, dict(sorted(numbers.items()))


def _read_objects(sample: SampleRef) -> list[tuple[int, str]] | ScanProblem:
    """List (number, name) of all objects in an image's JSON file; polygons, nearly all of its bytes, are passed over."""
    path = Path(sample.image.path).with_suffix(".json")
    relative = str(PurePosixPath(sample.source_path).with_suffix(".json"))
    try:
        data = path.read_bytes()
    except OSError as error:
        return ScanProblem(relative, f"cannot be read ({error.strerror or error})", "check that it may be read")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")  # some of the release's files are
    try:
        pairs = [(int(number), str(json.loads(f'"{name}"'))) for name, number in _NUMBER_NAME.findall(text)]
        if len(pairs) == len(_NUMBER_KEY.findall(text)) > 0:
            return pairs
        objects = json.loads(text)["annotation"]["object"]
        return [(int(item["name_ndx"]), str(item["name"])) for item in objects]
    except (ValueError, KeyError, TypeError) as error:
        reason = f"is no annotation of the full release ({type(error).__name__}: {error})"
        return ScanProblem(relative, reason, "get the file again, or leave its image out with --on-bad skip")


@dataclass(frozen=True, slots=True)
class BenchmarkMaskReader:
    """Reads a mask of the benchmark: 0 is ignored, 1..150 are classes 0..149."""

    labels: LabelTable
    value_map: ValueMap = ()

    def __call__(self, span: FileSpan) -> np.ndarray:
        """Read one mask's class ids; see `MaskReader`."""
        file = describe_span(span)
        mask = decode_mask_values(read_span(span), file)
        if mask.is_rgb:
            raise BadSampleError(
                file,
                "is RGB; the benchmark's annotations are grey with values 0..150",
                "use annotations/ of ADEChallengeData2016, or the whole full release (its _seg.png want their .json files)",
            )
        table: dict[int, int | None] = {0: None} | {number + 1: number for number in range(self.labels.num_classes)}
        table |= {value: class_id for value, class_id in self.value_map if not isinstance(value, tuple)}
        return look_up_values(mask.values, tuple(table.items()), self.labels, file)


@dataclass(frozen=True, slots=True)
class FullMaskReader:
    """Reads a `_seg.png` of the full release: number = red // 10 * 256 + green; blue counts instances."""

    labels: LabelTable
    numbers: tuple[tuple[int, int | None], ...]

    def __call__(self, span: FileSpan) -> np.ndarray:
        """Read one mask's class ids; see `MaskReader`."""
        file = describe_span(span)
        mask = decode_mask_values(read_span(span), file)
        if not mask.is_rgb:
            raise BadSampleError(
                file, "is not RGB, as _seg.png files are", "get the file again, or leave it out with --on-bad skip"
            )
        numbers_HW = _UPPER_PART[mask.values[:, :, 0]] + mask.values[:, :, 1]
        table: dict[int, int | None] = dict(self.numbers)
        table.setdefault(0, None)
        return look_up_values(numbers_HW, tuple(table.items()), self.labels, file)
