"""A source for tests of the packer: random images and PNG masks whose pixels are class ids already.

A module of its own, so that worker processes can import it.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from unetfast.data.labels import ClassInfo, LabelTable
from unetfast.data.sample import FileSpan, SampleRef
from unetfast.data.sources.base import SourceScan
from unetfast.data.spans import read_span
from unetfast.errors import BadSampleError

COLORS = [(0, 0, 0), (200, 30, 30), (30, 200, 30), (30, 30, 200)]


def make_labels(num_classes: int = 3, *, ignore: bool = True) -> LabelTable:
    classes = tuple(ClassInfo(name=f"class{place}", color=COLORS[place % 4], value=place) for place in range(num_classes))
    return LabelTable(classes=classes, ignore_value=255 if ignore else None)


@dataclass(frozen=True)
class PlainMasks:
    """Reads PNG masks of class ids."""

    def __call__(self, span: FileSpan) -> np.ndarray:
        try:
            with Image.open(io.BytesIO(read_span(span))) as image:
                return np.array(image)
        except OSError:
            raise BadSampleError(span.path, "is no image", "get it again") from None


def draw_sample(number: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """An image of blocks with noise, and a mask of rectangles; sizes differ a little."""
    rng = np.random.default_rng([number, 7])
    height, width = 20 + number % 5, 30 + number % 7
    mask = np.zeros((height, width), np.uint8)
    for class_id in range(1, num_classes):
        top, left = rng.integers(0, height - 6), rng.integers(0, width - 6)
        mask[top : top + 6, left : left + 6] = class_id
    rgb = (mask[..., None] * 40 + rng.integers(0, 60, (height, width, 3))).astype(np.uint8)
    return rgb, mask


def write_source(
    root: Path,
    count: int = 12,
    *,
    num_classes: int = 3,
    ignore: bool = True,
    group_size: int = 2,
    splits: tuple[str, ...] = ("",),
) -> SourceScan:
    """Write `count` pairs, every third image a PNG, the others JPEG, and list them as a source does."""
    refs = []
    for number in range(count):
        rgb, mask = draw_sample(number, num_classes)
        if ignore:
            mask[0, : 1 + number % 3] = 255
        image_path = root / f"images/shot.{number:02d}.{'png' if number % 3 == 0 else 'jpg'}"
        mask_path = root / f"masks/{number:02d}.png"
        for path, pixels in ((image_path, rgb), (mask_path, mask)):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, quality=90)
        refs.append(
            SampleRef(
                name=f"shot.{number:02d}",
                source_path=str(image_path.relative_to(root)),
                image=FileSpan(str(image_path)),
                mask=FileSpan(str(mask_path)),
                group=f"scene{number // group_size}" if group_size else "",
                split=splits[number * len(splits) // count],
                num_bytes=image_path.stat().st_size + mask_path.stat().st_size,
            )
        )
    refs.sort(key=lambda ref: (ref.split, ref.name))
    return SourceScan("folder", "plain", make_labels(num_classes, ignore=ignore), refs, PlainMasks())


def change(scan: SourceScan, **fields: object) -> SourceScan:
    return replace(scan, **fields)  # type: ignore[arg-type]


def read_folder(folder: Path) -> dict[str, bytes]:
    """All files of a shard folder but the log of times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "pack.log"
    }


def edit_manifest(folder: Path, **split_fields: object) -> None:
    """Change fields of the train split in the manifest."""
    path = folder / "manifest.json"
    tree = json.loads(path.read_text())
    tree["splits"]["train"].update(split_fields)
    path.write_text(json.dumps(tree))
