"""CLEVR videos: a folder per video, its frames as images, all masks of the video in one mask.npy.

49 classes: background, and 48 objects = 3 shapes x 2 materials x 8 colours. Frames of one video are near duplicates, so the
video is the group. A mask.npy's header is read once a video, and one frame's bytes at a time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unetfast.data.labels import ClassInfo, LabelTable
from unetfast.data.masks import ValueMap, apply_value_map, look_up_values
from unetfast.data.npy import NpyHeader, frame_span, read_npy_header
from unetfast.data.sample import FileSpan, SampleRef
from unetfast.data.sources.base import ScanProblem, SourceOptions, SourceScan
from unetfast.data.sources.listing import (
    IMAGE_SUFFIXES,
    SPLIT_OF_FOLDER,
    FoundFile,
    list_files,
    list_folder,
    number_in_name,
)
from unetfast.data.spans import describe_span, read_span
from unetfast.errors import BadSampleError, UserError

LOOKED_FOR = "folders video_<number>/ with image_<number>.png and mask.npy, or such folders below train/ val/ unlabeled/"

SHAPES = ("cube", "sphere", "cylinder")
MATERIALS = ("metal", "rubber")
COLORS = ("gray", "red", "blue", "green", "brown", "cyan", "purple", "yellow")
# the colours that the scenes are rendered with; a class's display colour is shaded by shape and material
_RENDERED = {
    "gray": (120, 120, 120),
    "red": (205, 40, 40),
    "blue": (45, 80, 220),
    "green": (30, 125, 25),
    "brown": (140, 80, 30),
    "cyan": (40, 190, 190),
    "purple": (135, 40, 190),
    "yellow": (215, 200, 35),
}
_VIDEO = re.compile(r"video[_-]?\d+|videoX", re.IGNORECASE)
_UNLABELLED = ("unlabeled", "unlabelled", "hidden")
_REMEDY = "get the video again, or leave it out with --on-bad skip"


def build_labels() -> LabelTable:
    """Make the 49 classes: id = 1 + 16 * shape + 8 * material + colour, 0 is background."""
    classes = [ClassInfo(name="background", color=(0, 0, 0), value=0)]
    for shape in range(len(SHAPES)):
        for material in range(len(MATERIALS)):
            for color in COLORS:
                name = f"{color} {MATERIALS[material]} {SHAPES[shape]}"
                classes.append(ClassInfo(name=name, color=_shade(_RENDERED[color], shape, material), value=len(classes)))
    return LabelTable(classes=tuple(classes))


def _shade(color: tuple[int, int, int], shape: int, material: int) -> tuple[int, int, int]:
    """Metal is lighter than rubber; cubes, spheres and cylinders are told apart by brightness."""
    weight = (0.0, 0.22, 0.44)[shape] + (0.12 if material == 0 else 0.0)
    red, green, blue = (round(channel + (255 - channel) * weight) for channel in color)
    return red, green, blue


def recognize(root: Path) -> str:
    """Name the layout: "split folders", "one folder of videos", or "" where it is not CLEVR."""
    if not root.is_dir():
        return ""
    folders, _ = list_folder(root)
    if any(_has_video(root / name) for name in folders if name.lower() in SPLIT_OF_FOLDER):
        return "split folders"
    return "one folder of videos" if _has_video(root) else ""


def is_video(name: str) -> bool:
    """Tell whether a folder's name is that of a video."""
    return _VIDEO.fullmatch(name) is not None


def _has_video(folder: Path) -> bool:
    return any(is_video(name) and (folder / name / "mask.npy").is_file() for name in list_folder(folder)[0] if name)


def scan(root: Path, options: SourceOptions) -> SourceScan:
    """List the frames of all labelled videos.

    Raises:
        UserError: the folder is not of this layout, or no video has masks.
    """
    layout = recognize(root)
    if not layout:
        raise UserError(f"{root}: no CLEVR videos with masks in it; looked for {LOOKED_FOR}")
    labels = apply_value_map(build_labels(), options.value_map)
    samples: list[SampleRef] = []
    problems: list[ScanProblem] = []
    num_unlabelled = 0
    for split, folder in _split_folders(root, layout):
        videos = [name for name in list_folder(folder)[0] if _VIDEO.fullmatch(name)]
        for video in sorted(videos, key=lambda name: (number_in_name(name) or 0, name)):
            if not (folder / video / "mask.npy").exists():
                num_unlabelled += 1
                continue
            _list_video(root, folder / video, split, samples, problems)
    for name in list_folder(root)[0]:
        if layout == "split folders" and name.lower() in _UNLABELLED:
            num_unlabelled += sum(1 for video in list_folder(root / name)[0] if _VIDEO.fullmatch(video))
    samples.sort(key=lambda sample: (sample.split, sample.name))
    notes = [("unlabelled videos left out", num_unlabelled)] if num_unlabelled else []
    return SourceScan("clevr", layout, labels, samples, ClevrMaskReader(labels, options.value_map), problems, notes)


