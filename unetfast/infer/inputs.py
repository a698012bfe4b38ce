"""Which images to predict, and under which names their results stand; settled before any work is done."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from unetfast.errors import UserError

# looked for in folders; a file that is named outright is taken whatever its suffix
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pbm", ".pgm", ".ppm", ".pnm"))


@dataclass(frozen=True, slots=True)
class ImageInput:
    """One image and the start of its results' names.

    Args:
        path: the image.
        name: path below the output folder, without suffix; POSIX.
    """

    path: Path
    name: str


def list_images(inputs: Sequence[Path], out: Path) -> list[ImageInput]:
    """List the images of files, folders and patterns, each once, in a stable order.

    A folder is read with all folders below it, hidden files and `out` left out; its tree is kept below `out`. A pattern
    (`photos/**/*.jpg`; `**` is any number of folders) gives the images and folders that it matches, and keeps the tree below
    the last folder before its first `*`, `?` or `[`. Several folders or patterns stand each under its own name. Two images that
    differ only in their suffix keep it in their results' names (`a.jpg.png` beside `a.png.png`).

    Args:
        inputs: image files, folders of images, and patterns.
        out: where results will go.

    Raises:
        UserError: nothing was given, a path does not exist, a folder has no image, a pattern matches none, or `out` is one of
            the folders.
    """
    if not inputs:
        raise UserError("no image given: name image files or folders of images")
    patterns = {path: _fixed_part(path) for path in inputs if not path.exists() and glob.has_magic(str(path))}
    roots = {path.resolve() for path in inputs if path.is_dir()} | {root.resolve() for root in patterns.values()}
    found: dict[Path, tuple[Path, Path]] = {}  # resolved path -> (path as given, path below out)
    for path in inputs:
        if path in patterns or path.is_dir():
            root = patterns.get(path, path)
            base = Path(root.resolve().name) if len(roots) > 1 else Path()
            for image in _images_of_pattern(path, root, out) if path in patterns else _images_in(path, out):
                found.setdefault(image.resolve(), (image, base / image.relative_to(root)))
        elif path.exists():
            found.setdefault(path.resolve(), (path, Path(path.name)))
        else:
            raise UserError(f"{path}: no such file or folder; name image files or folders of images")
    stems = Counter(_without_suffix(below) for _, below in found.values())
    return [
        ImageInput(path, below.as_posix() if stems[_without_suffix(below)] > 1 else _without_suffix(below))
        for path, below in found.values()
    ]


def check_outputs(images: Iterable[ImageInput], planned: Iterable[Sequence[Path]]) -> None:
    """Prove that no two images share a result and that no result replaces an image.

    Args:
        images: what will be predicted.
        planned: the files that each image will leave, in the same order.

    Raises:
        UserError: they would; names the files.
    """
    images = list(images)
    sources = {image.path.resolve() for image in images}
    taken: dict[Path, Path] = {}
    for image, files in zip(images, planned, strict=True):
        for file in files:
            resolved = file.resolve()
            if resolved in sources:
                raise UserError(f"{file}: a result would replace this image; take another --out")
            if resolved in taken:
                raise UserError(
                    f"{taken[resolved]} and {image.path}: both would be written to {file}\n"
                    "  predict them into two --out folders, or give the folder above both"
                )
            taken[resolved] = image.path


def _fixed_part(pattern: Path) -> Path:
    """The folder before a pattern's first wildcard."""
    return Path(*pattern.parts[: next(place for place, part in enumerate(pattern.parts) if glob.has_magic(part))])


def _images_of_pattern(pattern: Path, root: Path, out: Path) -> list[Path]:
    matches = sorted(map(Path, glob.glob(str(pattern), recursive=True)))  # noqa: PTH207  # Path.glob takes hidden files along
    results = out.resolve() if root.resolve() in out.resolve().parents else None  # those of a former run are no input
    images: dict[Path, None] = {}
    for path in matches:
        if path.is_dir() and not path.is_symlink():
            images |= dict.fromkeys(_iter_images(path, out))
        elif path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and results not in path.resolve().parents:
            images[path] = None
    if not images:
        found = (
            f"no image among the {len(matches)} files and folders that it matches" if matches else "the pattern matches nothing"
        )
        raise UserError(f"{pattern}: {found}; `**` stands for any number of folders, as in 'photos/**/*.jpg'")
    return list(images)


def _images_in(folder: Path, out: Path) -> list[Path]:
    if folder.resolve() == out.resolve():
        raise UserError(f"{folder}: --out is the folder of the images; take another, such as --out {folder / 'pred'}")
    images = list(_iter_images(folder, out))
    if not images:
        raise UserError(f"{folder}: no image in it or below it; looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
    return images


def _iter_images(folder: Path, out: Path) -> Iterable[Path]:
    return (path for path in _iter_files(folder, out.resolve()) if path.suffix.lower() in IMAGE_SUFFIXES)


def _iter_files(folder: Path, out: Path) -> Iterable[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None
    for path in entries:
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            yield path
        elif path.resolve() != out and not path.is_symlink():  # a link may lead back up
            yield from _iter_files(path, out)


def _without_suffix(below: Path) -> str:
    return below.with_name(below.stem).as_posix()
