"""Which source a folder is: the only list of sources.

A source is recognised by its folders and file names alone. The four known layouts come before the general folder of images and
masks, the folder given before those in it; two that fit are an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from unetfast.data.sources import ade20k, carvana, clevr, folder, webdataset
from unetfast.data.sources.base import Scan, SourceOptions, SourceScan
from unetfast.data.sources.listing import describe_folder, list_folder
from unetfast.errors import BadSampleError, UserError


@dataclass(frozen=True, slots=True)
class _Source:
    looked_for: str
    recognize: Callable[[Path], str]
    scan: Scan
    options: frozenset[str]  # fields of SourceOptions that it takes


_ALL_OPTIONS = frozenset(field.name for field in fields(SourceOptions))
_SOURCES = {
    "carvana": _Source(carvana.LOOKED_FOR, carvana.recognize, carvana.scan, frozenset({"value_map"})),
    "clevr": _Source(clevr.LOOKED_FOR, clevr.recognize, clevr.scan, frozenset({"value_map"})),
    "ade20k": _Source(ade20k.LOOKED_FOR, ade20k.recognize, ade20k.scan, frozenset({"value_map"})),
    "webdataset": _Source(webdataset.LOOKED_FOR, webdataset.recognize, webdataset.scan, _ALL_OPTIONS - {"mask_suffix"}),
    "folder": _Source(folder.LOOKED_FOR, folder.recognize, folder.scan, _ALL_OPTIONS),
}
DATASETS = ("carvana", "clevr", "ade20k", "folder", "webdataset")
_FLAGS = {"classes_file": "--classes", "ignore_value": "--ignore", "value_map": "--map", "mask_suffix": "--mask-suffix"}


def scan_source(root: Path, dataset: str, options: SourceOptions) -> SourceScan:
    """List the samples of a source folder.

    Args:
        root: the folder, or one that holds it alone.
        dataset: one of `DATASETS`, or "auto".
        options: what the user says about classes and values; refused where the source has no use for them.

    Raises:
        UserError: no such folder; no layout or more than one fits; an option that the source does not take; nothing in it.
    """
    if dataset != "auto" and dataset not in DATASETS:
        raise UserError(f"--dataset {dataset}: unknown; one of auto, {', '.join(DATASETS)}")
    if not root.is_dir():
        raise UserError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}; --src takes the data set's folder")
    found, name = _find(root, dataset)
    source = _SOURCES[name]
    for option, default in ((field.name, getattr(SourceOptions(), field.name)) for field in fields(SourceOptions)):
        if option not in source.options and getattr(options, option) != default:
            raise UserError(
                f"{_FLAGS[option]}: {found} is {name}, whose classes are fixed; drop the option, or take the folder as images "
                "and masks of your own with --dataset folder"
            )
    try:
        return source.scan(found, options)
    except BadSampleError:
        raise
    except UserError as error:
        if source.recognize(found):
            raise
        raise UserError(f"{error}\n  found: {describe_folder(found)}") from None


def _find(root: Path, dataset: str) -> tuple[Path, str]:
    """Find the one folder and source that fit: in `root` itself, else in one of the folders in it."""
    special = [name for name in _SOURCES if name != "folder"] if dataset == "auto" else [dataset]
    general = ["folder"] if dataset == "auto" else []
    below = [root / name for name in list_folder(root)[0]]
    for places, names in (([root], special), ([root], general), (below, special), (below, general)):
        fits = [(place, name) for name in names for place in places if _SOURCES[name].recognize(place)]
        if len(fits) == 1:
            return fits[0]
        if fits:
            shown = "\n".join(f"  {place}: {name} ({_SOURCES[name].recognize(place)})" for place, name in fits[:12])
            raise UserError(f"{root}: {len(fits)} data sets fit:\n{shown}\n  give one of them with --src FOLDER --dataset NAME")
    if dataset != "auto":
        return root, dataset  # its scan says best what is missing
    looked = "\n".join(f"  {name:<11}{_SOURCES[name].looked_for}" for name in _SOURCES)
    raise UserError(
        f"{root}: no known data set in it. Looked for, there and one folder down:\n{looked}\n  found: {describe_folder(root)}\n"
        "  give the folder that holds images and masks, or name the layout with --dataset"
    )
