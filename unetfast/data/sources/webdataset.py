"""Tar files made by others with WebDataset: members of one key are one sample.

The key is a member's path up to the first dot of its file name, as WebDataset cuts it; the rest says what it is: `jpg`, `png`,
... are images, `mask.png`, `seg.png`, `label.png`, ... masks, and a bare `png` or `npy` beside a JPEG is its mask. All other
members are counted and left out. Only headers are read here; images and masks are read later, by their place in the tar.
"""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from unetfast.data.found_labels import find_labels
from unetfast.data.sample import FileSpan, SampleRef
from unetfast.data.sources.base import ScanProblem, SourceOptions, SourceScan
from unetfast.data.sources.listing import IMAGE_SUFFIXES, MASK_SUFFIXES, SPLIT_OF_FOLDER, list_files, list_folder
from unetfast.errors import UserError

LOOKED_FOR = (
    "*.tar files (made by WebDataset: <key>.jpg with <key>.mask.png, .seg.png, .label.png or .png), or train/ val/ of them"
)

_MASK_WORDS = frozenset({"mask", "masks", "seg", "segmentation", "label", "labels", "gt", "target", "annotation", "semantic"})
_IMAGE_WORDS = frozenset({"", "image", "img", "input", "rgb"})
_PHOTOS = frozenset({".jpg", ".jpeg"})
_END_BYTES = 1 << 16  # behind a tar's last member stand zeros, 1 KiB or more
_OWN_MEMBERS = ("image.lz4", "mask.lz4")


@dataclass(slots=True)
class _Member:
    name: str
    extension: str  # all behind the first dot of the file name, lower case
    offset: int
    length: int

    @property
    def suffix(self) -> str:
        return "." + self.extension.rpartition(".")[2]

    @property
    def word(self) -> str:
        return self.extension.rpartition(".")[0]


@dataclass(slots=True)
class _Found:
    samples: list[SampleRef] = field(default_factory=list)
    problems: list[ScanProblem] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def recognize(root: Path) -> str:
    """Say "tar files" where a folder, or the split folders in it, hold some made by WebDataset; else ""."""
    return "tar files" if root.is_dir() and any(_has_samples(path) for _, path in islice(_list_tars(root), 4)) else ""


def _has_samples(path: Path) -> bool:
    """Say whether two of a tar's first members share a key: an archive of folders, left beside a data set, has none."""
    keys: set[str] = set()
    try:
        with tarfile.open(path, "r:") as tar:
            for info in islice(tar, 64):
                key, _ = _split_name(info.name)
                if key and key in keys:
                    return True
                keys.add(key)
    except (OSError, tarfile.TarError):
        return False
    return False


def _split_name(name: str) -> tuple[str, str]:
    """Cut a member's path into key and extension at the first dot of its file name; ("", "") where it has none."""
    folder, _, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not dot or not stem:
        return "", ""
    return (f"{folder}/{stem}" if folder else stem), extension.lower()


def _list_tars(root: Path) -> Iterator[tuple[str, Path]]:
    """List (split or "", tar file), sorted."""
    folders, files = list_folder(root)
    for name in files:
        if name.lower().endswith(".tar"):
            yield _split_of_name(name), root / name
    for name in folders:
        if name.lower() in SPLIT_OF_FOLDER:
            for file in list_files(root / name, (".tar",), deep=False):
                yield SPLIT_OF_FOLDER[name.lower()], Path(file.path)


def _split_of_name(name: str) -> str:
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLIT_OF_FOLDER[word] for word in words if word in SPLIT_OF_FOLDER), "")


