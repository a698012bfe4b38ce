"""Folders of images and masks that the user names one by one, wherever they lie and whatever they are called."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from unetfast.data.sources import carvana, folder
from unetfast.data.sources.base import SourceOptions, SourceScan
from unetfast.errors import UserError


def scan_named(folders: Mapping[str, tuple[Path, Path]], options: SourceOptions) -> tuple[Path, SourceScan]:
    """List the pairs of named folders: as Carvana where all files are called so, so that splits go by car, else as any folder.

    Args:
        folders: split ("train", "val", "test", or "" to be split) -> folder of images, folder of masks.
        options: what the user says about classes and values; Carvana takes but the map of values.

    Returns:
        The lowest folder above all of them, and the scan.

    Raises:
        UserError: a folder is missing or named for two things, or the pairs or classes are not clear.
    """
    taken: dict[Path, str] = {}
    for split, pair in folders.items():
        for role, place in zip(("images", "masks"), pair, strict=True):
            what = " ".join(filter(None, (split, role)))
            if not place.is_dir():
                raise UserError(f"{place}: {'not a folder' if place.exists() else 'no such folder'}; it should hold the {what}")
            former = taken.setdefault(place.resolve(), what)
            if former != what and former.split()[-1] == role:
                raise UserError(f"{place}: named for the {former} and for the {what}; one sample must stand in one split alone")
    root = Path(os.path.commonpath([place for pair in folders.values() for place in map(Path.absolute, pair)]))
    absolute = {split: (images.absolute(), masks.absolute()) for split, (images, masks) in folders.items()}
    plain = SourceOptions(value_map=options.value_map) == options
    if plain and all(carvana.holds_cars(*pair) for pair in absolute.values()):
        relative = {
            split: (images.relative_to(root).as_posix(), masks.relative_to(root).as_posix())
            for split, (images, masks) in absolute.items()
        }
        return root, carvana.scan_pairs(root, relative, options)
    return root, folder.scan_pairs(root, absolute, options)
