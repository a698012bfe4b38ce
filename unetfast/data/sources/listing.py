"""Listing source folders: what counts as a file, what is litter, which names are splits, how numbers in names sort."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from unetfast.errors import UserError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
MASK_SUFFIXES = IMAGE_SUFFIXES | {".npy"}
# folder name -> split
SPLIT_OF_FOLDER = {
    **dict.fromkeys(("train", "training", "train2017", "trainset", "train_set"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "val2017", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "testset", "test_set"), "test"),
}
_LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx", "icon\r"})


@dataclass(frozen=True, slots=True, order=True)
class FoundFile:
    """A file below a folder.

    Args:
        relative: path relative to the listed folder, POSIX.
        path: the file.
        num_bytes: its size.
    """

    relative: str
    path: str
    num_bytes: int

    @property
    def stem(self) -> str:
        """The relative path without its last suffix: dots before it stay."""
        return str(PurePosixPath(self.relative).with_suffix(""))

    @property
    def suffix(self) -> str:
        """The last suffix in lower case, with its dot."""
        return PurePosixPath(self.relative).suffix.lower()


def is_litter(name: str) -> bool:
    """Tell the files that systems strew about (.DS_Store, ._*, Thumbs.db, __MACOSX) and hidden ones."""
    return name.startswith(".") or name.lower() in _LITTER


def list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """List a folder: names of its folders and of its files, sorted, without litter.

    Raises:
        UserError: the folder may not be read.
    """
    folders: list[str] = []
    files: list[str] = []
    for entry in _scan(folder):
        (folders if entry.is_dir() else files).append(entry.name)
    return sorted(folders), sorted(files)


def list_files(folder: Path, suffixes: Iterable[str] = (), *, deep: bool = True) -> list[FoundFile]:
    """List the files of a folder, and of those below it if `deep`, sorted by relative path; links are followed once.

    Args:
        folder: where to look.
        suffixes: lower case, with their dots; all files where empty.
        deep: look into folders too.

    Raises:
        UserError: a folder may not be read.
    """
    wanted = frozenset(suffixes)
    return sorted(_walk(folder, "", wanted, deep, set()))


def _walk(folder: Path, prefix: str, wanted: frozenset[str], deep: bool, seen: set[tuple[int, int]]) -> Iterator[FoundFile]:
    stat = folder.stat()
    if (stat.st_dev, stat.st_ino) in seen:
        return
    seen.add((stat.st_dev, stat.st_ino))
    for entry in _scan(folder):
        if entry.is_dir():
            if deep:
                yield from _walk(Path(entry.path), f"{prefix}{entry.name}/", wanted, deep, seen)
        elif not (entry.is_file() or entry.is_symlink()):
            continue  # a pipe or a socket: opening it would wait for ever
        elif not wanted or PurePosixPath(entry.name).suffix.lower() in wanted:
            try:
                num_bytes = entry.stat().st_size
            except OSError:  # a link into nowhere: reading it gives the error, with its name
                num_bytes = 0
            yield FoundFile(prefix + entry.name, entry.path, num_bytes)


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not is_litter(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror or error}); check that it may be read") from None


def number_in_name(name: str) -> int | None:
    """The last number in a name, such as 10 of `image_10.png`; None without one."""
    numbers = re.findall(r"\d+", PurePosixPath(name).stem)
    return int(numbers[-1]) if numbers else None


def describe_folder(root: Path, limit: int = 8) -> str:
    """Say in one line what a folder holds, for messages."""
    folders, files = list_folder(root)
    names = [f"{name}/" for name in folders]
    counts: dict[str, int] = {}
    for name in files:
        suffix = PurePosixPath(name).suffix.lower() or "(no suffix)"
        counts[suffix] = counts.get(suffix, 0) + 1
    shown = names[:limit] + ([f"... ({len(names)} folders)"] if len(names) > limit else [])
    shown += [f"{count} {suffix} file{'s' if count > 1 else ''}" for suffix, count in sorted(counts.items())[:limit]]
    return ", ".join(shown) if shown else "nothing"


def holds_files(folder: Path, suffixes: frozenset[str]) -> bool:
    """Say whether a folder, or one below it, holds a file of these suffixes."""
    return next(_walk(folder, "", suffixes, True, set()), None) is not None