def scan(root: Path, options: SourceOptions) -> SourceScan:
    """List the samples of a folder of tar files, and find the classes of their masks.

    Raises:
        UserError: no tar files, shards of our own, some tars of no split beside others of one, or no sample with a mask.
    """
    tars = list(_list_tars(root)) if root.is_dir() else []
    if not tars:
        raise UserError(f"{root}: no tar files in it; looked for {LOOKED_FOR}")
    if (root / "manifest.json").is_file():
        raise UserError(f"{root}: is a shard folder already (it has a manifest.json); use it as it is: unetfast inspect {root}")
    splits = {split for split, _ in tars}
    if "" in splits and len(splits) > 1:
        odd = next(path for split, path in tars if not split)
        raise UserError(
            f"{odd}: of no split, while other tar files are of one; name it train-*, val-* or test-*, or put it in train/"
        )
    found = _Found()
    for split, path in tars:
        _read_tar(root, split, path, found)
    if not found.samples:
        shown = "\n".join(f"  {problem.file}: {problem.reason}" for problem in found.problems[:8])
        raise UserError(
            f"{root}: no sample with an image and a mask in {len(tars)} tar files\n{shown}\n  looked for {LOOKED_FOR}"
        )
    samples = _name_apart(found.samples)
    samples.sort(key=lambda sample: (sample.split, sample.name))
    labels = find_labels(
        [sample.mask for sample in samples],
        classes_file=options.classes_file,
        ignore_value=options.ignore_value,
        value_map=options.value_map,
        where=str(root),
    )
    notes = [(f"members .{extension} left out", count) for extension, count in sorted(found.left_out.items())]
    layout = f"{len(tars)} tar file{'s' if len(tars) > 1 else ''}"
    return SourceScan("webdataset", layout, labels.labels, samples, labels.read_mask, found.problems, notes + labels.notes)


def _read_tar(root: Path, split: str, path: Path, found: _Found) -> None:
    relative = path.relative_to(root).as_posix()
    members: dict[str, list[_Member]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                key, extension = _split_name(info.name)
                if info.isfile() and key:
                    members.setdefault(key, []).append(_Member(info.name, extension, info.offset_data, info.size))
            _check_end(path, tar.offset)
    except OSError as error:
        found.problems.append(ScanProblem(relative, f"cannot be read ({error.strerror or error})", "check that it may be read"))
    except tarfile.TarError as error:
        reason = f"is damaged or cut short behind {sum(map(len, members.values()))} members ({error})"
        found.problems.append(
            ScanProblem(relative, reason, "get the tar file again, or go on without the rest of it: --on-bad skip")
        )
    for key, parts in members.items():
        if any(part.extension in _OWN_MEMBERS for part in parts):
            raise UserError(
                f"{path}: holds {', '.join(_OWN_MEMBERS)}, members of a shard folder of unetfast that lost its manifest.json; "
                "pack its source again"
            )
        _build_sample(key, parts, split, path, relative, found)


def _check_end(path: Path, offset: int) -> None:
    """Prove that a tar ends where its headers end, which `tarfile` takes for granted: by zeros, and nothing behind them.

    Raises:
        tarfile.ReadError: it was cut between two members, has a broken header, or is several tars in one file.
    """
    with path.open("rb") as file:
        file.seek(offset)
        rest = file.read(_END_BYTES)
    if len(rest) < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("no end mark")
    if any(rest):
        raise tarfile.ReadError("more bytes, and no header of a member")


def _build_sample(key: str, parts: list[_Member], split: str, path: Path, relative: str, found: _Found) -> None:
    masks = [part for part in parts if part.word in _MASK_WORDS and part.suffix in MASK_SUFFIXES]
    images = [part for part in parts if part.word in _IMAGE_WORDS and part.suffix in IMAGE_SUFFIXES]
    if not masks:
        if any(part.suffix in _PHOTOS for part in images):
            masks = [part for part in images if part.suffix not in _PHOTOS]
            images = [part for part in images if part.suffix in _PHOTOS]
        masks += [part for part in parts if part.extension == "npy"]
    found.left_out.update(part.extension for part in parts if part not in masks and part not in images)
    where = f"{relative}: {key}"
    for what, group in (("image", images), ("mask", masks)):
        if len(group) != 1:
            names = ", ".join(part.name for part in group) or ", ".join(part.name for part in parts)
            reason = f"has {len(group)} {what}s: {names}" if group else f"has no {what}; its members: {names}"
            found.problems.append(ScanProblem(where, reason, f"give each key one {what}, or leave it out with --on-bad skip"))
            return
    image, mask = images[0], masks[0]
    found.samples.append(
        SampleRef(
            name=key,
            source_path=f"{relative}/{image.name}",
            image=FileSpan(str(path), image.offset, image.length),
            mask=FileSpan(str(path), mask.offset, mask.length),
            split=split,
            num_bytes=image.length + mask.length,
        )
    )


def _name_apart(samples: list[SampleRef]) -> list[SampleRef]:
    """Put the tar's name before all keys where keys of one split occur in several tars."""
    keys = [(sample.split, sample.name) for sample in samples]
    if len(set(keys)) == len(keys):
        return samples
    return [replace(sample, name=f"{Path(sample.image.path).stem}/{sample.name}") for sample in samples]
