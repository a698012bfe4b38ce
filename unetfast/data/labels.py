"""The label table: what each class id means, how it is shown, and how it stands in the source's own masks.

It travels from source to manifest to checkpoint to prediction.
"""

from __future__ import annotations

from typing import Annotated, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_CLASSES_UINT8 = 255
MAX_CLASSES = 65535

Byte = Annotated[int, Field(ge=0, le=255)]
Color = Annotated[tuple[Byte, Byte, Byte], Field(strict=False)]
# a class's value in the source's own masks: a number, or a colour where the masks are RGB
MaskValue = int | Color


class ClassInfo(BaseModel):
    """One class: name, display colour (RGB), and its value in the source's own masks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    color: Color
    value: MaskValue


class LabelTable(BaseModel):
    """All classes in order; a class's id is its place.

    `ignore_value` is the value of ignored pixels in the source's own masks; None where the source declares no ignore.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    classes: Annotated[tuple[ClassInfo, ...], Field(min_length=1, max_length=MAX_CLASSES)]
    ignore_value: MaskValue | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [info.name for info in self.classes]
        twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        if twice:
            raise ValueError(f"class names stand twice: {', '.join(twice)}")
        return self

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def names(self) -> list[str]:
        return [info.name for info in self.classes]

    @property
    def has_ignore(self) -> bool:
        return self.ignore_value is not None

    @property
    def ignore_index(self) -> int:
        """Id of ignored pixels in packed masks: 255, or 65535 past 255 classes."""
        return 255 if self.num_classes <= MAX_CLASSES_UINT8 else 65535

    @property
    def mask_dtype(self) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
        return np.dtype(np.uint8) if self.num_classes <= MAX_CLASSES_UINT8 else np.dtype(np.uint16)

    @property
    def mask_bits(self) -> int:
        """Bits of a pixel in packed LZ4 masks: 1 (two classes, no ignore), 8 or 16."""
        if self.num_classes <= 2 and not self.has_ignore:
            return 1
        return 8 * self.mask_dtype.itemsize

    @property
    def palette(self) -> np.ndarray:
        """Display colours, uint8, (num_classes, 3)."""
        return np.array([info.color for info in self.classes], dtype=np.uint8)
