"""Masks of a video's frames in one mask.npy, as CLEVR has them: (frames, H, W), uint8, frames in the order of their numbers.

The file is made of the frames' own mask files once the last of them is written, so the two cannot differ.

Axis legend: H height, W width.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unetfast.data.image import open_picture
from unetfast.data.sources.clevr import is_video
from unetfast.data.sources.listing import IMAGE_SUFFIXES, list_files, number_in_name
from unetfast.errors import UserError
from unetfast.infer.inputs import ImageInput
from unetfast.infer.outputs import MaskFormat, open_whole, write_npy_header

MASK_NPY_CHOICES = ("auto", "on", "off")
NAME = "mask.npy"
MAX_TOLD = 5
MAX_MISSING = 1_000_000  # above it the numbers are no frame numbers, and are not listed


@dataclass(frozen=True, slots=True)
class Video:
    """The frames of one folder.

    Args:
        folder: where its images are.
        mask_file: where its masks go.
        frames: number -> image, in the order of the numbers.
        num_missing: how many numbers between the first and the last have no image.
        missing: the first few of them.
    """

    folder: Path
    mask_file: Path
    frames: dict[int, ImageInput]
    num_missing: int
    missing: list[int]


def find_videos(images: Sequence[ImageInput], out: Path, *, asked_for: bool) -> tuple[list[Video], list[str]]:
    """Group images into videos by the folder that they lie in.

    Args:
        images: what will be predicted.
        out: output folder; a video's mask.npy stands beside the masks of its frames.
        asked_for: take every folder for a video, whatever its name, and part of its images for all of them; else only those
            that are named as CLEVR names them (video_3) and whose images are all there.

    Returns:
        The videos, and what the user should know about those that were passed over.

    Raises:
        UserError: what was asked for cannot be: a frame has no number in its name, two have the same, or a mask.npy would
            replace another one.
    """
    folders: dict[Path, list[ImageInput]] = {}
    for image in images:
        folder = image.path.resolve().parent
        if asked_for or is_video(folder.name):
            folders.setdefault(folder, []).append(image)
    videos: list[Video] = []
    notes: list[str] = []
    for folder, frames in folders.items():
        try:
            if not asked_for:
                _check_all_there(folder, frames)
            video = _build_video(folder, frames, out)
            _check_own_file(video, videos)
            videos.append(video)
        except UserError as error:
            if asked_for:
                raise
            notes.append(f"no {NAME} of {folder.name}: {str(error).splitlines()[0]}")
    return videos, notes


def _check_all_there(folder: Path, images: Sequence[ImageInput]) -> None:
    num_images = len(list_files(folder, IMAGE_SUFFIXES, deep=False))
    if num_images > len(images):
        raise UserError(f"{len(images)} of its {num_images} images are predicted")


def _check_own_file(video: Video, others: Sequence[Video]) -> None:
    for other in others:
        if other.mask_file == video.mask_file:
            raise UserError(
                f"{other.folder} and {video.folder}: both would be written to {video.mask_file}; give the folder above"
            )


def _build_video(folder: Path, images: Sequence[ImageInput], out: Path) -> Video:
    numbered: dict[int, ImageInput] = {}
    for image in images:
        number = number_in_name(image.path.name)
        if number is None:
            raise UserError(
                f"{image.path}: has no frame number in its name, and the masks of a video go by number\n"
                "  name frames image_<number>.png, or leave mask.npy out with --mask-npy off"
            )
        if number in numbered:
            raise UserError(
                f"{image.path}: has the frame number of {numbered[number].path.name}\n"
                "  give one of the two, or leave mask.npy out with --mask-npy off"
            )
        numbered[number] = image
    mask_file = (out / images[0].name).parent / NAME
    if mask_file.resolve().parent == folder:
        raise UserError(f"{mask_file}: would replace the video's own masks; take another --out")
    first, last = min(numbered), max(numbered)
    num_missing = last - first + 1 - len(numbered)
    missing = [number for number in range(first, last) if number not in numbered] if num_missing <= MAX_MISSING else []
    return Video(folder, mask_file, dict(sorted(numbered.items())), num_missing, missing[:MAX_TOLD])


def check_format(mask_format: MaskFormat) -> None:
    """Prove that masks of this format can stand in a mask.npy.

    Raises:
        UserError: a pixel is not one byte.
    """
    if mask_format.kind not in ("palette", "grey"):
        kinds = {"rgb": "are told by their colours", "png16": "need 16 bits", "npy": "need 32 bits"}
        raise UserError(
            f"--mask-npy on: mask.npy holds a byte a pixel, and this checkpoint's classes {kinds[mask_format.kind]}; "
            "leave it out"
        )


class VideoMasks:
    """Writes each video's mask.npy when all of its frames are done; may be told of frames from several threads.

    Args:
        videos: found by `find_videos`.
        mask_path: where a frame's own mask is.
    """

    def __init__(self, videos: Sequence[Video], mask_path: Callable[[ImageInput], Path]) -> None:
        self._mask_path = mask_path
        self._lock = threading.Lock()
        self._video_of = {image.name: video for video in videos for image in video.frames.values()}
        self._sizes: dict[Path, dict[str, tuple[int, int] | None]] = {video.folder: {} for video in videos}
        self._notes: list[str] = []
        self.num_written = 0

    @property
    def notes(self) -> list[str]:
        """What the user should know: videos without a mask.npy, and those with gaps."""
        return sorted(self._notes)

    def frame_done(self, image: ImageInput, size_hw: tuple[int, int] | None) -> None:
        """Tell that a frame's mask is written, and its height and width; None says that there will be none.

        Raises:
            UserError: a mask.npy cannot be written.
        """
        video = self._video_of.get(image.name)
        if video is None:
            return
        with self._lock:
            sizes = self._sizes[video.folder]
            sizes[image.name] = size_hw
            if len(sizes) < len(video.frames):
                return
        note, is_written = self._finish(video)
        with self._lock:
            self.num_written += is_written
            self._notes += [note] * bool(note)

    def _finish(self, video: Video) -> tuple[str, bool]:
        sizes, frames = self._sizes[video.folder], list(video.frames.values())
        failed = [frame.path.name for frame in frames if sizes[frame.name] is None]
        if failed:
            return f"no {video.mask_file}: {_list(failed, len(failed))} could not be predicted, and masks go by place", False
        first_hw = sizes[frames[0].name]
        other = next((frame for frame in frames if sizes[frame.name] != first_hw), None)
        if first_hw is None or other is not None:
            return (
                f"no {video.mask_file}: its frames differ in size ({frames[0].path.name} and {other and other.path.name})",
                False,
            )
        with open_whole(video.mask_file) as file:
            write_npy_header(file, np.dtype(np.uint8), (len(frames), *first_hw))
            for frame in frames:
                file.write(_read_mask(self._mask_path(frame)))
        return _describe_gaps(video), True


def _read_mask(path: Path) -> bytes:
    picture = open_picture(path.read_bytes(), str(path), max_pixels=sys.maxsize)  # it is ours
    return np.asarray(picture).tobytes()


def _describe_gaps(video: Video) -> str:
    if not video.num_missing:
        return ""
    numbers = f" ({_list(list(map(str, video.missing)), video.num_missing)})" if video.missing else ""
    frames = "1 frame is" if video.num_missing == 1 else f"{video.num_missing:,} frames are"
    return (
        f"{video.mask_file}: {frames} missing between {min(video.frames)} and {max(video.frames)}{numbers}; it holds the "
        f"{len(video.frames)} that are there, in the order of their numbers"
    )


def _list(words: list[str], num_all: int) -> str:
    shown = words[:MAX_TOLD]
    return ", ".join(shown) + (f" and {num_all - len(shown)} more" if num_all > len(shown) else "")