def _split_folders(root: Path, layout: str) -> list[tuple[str, Path]]:
    if layout == "one folder of videos":
        return [("", root)]
    return [(SPLIT_OF_FOLDER[name.lower()], root / name) for name in list_folder(root)[0] if name.lower() in SPLIT_OF_FOLDER]


def _list_video(root: Path, folder: Path, split: str, samples: list[SampleRef], problems: list[ScanProblem]) -> None:
    relative = folder.relative_to(root).as_posix()
    try:
        frames = _number_frames(list_files(folder, IMAGE_SUFFIXES, deep=False), relative)
        header = _check_header(str(folder / "mask.npy"))
    except BadSampleError as error:
        problems.append(ScanProblem(error.file, error.reason, error.remedy))
        return
    if len(frames) != header.shape[0]:
        reason = f"holds masks of {header.shape[0]} frames, {relative}/ holds {len(frames)} images"
        problems.append(ScanProblem(f"{relative}/mask.npy", reason, _REMEDY))
        return
    for place, frame in enumerate(frames):
        mask = frame_span(str(folder / "mask.npy"), header, place)
        samples.append(
            SampleRef(
                name=f"{folder.name}/{frame.stem}",
                source_path=f"{relative}/{frame.relative}",
                image=FileSpan(frame.path),
                mask=mask,
                group=folder.name,
                split=split,
                num_bytes=frame.num_bytes + mask.length,
            )
        )


def _number_frames(files: list[FoundFile], relative: str) -> list[FoundFile]:
    """Sort a video's images by the number in their name; their place is that of their mask."""
    numbered: dict[int, FoundFile] = {}
    for file in files:
        number = number_in_name(file.relative)
        if number is None:
            raise BadSampleError(
                f"{relative}/{file.relative}", "has no frame number in its name", "name frames image_<number>.png"
            )
        if number in numbered:
            raise BadSampleError(
                f"{relative}/{file.relative}", f"has the frame number of {numbered[number].relative}", "keep one of the two"
            )
        numbered[number] = file
    if not numbered:
        raise BadSampleError(f"{relative}/", "holds no images", _REMEDY)
    numbers = sorted(numbered)
    missing = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers))
    if missing:
        raise BadSampleError(
            f"{relative}/", f"frame {missing[0]} is missing between {numbers[0]} and {numbers[-1]}: masks go by place", _REMEDY
        )
    return [numbered[number] for number in numbers]


def _check_header(path: str) -> NpyHeader:
    """Read a mask.npy's header: (frames, height, width), uint8, C order.

    Raises:
        BadSampleError: anything else; names what was found.
    """
    header = read_npy_header(path)
    expected = "a video's masks are uint8 of shape (frames, height, width) in C order"
    save = f"save them again with numpy.save(path, numpy.ascontiguousarray(masks, dtype=numpy.uint8)), {_REMEDY}"
    if header.dtype != np.uint8:
        raise BadSampleError(path, f"holds {header.dtype}; {expected}", save)
    if len(header.shape) != 3 or 0 in header.shape:
        raise BadSampleError(path, f"has shape {header.shape}; {expected}", save)
    if header.fortran_order:
        raise BadSampleError(path, f"is in Fortran order, so that one frame lies all over the file; {expected}", save)
    return header


@dataclass(frozen=True, slots=True)
class ClevrMaskReader:
    """Reads one frame of a mask.npy, by offset; class ids stand in it as they are."""

    labels: LabelTable
    value_map: ValueMap = ()

    def __call__(self, span: FileSpan) -> np.ndarray:
        """Read one mask's class ids; see `MaskReader`."""
        file = describe_span(span)
        header = _check_header(span.path)
        values_HW = np.frombuffer(read_span(span), dtype=np.uint8).reshape(header.shape[1:])
        table: dict[int, int | None] = {class_id: class_id for class_id in range(self.labels.num_classes)}
        table |= {value: class_id for value, class_id in self.value_map if not isinstance(value, tuple)}
        return look_up_values(values_HW, tuple(table.items()), self.labels, file)
