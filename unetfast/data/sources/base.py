"""What every source gives the packer: its label table, its samples, and how a mask's bytes become class ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from unetfast.data.labels import LabelTable, MaskValue
from unetfast.data.sample import FileSpan, SampleRef


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What the user says about a source folder; the folder source takes them all.

    Args:
        classes_file: names and colours of the classes, a line or row each.
        ignore_value: value of ignored pixels in the masks.
        value_map: (value in the masks, class id or None for ignore), from --map.
        mask_suffix: what a mask's stem adds to its image's, such as "_mask"; None tries the usual ones.
    """

    classes_file: Path | None = None
    ignore_value: int | None = None
    value_map: tuple[tuple[MaskValue, int | None], ...] = ()
    mask_suffix: str | None = None


@dataclass(frozen=True, slots=True)
class ScanProblem:
    """A pair that cannot be formed, found while listing a folder (image without mask, two masks for one image, ...)."""

    file: str
    reason: str
    remedy: str


class MaskReader(Protocol):
    """Turns a mask's bytes into class ids. Picklable: it travels to worker processes."""

    def __call__(self, span: FileSpan) -> np.ndarray:
        """Read one mask.

        Returns:
            Ids, dtype `labels.mask_dtype`, (H, W).

        Raises:
            BadSampleError: the file is unreadable, or holds values that no class has.
        """
        ...


@dataclass(frozen=True, slots=True)
class SourceScan:
    """A scanned source folder.

    Args:
        dataset: "carvana", "clevr", "ade20k", "folder" or "webdataset".
        layout: the layout found, such as "Kaggle layout"; for people.
        labels: the classes.
        samples: all pairs, sorted by (split, name); names are unique in their split.
        read_mask: the source's mask reader.
        problems: pairs that could not be formed.
        notes: (what, count) of things left out or worth a word, such as ("unlabelled videos", 1).
    """

    dataset: str
    layout: str
    labels: LabelTable
    samples: list[SampleRef]
    read_mask: MaskReader
    problems: list[ScanProblem] = field(default_factory=list)
    notes: list[tuple[str, int]] = field(default_factory=list)


# a source's scanner: raises UserError where the folder is not of its layout
Scan = Callable[[Path, SourceOptions], SourceScan]
